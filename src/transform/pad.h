/* pad.h - experts that are never chosen. Private to src/transform. */
#ifndef MDP_TRANSFORM_PAD_H
#define MDP_TRANSFORM_PAD_H

#include "mdp/transform.h"

/* The bytes (mdp_segment) of an added expert's entry in a tensor that holds a layer's experts: 0, or in the bias by
 * which experts are chosen a value that nothing outweighs. */
uint32_t mdp_pad_fill(const mdp_moe *moe, const mdp_tensor *tensor);

#endif
