/* mtp.h - layers that predict tokens further ahead (MTP), where --mtp prune keeps them. */
#ifndef MDP_MTP_H
#define MDP_MTP_H

#include "command/session.h"

/* With --mtp prune, bind those layers of the open model, if it has any. Collective. Errors: MDP_BAD_INPUT for experts
 * that could not be renumbered. */
mdp_status mdp_session_open_mtp_all(mdp_session *session);
/* Choose which of their experts stay: as many as config.json will say when `plan` is carried out. Nothing observes
 * these layers, so it is the method of the plan where that reads weights alone, else aimer. Their experts are read; for
 * `stand_in` no tensor is, and any choice that has the right number stands for the one to come. Collective. */
mdp_status mdp_session_plan_mtp_all(mdp_session *session, const mdp_plan *plan, bool stand_in);
/* What the session says of them to a transform; NULL: they do not stay. */
const mdp_extra *mdp_session_extra(const mdp_session *session, mdp_extra *out);

#endif
