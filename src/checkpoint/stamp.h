/* stamp.h - files that are not to change while they are read. */
#ifndef MDP_CHECKPOINT_STAMP_H
#define MDP_CHECKPOINT_STAMP_H

#include "mdp/checkpoint.h"

/* The error for one that did, MDP_BAD_INPUT. */
mdp_status mdp_stamp_differs(const char *path);

#endif
