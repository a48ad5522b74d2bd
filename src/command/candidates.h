/* candidates.h - --methods and --ratios: the plans that a frontier measures. */
#ifndef MDP_COMMAND_CANDIDATES_H
#define MDP_COMMAND_CANDIDATES_H

#include "command/session.h"
#include "mdp/frontier.h"

/* One of --methods. */
typedef struct mdp_candidate_method {
    const char *name; /* as it was given, or a recipe's; static */
    const mdp_criterion *criterion;
    mdp_budget budget;
} mdp_candidate_method;

/* What --methods and --ratios say. */
typedef struct mdp_candidates {
    int n_method, n_ratio;
    mdp_candidate_method *methods; /* [n_method] */
    double *ratios;                /* [n_ratio] shares of the experts to remove, in (0, 1) */
    unsigned vectors;              /* bits of those that the methods need of statistics */
    bool needs_stats;
} mdp_candidates;

/* Local. MDP_USAGE: an unknown or repeated method, one that cannot be measured so, ratios that are none. */
mdp_status mdp_session_parse_candidates(const mdp_session *session, mdp_candidates *out);
void mdp_candidates_free(mdp_candidates *candidates);

/* Plans that are measured: distinct ones, none the original itself. */
typedef struct mdp_candidate_plans {
    int n;
    int *point;       /* [n] the first point of each */
    mdp_view **views; /* [n] owned */
} mdp_candidate_plans;
void mdp_candidate_plans_free(mdp_candidate_plans *plans);

/* Make a plan for every method and ratio, as the command `plan` would, from the statistics (on rank 0; NULL: methods
 * that need none) and, for methods that look at them, the weights of the open model; points of what cannot be say why.
 * frontier has its model and gets its points, with sizes; evaluations are still to come. A dry run reads no weights:
 * plans by chance stand in. Collective. */
mdp_status mdp_session_make_candidates_all(mdp_session *session, const mdp_candidates *candidates,
                                           const mdp_stats *stats, mdp_frontier *frontier, mdp_candidate_plans *plans);

#endif
