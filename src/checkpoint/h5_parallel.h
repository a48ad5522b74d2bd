/* h5_parallel.h - an HDF5 file that rank 0 has made, open on all ranks. */
#ifndef MDP_CHECKPOINT_H5_PARALLEL_H
#define MDP_CHECKPOINT_H5_PARALLEL_H

#include "checkpoint/h5_make.h"

/* Open for writing with the MPI driver; *file is to be closed by all. Collective on `comm`. */
mdp_status mdp_h5_open_all(const mdp_comm *comm, const char *path, hid_t *file);
/* fsync of a closed file, by one rank of every node: what a node still holds in memory goes to storage, which another
 * node's sync does not do. Collective on `comm`. */
mdp_status mdp_h5_sync_all(const mdp_comm *comm, const char *path);

#endif
