/* measured.h - what eval and frontier share: results that say themselves what they are of. */
#ifndef MDP_COMMAND_MEASURED_H
#define MDP_COMMAND_MEASURED_H

#include "command/outputs.h"

/* Is the JSON document at `path` the one that is to be written, by its "identity"? For mdp_results. Rank 0. */
mdp_status mdp_measured_is_done(const mdp_session *session, const void *context, const char *path, bool *done);

#endif
