/* h5_parallel.c - opening one HDF5 file on all ranks, and making what they wrote durable: see h5_parallel.h. */
#include "checkpoint/h5_parallel.h"

mdp_status mdp_h5_open_all(const mdp_comm *comm, const char *path, hid_t *file) {
    /* Try alone first: a rank that cannot see the file must be known before the collective open. */
    int fd = -1;
    *file = -1;
    mdp_status status = mdp_file_open_write(path, &fd);
    if (status.code == MDP_OK) status = mdp_file_close(path, fd);
    MDP_AGREE(comm, status);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0 || H5Pset_fapl_mpio(access, comm->world, MPI_INFO_NULL) < 0 ||
        H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0)
        status = mdp_h5_error(MDP_IO, "set up", "parallel access", path);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) {
        *file = H5Fopen(path, H5F_ACC_RDWR, access);
        if (*file < 0) status = mdp_h5_error(MDP_IO, "open", "the file for all ranks", path);
        status = mdp_agree_all(comm, status);
        if (status.code != MDP_OK && *file >= 0) {
            /* Open here, failed elsewhere: closing is collective and would wait for ever. */
            fprintf(stderr, "moe-dist-prune: %s\n", status.text);
            MPI_Abort(comm->world, status.code);
        }
    }
    if (access >= 0) H5Pclose(access);
    return status;
}

mdp_status mdp_h5_sync(const char *path) {
    int fd = -1;
    MDP_TRY(mdp_file_open_write(path, &fd));
    mdp_status status = mdp_file_sync(path, fd);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

mdp_status mdp_h5_sync_all(const mdp_comm *comm, const char *path) {
    return mdp_agree_all(comm, comm->node_rank == 0 ? mdp_h5_sync(path) : mdp_ok());
}
