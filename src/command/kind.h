/* kind.h - what a file or folder that the user names is. */
#ifndef MDP_COMMAND_KIND_H
#define MDP_COMMAND_KIND_H

#include "mdp/comm.h"

typedef enum mdp_kind {
    MDP_KIND_CHECKPOINT,
    MDP_KIND_STATS,
    MDP_KIND_TOKENS,
    MDP_KIND_JSON, /* of ours, but no plan */
    MDP_KIND_PLAN
} mdp_kind;

/* Collective on `comm`; rank 0 looks. MDP_BAD_INPUT: JSON that is none of ours, HDF5 that cannot be opened. */
mdp_status mdp_kind_find_all(const mdp_comm *comm, const char *path, mdp_kind *out);

#endif
