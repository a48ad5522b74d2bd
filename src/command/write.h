/* write.h - a described result to files: model.h5, a Hugging Face folder, or both, with progress. */
#ifndef MDP_WRITE_H
#define MDP_WRITE_H

#include "command/session.h"

/* Leave the layers of --layers in a result, all where it is not given. MDP_USAGE when they are not layers. Local. */
mdp_status mdp_session_excerpt(const mdp_session *session, mdp_output *output);
/* Bytes of the tensors in each container that --format asks for; 0: it does not. */
typedef struct mdp_result_bytes {
    int64_t native, folder;
} mdp_result_bytes;
/* How much `output`, which `plan` makes, takes where it is written: in a folder with the experts that layers which
 * differ are padded with. Local. */
mdp_status mdp_session_result_bytes(const mdp_session *session, const mdp_plan *plan, const mdp_output *output,
                                    mdp_result_bytes *out);
/* Write `output` as model.h5. Collective. */
mdp_status mdp_session_write_native_all(const mdp_session *session, const mdp_output *output, const char *path);
/* Write `output` as a Hugging Face folder. Collective. */
mdp_status mdp_session_write_hf_all(const mdp_session *session, const mdp_output *output, const char *folder);
/* Write `output`, which `plan` makes, below --out in the containers that --format asks for: model.h5, hf. The latter
 * as --non-uniform says where layers differ. Collective. */
mdp_status mdp_session_write_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output);

#endif
