/* trace.h - is a result what a model and the plan in it give? */
#ifndef MDP_COMMAND_TRACE_H
#define MDP_COMMAND_TRACE_H

#include "command/session.h"

/* Make the checkpoint `result` anew from the session's open model, in memory, and compare every tensor and side file
 * with its checksums, digests [tensors of the result, then its side files] (the same on every rank). Collective.
 * MDP_BAD_INPUT: it is of another model, or names the first tensor that is. */
mdp_status mdp_session_trace_all(mdp_session *session, const mdp_catalogue *result, const mdp_digest *digests);

#endif
