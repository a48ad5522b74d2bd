/* h5_parallel.h - an HDF5 file that rank 0 has made, open on all ranks. */
#ifndef MDP_CHECKPOINT_H5_PARALLEL_H
#define MDP_CHECKPOINT_H5_PARALLEL_H

#include "checkpoint/h5_make.h"

/* Open for writing with the MPI driver; *file is to be closed by all. Collective on `comm`. */
mdp_status mdp_h5_open_all(const mdp_comm *comm, const char *path, hid_t *file);
/* fsync: what this node holds in memory of the file goes to storage. Local. */
mdp_status mdp_h5_sync(const char *path);
/* The same by one rank of every node, because one node's does nothing for another. Collective on `comm`. */
mdp_status mdp_h5_sync_all(const mdp_comm *comm, const char *path);

#endif
