/* continue.h - stopping a command and going on with it: signals, what a resume point depends on, what is found. */
#ifndef MDP_CONTINUE_H
#define MDP_CONTINUE_H

#include "command/outputs.h"

/* Listen to signals from now on, in a command that can be continued. Local. */
mdp_status mdp_session_listen(const mdp_session *session);
/* A plan was read: resume points depend on it. Local. */
void mdp_session_note_plan(mdp_session *session, const char *text, int64_t n_byte);
/* What resume points of this command would be of, when all inputs are open; nothing in a command that takes none.
 * Local. */
mdp_status mdp_session_new_resume(mdp_session *session);
/* With --resume: has an earlier run of this very command done all? *finished: what the record of a folder of results
 * says of it, if there is one. Rank 0. MDP_BAD_INPUT: yes, but inputs have been changed since; where something was
 * saved to go on from, it has not. */
mdp_status mdp_session_look_finished(const mdp_session *session, const mdp_results *results, bool goes_on,
                                     bool *finished);
/* What an earlier run has saved: with --resume it must be of this command, and is gone on with; without, it is refused,
 * but for --overwrite. Rank 0. Errors: MDP_USAGE naming the option that differs, MDP_BAD_INPUT naming the input,
 * MDP_CANNOT_CREATE. */
mdp_status mdp_session_look_back(const mdp_session *session, bool *goes_on);
/* The same on every rank afterwards. Local. */
void mdp_session_go_on(mdp_session *session, bool goes_on);
/* With --resume: what an interrupted run computed with, as mdp_gemm_describe says; "" when there is none. Rank 0. */
mdp_status mdp_session_recorded_compute(const mdp_session *session, bool in_folder, char *out, size_t n_byte);
/* Say how to go on. Rank 0. */
void mdp_session_say_how_to_go_on(const mdp_session *session);
/* After a failure: say what the command leaves that is of use, and the command that goes on from it. Rank 0. */
void mdp_session_say_what_stays(const mdp_session *session, const mdp_status *status);

#endif
