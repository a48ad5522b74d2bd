/* foresee.h - a run before it is known which experts stay: a plan that stands in for the one to come, and with it all
 * that the run will take and everything about its result that can be refused. */
#ifndef MDP_FORESEE_H
#define MDP_FORESEE_H

#include "command/refitting.h"

/* --propagate pruned: layers see what the decided layers before them give. */
bool mdp_session_propagates(const mdp_session *session);
/* Is there text or are there tasks to compare original and pruned model by? */
bool mdp_session_evaluates(const mdp_session *session);

/* Everything that is open is looked at as it will be at the end: adds every forward pass of n_round rounds and the
 * writing of the result; refit (NULL: none is wanted) gets its memory. Refuses a result that a writer would refuse
 * (mdp_session_check_result), or for which --memory is too little. Collective. */
mdp_status mdp_session_foresee_all(mdp_session *session, const mdp_budget_options *budget, int64_t n_round,
                                   mdp_refit_options *refit, mdp_estimate *estimate);

#endif
