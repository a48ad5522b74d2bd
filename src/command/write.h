/* write.h - a described result to files: model.h5, a Hugging Face folder, or both, with progress. */
#ifndef MDP_WRITE_H
#define MDP_WRITE_H

#include "command/session.h"

/* Leave the layers of --layers in a result, all where it is not given. MDP_USAGE when they are not layers. Local. */
mdp_status mdp_session_excerpt(const mdp_session *session, mdp_output *output);
/* Write `output` as model.h5. Collective. */
mdp_status mdp_session_write_native_all(const mdp_session *session, const mdp_output *output, const char *path);
/* Write `output` as a Hugging Face folder. Collective. */
mdp_status mdp_session_write_hf_all(const mdp_session *session, const mdp_output *output, const char *folder);
/* Write `output`, which `plan` makes, below --out in the containers that --format asks for: model.h5, hf. The latter
 * padded where layers differ. Collective. */
mdp_status mdp_session_write_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output);

#endif
