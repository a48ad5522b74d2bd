/* h5_parallel.h - an HDF5 file that rank 0 has made, open on all ranks. */
#ifndef MDP_CHECKPOINT_H5_PARALLEL_H
#define MDP_CHECKPOINT_H5_PARALLEL_H

#include "checkpoint/h5_make.h"

/* Open for writing with the MPI driver. *file is open on all ranks or, after an error, on none (-1). Collective on
 * `comm`. Errors: MDP_IO. */
mdp_status mdp_h5_open_all(const mdp_comm *comm, const char *path, hid_t *file);
/* Close it, after local work that ended in `status`: whatever that is, every rank must come here. Returns the common
 * outcome. Collective on `comm`. */
mdp_status mdp_h5_close_all(const mdp_comm *comm, const char *path, hid_t file, mdp_status status);
/* fsync: what this node holds in memory of the file goes to storage. Local. */
mdp_status mdp_h5_sync(const char *path);
/* The same by one rank of every node, because one node's does nothing for another. Collective on `comm`. */
mdp_status mdp_h5_sync_all(const mdp_comm *comm, const char *path);

#endif
