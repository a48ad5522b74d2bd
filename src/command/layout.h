/* layout.h - the ranks that a dry run is about: those of the job, or others that are only asked about. */
#ifndef MDP_LAYOUT_H
#define MDP_LAYOUT_H

#include "command/session.h"

/* Fill session->layout from --ranks and --ranks-per-node; without them it is the session's communicator. Local.
 * MDP_USAGE: they are for --dry-run. */
mdp_status mdp_session_lay_out(mdp_session *session);
void mdp_session_free_layout(mdp_session *session);

#endif
