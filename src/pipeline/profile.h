/* profile.h - what a pass took, over all ranks. Private to src/pipeline. */
#ifndef MDP_SRC_PIPELINE_PROFILE_H
#define MDP_SRC_PIPELINE_PROFILE_H

#include "mdp/pipeline.h"

/* Say on `log` where the time of a pass went, and add it to `passes` (rank 0). The profile is ended. Collective on
 * `comm`. */
mdp_status mdp_profile_tell_all(const mdp_comm *comm, mdp_profile *profile, const char *pass, mdp_log *log,
                                json_t *passes);

#endif
