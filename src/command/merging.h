/* merging.h - what merging the experts of a plan takes, and doing it; for the commands run, plan and merge. */
#ifndef MDP_MERGING_H
#define MDP_MERGING_H

#include "command/opening.h"
#include "mdp/merge.h"

/* Is there an expert that is to be merged, or cut, and has not been? */
bool mdp_plan_is_unmerged(const mdp_plan *plan);
/* Are there merged ones that are made already, nothing to merge, or text that is missing or of no use? Local.
 * MDP_USAGE. */
mdp_status mdp_session_check_merge(const mdp_session *session, const mdp_plan *plan);
/* What a merge beside a pass holds of a rank; 0: no expert is fitted. Local. */
int64_t mdp_session_merge_memory(const mdp_session *session, const mdp_plan *plan);
/* Add reading, matching and plan.h5 of a merge; `carried`: a refit takes it over into a plan.h5 of its own. Collective.
 */
mdp_status mdp_session_add_merge_all(mdp_session *session, const mdp_plan *plan, bool carried, mdp_estimate *estimate);
/* Merge: plan.h5 is made to be published as `published`, and *text (new) is the plan that names its arrays; *made:
 * the experts, read where they were made (NULL: not wanted). Collective. */
mdp_status mdp_session_merge_all(mdp_session *session, const mdp_plan *plan, const char *published, mdp_replaced **made,
                                 char **text);

#endif
