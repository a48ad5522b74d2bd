/* recovering.h - what the options of recover ask for, and doing it. */
#ifndef MDP_RECOVERING_H
#define MDP_RECOVERING_H

#include "command/refitting.h"

typedef struct mdp_recovery {
    mdp_refit_options refit; /* its `train` is the following */
    mdp_train_options train;
} mdp_recovery;

extern const char *const mdp_train_names[]; /* what is trained; NULL at the end */

/* From the options. Local. MDP_USAGE. */
mdp_status mdp_session_recovery(const mdp_session *session, mdp_recovery *out);
/* Can this plan of this model be trained? Local. MDP_USAGE. */
mdp_status mdp_session_check_recovery(const mdp_session *session, const mdp_plan *plan, const mdp_recovery *recovery);
/* Train: plan.h5 is made to be published as `published`, and *text (new) is the plan that names its arrays.
 * Collective. */
mdp_status mdp_session_recover_all(mdp_session *session, const mdp_plan *plan, const mdp_recovery *recovery,
                                   const char *published, char **text);

#endif
