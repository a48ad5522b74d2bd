/* refitting.h - what --refit and its kin ask for, what that takes, and doing it; for the commands run and refit. */
#ifndef MDP_REFITTING_H
#define MDP_REFITTING_H

#include "command/opening.h"
#include "mdp/refit.h"

/* The options of a refit; *wanted: there is to be one. Local. MDP_USAGE. */
mdp_status mdp_session_refit_options(const mdp_session *session, bool *wanted, mdp_refit_options *out);
/* What of them says what layers are to give, on which inputs and text. Local. MDP_USAGE. */
mdp_status mdp_session_refit_target(const mdp_session *session, mdp_refit_options *out);
/* A plan is refitted once. Local. MDP_USAGE. */
mdp_status mdp_session_check_refit(const mdp_plan *plan);
/* Bytes that a rank holds during the pass beside what the engine knows of. Local. */
int64_t mdp_session_refit_memory(const mdp_session *session, const mdp_refit_options *options);
/* Add pass, sums, solves and plan.h5 of a refit of what `plan` leaves, and settle what sums and factors may take
 * (options->memory). Collective. */
mdp_status mdp_session_add_refit_all(mdp_session *session, const mdp_plan *plan, mdp_refit_options *options,
                                     mdp_estimate *estimate);
/* Refit: plan.h5 is made to be published as `published`, and *text (new) is the plan that names its arrays. Collective.
 */
mdp_status mdp_session_refit_all(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options,
                                 const char *published, char **text);

/* ---- fits of any kind -------------------------------------------------------------------------------------------- */

/* Error held out / error fitted, each as a part of what it was, that is worth a warning. */
#define MDP_OVERFITTED 1.25

/* What a fit (or training) says of itself. */
typedef struct mdp_fit_words {
    const char *key;  /* in the recipe of a plan */
    const char *what; /* the plan, for errors */
    /* What stands under the key; `earlier`: what did (NULL: nothing). New. The same on every rank. */
    json_t *(*recipe)(const mdp_session *session, const void *context, const mdp_refit *refit, const json_t *earlier);
    void (*tell)(const mdp_session *session, const mdp_refit *refit);
} mdp_fit_words;

/* Fit as the options say: plan.h5 is made to be published as `published`, and *text (new) is the plan that names its
 * arrays, with what words->recipe makes of `context`. Collective. */
mdp_status mdp_session_fit_all(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options,
                               const mdp_fit_words *words, const void *context, const char *published, char **text);
json_t *mdp_refit_print_errors(const mdp_refit_error *error);

#endif
