/* safetensors.h - the header of one .safetensors file. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_SAFETENSORS_H
#define MDP_CHECKPOINT_SAFETENSORS_H

#include "checkpoint/draft.h"

#define MDP_SAFETENSORS_MAX_HEADER 100000000

/* Check the file at `path` by the rules of the format and add it, and its tensors, to the draft. Local. */
mdp_status mdp_safetensors_add(mdp_draft *draft, const char *path);

#endif
