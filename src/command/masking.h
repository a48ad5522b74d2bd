/* masking.h - masks of single weights: what the options ask for, and plan.h5 with the norms that they need; for the
 * commands run and plan. */
#ifndef MDP_MASKING_H
#define MDP_MASKING_H

#include "command/opening.h"

/* What --mask and its kin ask for; *wanted: experts are to be masked. Local. MDP_USAGE. */
mdp_status mdp_session_mask_request(const mdp_session *session, bool *wanted, mdp_mask_request *out);
/* Norms of channels that the masks need of statistics. Local. */
mdp_channel_norms mdp_session_mask_norms(const mdp_session *session);
/* Does the rule go with the widths of the open model? Local. MDP_USAGE. */
mdp_status mdp_session_check_mask_widths(const mdp_session *session);
/* Bytes of plan.h5 for the masks of a plan of the open model. Local. */
mdp_status mdp_session_mask_bytes(const mdp_session *session, const mdp_plan *plan, int64_t *out);
/* Write the norms that a plan names, of the statistics (on rank 0) that it was made of, where they are published as
 * `published`; *made: there are any. Collective. */
mdp_status mdp_session_write_norms_all(const mdp_session *session, const mdp_plan *plan, const mdp_stats *stats,
                                       const char *published, bool *made);

#endif
