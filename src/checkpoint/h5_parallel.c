/* h5_parallel.c - opening and closing one HDF5 file on all ranks, and making what they wrote durable.
 *
 * Opening and closing are collective inside HDF5, without agreement: so everything that may fail on one rank alone is
 * tried first. */
#include "checkpoint/h5_parallel.h"
#include "comm/noted.h"

/* Local: this rank can see the file and write to it, and may open what an MPI library opens beside it. */
static mdp_status try_file(const char *path) {
    int fd = -1;
    MDP_TRY(mdp_file_open_write(path, &fd));
    mdp_status status = mdp_file_spare(2);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

/* How a file is opened by all ranks; MPI's part is freed by free_access. */
typedef struct parallel_access {
    hid_t list;
    MPI_Info hints;
} parallel_access;

static void free_access(parallel_access *access) {
    if (access->list >= 0) H5Pclose(access->list);
    if (access->hints != MPI_INFO_NULL) MPI_Info_free(&access->hints);
}

/* Local. The hint lets Open MPI take the setting of mdp_comm_prepare that there is no shared file pointer; others do
 * not know it. */
static mdp_status make_access(const char *path, parallel_access *access) {
    MDP_TRY(mdp_fault(MDP_IO, "set up parallel access"));
    MDP_TRY(mdp_mpi_status(MPI_Info_create(&access->hints), "the making of hints"));
    MDP_TRY(
        mdp_mpi_status(MPI_Info_set(access->hints, "OMPIO_SHAREDFP_RELAXED_ORDERING", "true"), "the setting of hints"));
    access->list = H5Pcreate(H5P_FILE_ACCESS);
    if (access->list < 0 || H5Pset_libver_bounds(access->list, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0)
        return mdp_h5_error(MDP_IO, "set up", "access", path);
    return mdp_ok();
}

/* Collective on `comm`, the last step without agreement. The property list duplicates the communicator and the hints.
 */
static mdp_status open_with_all(const mdp_comm *comm, const char *path, const parallel_access *access, hid_t *file) {
    MDP_ORDER(comm);
    bool set = H5Pset_fapl_mpio(access->list, comm->world, access->hints) >= 0;
    MDP_AGREE(comm, set ? mdp_ok() : mdp_h5_error(MDP_IO, "set up", "parallel access", path));
    MDP_ORDER(comm);
    *file = H5Fopen(path, H5F_ACC_RDWR, access->list);
    return *file >= 0 ? mdp_ok() : mdp_h5_error(MDP_IO, "open", "the file for all ranks", path);
}

mdp_status mdp_h5_open_all(const mdp_comm *comm, const char *path, hid_t *file) {
    *file = -1;
    MDP_AGREE(comm, try_file(path));
    parallel_access access = {.list = -1, .hints = MPI_INFO_NULL};
    mdp_status status = mdp_agree_all(comm, make_access(path, &access));
    if (status.code == MDP_OK) status = mdp_agree_all(comm, open_with_all(comm, path, &access, file));
    free_access(&access);
    if (status.code != MDP_OK && *file >= 0) {
        /* Open here, failed elsewhere: closing is collective and would wait for ever. */
        fprintf(stderr, "moe-dist-prune: %s\n", status.text);
        MPI_Abort(comm->world, status.code);
    }
    return status;
}

mdp_status mdp_h5_close_all(const mdp_comm *comm, const char *path, hid_t file, mdp_status status) {
    MDP_ORDER(comm);
    if (H5Fclose(file) < 0 && status.code == MDP_OK) status = mdp_h5_error(MDP_IO, "close", "the file", path);
    if (status.code == MDP_OK) status = mdp_fault(MDP_IO, "close an HDF5 file");
    return mdp_agree_all(comm, status);
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
