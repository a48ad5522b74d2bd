/* hf_folder.h - a Hugging Face checkpoint folder. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_HF_FOLDER_H
#define MDP_CHECKPOINT_HF_FOLDER_H

#include "checkpoint/draft.h"

/* Add config.json, the weights (single file or the shards of an index) and the side files of a folder. Local. */
mdp_status mdp_hf_folder_add(mdp_draft *draft, const char *folder);

#endif
