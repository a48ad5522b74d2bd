/* bind.h - the tensors of a catalogue, found by a family's name patterns and checked against config.json. */
#ifndef MDP_MODEL_BIND_H
#define MDP_MODEL_BIND_H

#include "model/config.h"

/* Fill model->embedding, final_norm, head, layers, names, n_parameter and n_active. model->catalogue and family are
 * set; what was filled when an error came is freed by mdp_model_destroy. */
mdp_status mdp_bind_tensors(const mdp_config *config, mdp_model *model);
/* The same for the experts of layers that predict tokens further ahead, to whose tensors the marks [n_tensor] point:
 * fill model->layers, n_layer and names. */
mdp_status mdp_bind_extra_tensors(const mdp_config *config, const unsigned char *marks, mdp_model *model);

#endif
