/* continue.h - stopping a command and going on with it: options, what a resume point depends on, its folder. */
#ifndef MDP_CONTINUE_H
#define MDP_CONTINUE_H

#include "command/session.h"

/* Listen to signals from now on, in a command that can be continued. Local. */
mdp_status mdp_session_listen(const mdp_session *session);
/* A plan was read: resume points depend on it. Local. */
void mdp_session_note_plan(mdp_session *session, const char *text, int64_t n_byte);
/* When all inputs are open and before outputs are checked: find what an earlier run left beside the results, in `place`
 * ("--out", or a name in it). With --resume it must be of this command, and its outputs may then be replaced; without,
 * it is refused, or with --overwrite removed. Collective. Errors: MDP_USAGE naming the option that differs,
 * MDP_BAD_INPUT naming the input, MDP_CANNOT_CREATE. */
mdp_status mdp_session_open_resume_all(mdp_session *session, bool in_folder);
/* With --resume: what an interrupted run computed with, as mdp_gemm_describe says; "" when there is none. Rank 0. */
mdp_status mdp_session_recorded_compute(const mdp_session *session, bool in_folder, char *out, size_t n_byte);
/* The command has succeeded: remove the folder. Collective. */
mdp_status mdp_session_end_resume_all(mdp_session *session);
/* Say how to go on. Rank 0. */
void mdp_session_say_how_to_go_on(const mdp_session *session);
/* After a failure: say what the command leaves that is of use, and the command that goes on from it. Rank 0. */
void mdp_session_say_what_stays(const mdp_session *session, const mdp_status *status);
/* May outputs that exist be replaced? */
bool mdp_session_may_replace(const mdp_session *session);

#endif
