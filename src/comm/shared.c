/* shared.c - memory that the ranks of a node have in common.
 *
 * Owns: a communicator of each node's ranks, and one window whose bytes rank 0 of the node has made; the others look at
 * the same pages. Whether there is room is asked before, and every page is made at once, so that a node whose
 * /dev/shm is small says so here instead of dying later at the first page that is not there. What one rank writes
 * another may read after both have met. */
#include "mdp/comm.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define FOLDER "/dev/shm" /* where MPI libraries put it, if there is one */

mdp_status mdp_comm_node_all(const mdp_comm *comm, mdp_comm **out) {
    MPI_Comm node;
    *out = NULL;
    MDP_TRY(mdp_mpi_status(MPI_Comm_split(comm->world, comm->node, comm->rank, &node),
                           "the search for the ranks of a node"));
    mdp_status status = mdp_comm_new_all(node, out);
    MPI_Comm_free(&node);
    /* by its own ranks, or by those of other nodes that a setting has made of this machine */
    if (status.code == MDP_OK) (*out)->crowded = comm->crowded;
    return status;
}

/* ---- is there room? ------------------------------------------------------------------------------------------ */

static mdp_status too_small(int64_t n_byte, int64_t room) {
    char need[32], have[32];
    return MDP_ERROR(MDP_EXHAUSTED, "%s of memory that the ranks of a node share are needed, and %s has room for %s",
                     mdp_print_bytes(need, n_byte), FOLDER, mdp_print_bytes(have, room > 0 ? room : 0));
}

/* Rank 0 of the node. */
static mdp_status look_for_room(const mdp_comm *comm, int64_t n_byte) {
    struct statvfs file_system;
    if (n_byte > comm->shared_max) return too_small(n_byte, comm->shared_max);
    if (statvfs(FOLDER, &file_system) != 0) return mdp_ok();
    int64_t room = (int64_t)(file_system.f_bavail * file_system.f_frsize);
    return n_byte > room ? too_small(n_byte, room) : mdp_ok();
}

/* Make the pages of run `i` of `n` where they are not there, and show them to this process. */
static mdp_status make_pages(char *memory, int64_t n_byte, int i, int n) {
#ifdef MADV_POPULATE_WRITE
    int64_t page = sysconf(_SC_PAGESIZE), before = (int64_t)((uintptr_t)memory % (uintptr_t)page);
    int64_t n_page = (before + n_byte + page - 1) / page;
    int64_t first = n_page * i / n, end = n_page * (i + 1) / n;
    if (first == end ||
        madvise(memory - before + first * page, (size_t)((end - first) * page), MADV_POPULATE_WRITE) == 0)
        return mdp_ok();
    if (errno == EINVAL) return mdp_ok(); /* an older system: they are made as they are touched */
    char need[32];
    return MDP_ERROR(MDP_EXHAUSTED, "%s of memory that the ranks of a node share cannot be had: %s",
                     mdp_print_bytes(need, n_byte), strerror(errno));
#else
    (void)memory;
    (void)n_byte;
    (void)i;
    (void)n;
    return mdp_ok();
#endif
}

/* ---- life ---------------------------------------------------------------------------------------------------- */

/* Do the ranks of the node really see one memory? A setting may have made them one. Collective on `node`. */
static mdp_status look_for_others_all(const mdp_comm *node) {
    MPI_Comm near;
    int n_near = 0;
    MDP_TRY(mdp_mpi_status(MPI_Comm_split_type(node->world, MPI_COMM_TYPE_SHARED, node->rank, MPI_INFO_NULL, &near),
                           "the search for ranks that share memory"));
    MPI_Comm_size(near, &n_near);
    MPI_Comm_free(&near);
    if (n_near == node->size) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL, "the %d ranks that MDP_RANKS_PER_NODE makes a node have no memory in common",
                     node->size);
}

/* Collective on the node. */
static mdp_status make_window_all(mdp_shared *shared, int64_t n_byte) {
    int64_t own = shared->node->rank == 0 ? n_byte : 0;
    MPI_Aint size;
    int unit;
    char *memory = NULL;
    MDP_TRY(mdp_mpi_status(
        MPI_Win_allocate_shared((MPI_Aint)own, 1, MPI_INFO_NULL, shared->node->world, &memory, &shared->window),
        "making memory that the ranks of a node share"));
    MPI_Win_set_errhandler(shared->window, MPI_ERRORS_RETURN);
    MDP_TRY(mdp_mpi_status(MPI_Win_shared_query(shared->window, 0, &size, &unit, &memory),
                           "finding memory that the ranks of a node share"));
    MDP_TRY(mdp_mpi_status(MPI_Win_lock_all(MPI_MODE_NOCHECK, shared->window), "opening memory for all of a node"));
    shared->locked = true;
    shared->memory = memory;
    shared->n_byte = n_byte;
    return mdp_ok();
}

/* Collective on the node. */
static void free_window_all(mdp_shared *shared) {
    if (shared->locked) MPI_Win_unlock_all(shared->window);
    if (shared->window != MPI_WIN_NULL) MPI_Win_free(&shared->window);
    shared->locked = false;
    shared->memory = NULL;
    shared->n_byte = 0;
}

/* What a rank alone could lack when all of a node make the window together. */
static mdp_status look_for_means(const mdp_comm *comm, const mdp_comm *node, int64_t n_byte) {
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "share memory"));
    MDP_TRY(mdp_file_spare(2));
    MDP_TRY(mdp_memory_spare(n_byte, "the ranks of a node share"));
    return node->rank == 0 ? look_for_room(comm, n_byte) : mdp_ok();
}

/* Collective on the node. */
static mdp_status share_all(const mdp_comm *comm, mdp_shared *shared, int64_t n_byte) {
    MDP_AGREE(shared->node, look_for_means(comm, shared->node, n_byte));
    MDP_AGREE(shared->node, look_for_others_all(shared->node));
    mdp_status status = mdp_agree_all(shared->node, make_window_all(shared, n_byte));
    /* Each rank makes a part, near to it where memory has places. Then each looks at all: a page counts in equal parts
     * for those who have looked at it, so who comes first to the work would have the most for a while. */
    if (status.code == MDP_OK)
        status =
            mdp_agree_all(shared->node, make_pages(shared->memory, n_byte, shared->node->rank, shared->node->size));
    if (status.code == MDP_OK) status = mdp_agree_all(shared->node, make_pages(shared->memory, n_byte, 0, 1));
    if (status.code != MDP_OK) free_window_all(shared);
    return status;
}

mdp_status mdp_shared_new_all(const mdp_comm *comm, int64_t n_byte, mdp_shared **out, mdp_status *missing) {
    mdp_shared *shared = NULL;
    *out = NULL;
    *missing = mdp_ok();
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&shared, 1, "memory of a node"));
    if (status.code != MDP_OK) {
        mdp_free(shared);
        return status;
    }
    shared->window = MPI_WIN_NULL;
    shared->rank = comm->rank;
    status = mdp_agree_all(comm, mdp_comm_node_all(comm, &shared->node));
    if (status.code != MDP_OK || !shared->node) { /* agreed: there on every rank or on none */
        mdp_shared_destroy_all(shared);
        return status;
    }
    if (n_byte > 0) *missing = share_all(comm, shared, n_byte);
    *missing = mdp_agree_all(comm, *missing);
    *out = shared;
    return mdp_ok();
}

void mdp_shared_destroy_all(mdp_shared *shared) {
    if (!shared) return;
    free_window_all(shared);
    mdp_comm_destroy_all(shared->node);
    mdp_free(shared);
}

mdp_status mdp_shared_meet_all(const mdp_shared *shared, mdp_status local) {
    if (local.code != MDP_OK && local.rank < 0) local.rank = shared->rank;
    MPI_Win_sync(shared->window);
    mdp_status common = mdp_agree_all(shared->node, local);
    MPI_Win_sync(shared->window);
    return common;
}
