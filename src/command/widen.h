/* widen.h - --changed-type: experts that are made stand in bf16, and so do then all weights in FP8 and MXFP4. */
#ifndef MDP_COMMAND_WIDEN_H
#define MDP_COMMAND_WIDEN_H

#include "command/session.h"

/* Is bf16 asked for? */
bool mdp_session_widens(const mdp_session *session);
/* For a command that makes its plan itself: `makes`: it makes experts. Where bf16 is asked for, the open model is taken
 * as if it stood in that. Local. MDP_USAGE, MDP_BAD_INPUT. */
mdp_status mdp_session_widen_model(mdp_session *session, bool makes);
/* For a command that goes on from a plan, which becomes one in bf16 where that is asked for. Local. The same errors. */
mdp_status mdp_session_widen_plan(mdp_session *session, mdp_plan *plan);
/* A plan was read: the model is taken as the plan has it. Plans of one command have experts of one kind. Local.
 * MDP_USAGE. */
mdp_status mdp_session_follow_type(mdp_session *session, const mdp_plan *plan);

#endif
