/* decide.h - rank 0 decides a plan, every rank has it: the decision, its text, and where it came from. */
#ifndef MDP_DECIDE_H
#define MDP_DECIDE_H

#include "command/session.h"

/* That --method names. */
const mdp_criterion *mdp_session_criterion(const mdp_session *session);
/* Do --method and the options that belong to some methods go together? Local. MDP_USAGE. */
mdp_status mdp_session_check_method(const mdp_session *session);
/* What --merge and its kin ask for; *wanted: experts are to be merged, or represented by the best of a group. Local.
 * MDP_USAGE. */
mdp_status mdp_session_merge_request(const mdp_session *session, bool *wanted, mdp_merge_request *out);
/* Are experts to be made of several? Local. MDP_USAGE. */
mdp_status mdp_session_will_merge(const mdp_session *session, bool *out);
/* Bits of the vectors that the decision needs of statistics (mdp_stats_read_vectors). Local. */
unsigned mdp_session_vectors(const mdp_session *session);
/* Statistics have been read, with those vectors: what the decision compares experts by. Local: rank 0. */
mdp_status mdp_session_compare_experts(const mdp_session *session, mdp_stats *stats);
/* For a method that compares two models by their routers: read those now, when what is wrong with them is known before
 * anything heavy, and keep them for the decision. Collective. Errors: MDP_BAD_INPUT when they do not correspond, or are
 * the same. */
mdp_status mdp_session_read_routers_all(mdp_session *session);
/* A plan from these statistics (NULL: none) as the options say, before anything that the method reads or measures
 * itself, weights of categories, merges and rounds. Local. */
mdp_plan_request mdp_session_plan_request(const mdp_session *session, const mdp_stats *stats,
                                          const mdp_budget_options *budget);
/* What a later round of --rounds goes on from; all 0 without rounds. */
typedef struct mdp_round {
    int64_t n;                /* rounds in all */
    const mdp_plan *previous; /* NULL in the first */
} mdp_round;

/* A plan from statistics (on rank 0; NULL: of the open model by a criterion that needs none). A criterion that reads
 * weights or runs the model itself does so here; the session has the model, and for the latter tokens, open. Rank 0
 * chooses and prints, the text is broadcast and parsed, so that every rank works from the same bytes. Collective. */
mdp_status mdp_session_decide_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                  mdp_round round, mdp_plan **plan, char **text);
/* Warn when no token reached some of the experts that a plan chooses among. */
void mdp_session_tell_unseen(const mdp_session *session, const mdp_plan *plan);
/* What determines the bytes of a checkpoint, as JSON: writer, model, recipe, compute mode. plan NULL: none. New text.
 * Local. */
mdp_status mdp_session_provenance(const mdp_session *session, const mdp_plan *plan, const char *type, char **out);

#endif
