/* native.h - our own model.h5 as a catalogue. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_NATIVE_H
#define MDP_CHECKPOINT_NATIVE_H

#include "checkpoint/draft.h"

#define MDP_NATIVE_FORMAT "moe-dist-prune checkpoint"
#define MDP_NATIVE_MAJOR 1
#define MDP_EXPERT_MARK "{expert}"

/* Check a model.h5 and add its tensors, side files and texts to the draft. Local; main thread (HDF5). */
mdp_status mdp_native_add(mdp_draft *draft, const char *path);

#endif
