/* side_files.h - what becomes of the files beside the weights of a Hugging Face folder. */
#ifndef MDP_CHECKPOINT_SIDE_FILES_H
#define MDP_CHECKPOINT_SIDE_FILES_H

#include "checkpoint/draft.h"

/* Add the side files among the names of the folder (sorted) to the draft, which has the weights already, and note
 * what is left out. Errors: MDP_BAD_INPUT naming an adapter, or a file that is to be copied and cannot be. */
mdp_status mdp_side_files_add(mdp_draft *draft, const char *folder, const mdp_names *names);

#endif
