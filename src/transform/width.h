/* width.h - a model as if all its experts had another number of neurons: what its tensors and config.json would be.
 * Private to src/transform. */
#ifndef MDP_TRANSFORM_WIDTH_H
#define MDP_TRANSFORM_WIDTH_H

#include "mdp/model.h"

/* Tensors have the numbers and names that they have in the model; none of them is in a file. */
typedef struct mdp_width {
    mdp_catalogue catalogue;
    mdp_model *model;
} mdp_width;

/* Bound as the family binds such a checkpoint. Local. MDP_USAGE: no checkpoint of the family could have that width,
 * saying why. */
mdp_status mdp_width_new(const mdp_model *model, int64_t d_ff, mdp_width **out);
void mdp_width_destroy(mdp_width *width); /* NULL is allowed */

#endif
