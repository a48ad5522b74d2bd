/* next.h - what to do with the result of a run. */
#ifndef MDP_NEXT_H
#define MDP_NEXT_H

#include "command/session.h"

/* A line that can be pasted, into Python or a shell, with a word after it on what it is good for; new. Local. */
mdp_status mdp_session_next_step(const mdp_session *session, char **out);

#endif
