/* collective.c - collectives with 64-bit counts.
 *
 * MPI 3.1 counts are int: every call here is split into pieces of at most comm->count_max elements, at the same places
 * on every rank. Only integers are reduced, so no result depends on the number of ranks or on an algorithm. A failing
 * MPI call is returned at once: after it the communicator is of no use. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "comm/wait.h"

#include <string.h>

#define TAG_GATHER 71

/* The length of the piece that begins at `first` of n elements. */
static int piece_length(const mdp_comm *comm, int64_t first, int64_t n) {
    return (int)(n - first < comm->count_max ? n - first : comm->count_max);
}

mdp_status mdp_bcast_all(const mdp_comm *comm, void *data, int64_t n_byte, int root) {
    MDP_TRY(mdp_meet_all(comm));
    for (int64_t first = 0; first < n_byte; first += comm->count_max)
        MDP_TRY(mdp_mpi_status(
            MPI_Bcast((char *)data + first, piece_length(comm, first, n_byte), MPI_BYTE, root, comm->world),
            "a broadcast"));
    return mdp_ok();
}

static mdp_status allreduce_all(const mdp_comm *comm, int64_t *data, int64_t n, MPI_Op operation) {
    MDP_TRY(mdp_meet_all(comm));
    for (int64_t first = 0; first < n; first += comm->count_max)
        MDP_TRY(mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, data + first, piece_length(comm, first, n), MPI_INT64_T,
                                             operation, comm->world),
                               "a reduction"));
    return mdp_ok();
}

mdp_status mdp_sum_i64_all(const mdp_comm *comm, int64_t *data, int64_t n) {
    return allreduce_all(comm, data, n, MPI_SUM);
}

mdp_status mdp_max_i64_all(const mdp_comm *comm, int64_t *data, int64_t n) {
    return allreduce_all(comm, data, n, MPI_MAX);
}

/* Not MPI_IN_PLACE: MPICH 4.0 reads from that address when a reduction of some length has another root than rank 0. */
mdp_status mdp_sum_i64_to_root_all(const mdp_comm *comm, int64_t *data, int64_t n, int root) {
    bool is_root = comm->rank == root;
    int length;
    MDP_TRY(mdp_meet_all(comm));
    for (int64_t first = 0; first < n; first += length) {
        length = piece_length(comm, first, n);
        if (length > MDP_COMM_SCRATCH) length = MDP_COMM_SCRATCH;
        int64_t *here = data + first;
        if (is_root) memcpy(comm->scratch, here, (size_t)length * sizeof *here);
        MDP_TRY(mdp_mpi_status(MPI_Reduce(is_root ? comm->scratch : here, is_root ? here : NULL, length, MPI_INT64_T,
                                          MPI_SUM, root, comm->world),
                               "a reduction to one rank"));
    }
    return mdp_ok();
}

mdp_status mdp_exscan_i64_all(const mdp_comm *comm, int64_t *data, int64_t n) {
    MDP_TRY(mdp_meet_all(comm));
    for (int64_t first = 0; first < n; first += comm->count_max)
        MDP_TRY(mdp_mpi_status(
            MPI_Exscan(MPI_IN_PLACE, data + first, piece_length(comm, first, n), MPI_INT64_T, MPI_SUM, comm->world),
            "a sum over lower ranks"));
    /* MPI leaves rank 0's result undefined. */
    if (comm->rank == 0 && n > 0) memset(data, 0, (size_t)n * sizeof *data);
    return mdp_ok();
}

/* Local. A type of `length` integers whose neighbours in a buffer are `stride` integers apart. */
static mdp_status strided_type(int length, int64_t stride, MPI_Datatype *out) {
    MPI_Datatype block;
    MDP_TRY(mdp_fault(MDP_INTERNAL, "create an MPI type"));
    MDP_TRY(mdp_mpi_status(MPI_Type_contiguous(length, MPI_INT64_T, &block), "the creation of a type"));
    int code = MPI_Type_create_resized(block, 0, (MPI_Aint)(stride * (int64_t)sizeof(int64_t)), out);
    MPI_Type_free(&block);
    MDP_TRY(mdp_mpi_status(code, "the creation of a type"));
    return mdp_mpi_status(MPI_Type_commit(out), "the creation of a type");
}

/* Collective on `comm`. Elements first .. first+length-1 of every rank's part at once, in place: one element of a type
 * with gaps for each rank. */
static mdp_status alltoall_piece_all(const mdp_comm *comm, const int64_t *send, int64_t *recv, int64_t n,
                                     int64_t first) {
    MPI_Datatype piece = MPI_DATATYPE_NULL;
    mdp_status status = mdp_agree_all(comm, strided_type(piece_length(comm, first, n), n, &piece));
    if (status.code == MDP_OK)
        status = mdp_mpi_status(MPI_Alltoall(send + first, 1, piece, recv + first, 1, piece, comm->world),
                                "an all-to-all exchange");
    if (piece != MPI_DATATYPE_NULL) MPI_Type_free(&piece);
    return status;
}

mdp_status mdp_alltoall_i64_all(const mdp_comm *comm, const int64_t *send, int64_t *recv, int64_t n) {
    MDP_TRY(mdp_meet_all(comm));
    if (n <= comm->count_max)
        return mdp_mpi_status(MPI_Alltoall(send, (int)n, MPI_INT64_T, recv, (int)n, MPI_INT64_T, comm->world),
                              "an all-to-all exchange");
    for (int64_t first = 0; first < n; first += comm->count_max)
        MDP_TRY(alltoall_piece_all(comm, send, recv, n, first));
    return mdp_ok();
}

/* Point to point, in pieces. */
static mdp_status send_bytes(const mdp_comm *comm, const char *data, int64_t n_byte, int to) {
    for (int64_t first = 0; first < n_byte; first += comm->count_max)
        MDP_TRY(mdp_mpi_status(
            MPI_Send(data + first, piece_length(comm, first, n_byte), MPI_BYTE, to, TAG_GATHER, comm->world),
            "a gathering of bytes"));
    return mdp_ok();
}

static mdp_status receive_bytes(const mdp_comm *comm, char *data, int64_t n_byte, int from) {
    for (int64_t first = 0; first < n_byte; first += comm->count_max)
        MDP_TRY(mdp_mpi_status(MPI_Recv(data + first, piece_length(comm, first, n_byte), MPI_BYTE, from, TAG_GATHER,
                                        comm->world, MPI_STATUS_IGNORE),
                               "a gathering of bytes"));
    return mdp_ok();
}

/* Local, at root: memory for all parts and a 0 byte. */
static mdp_status allocate_total(const int64_t *part, int size, char **out, int64_t *total) {
    *total = 0;
    int64_t with_zero;
    for (int r = 0; r < size; r++)
        if (!mdp_add(*total, part[r], total))
            return MDP_ERROR(MDP_INTERNAL, "the bytes to be gathered from %d ranks do not fit in 64 bits.", size);
    if (!mdp_add(*total, 1, &with_zero)) return MDP_ERROR(MDP_INTERNAL, "too many bytes to be gathered.");
    return MDP_ALLOC(out, with_zero, "bytes gathered from all ranks");
}

/* Collective on `comm`. `part` [size] and `all` are root's; NULL elsewhere. */
static mdp_status move_parts_all(const mdp_comm *comm, const void *data, int64_t n_byte, int root, const int64_t *part,
                                 char *all) {
    if (!all) return send_bytes(comm, data, n_byte, root);
    for (int r = 0; r < comm->size; r++) {
        if (r != root) MDP_TRY(receive_bytes(comm, all, part[r], r));
        if (r == root && n_byte > 0) memcpy(all, data, (size_t)n_byte);
        all += part[r];
    }
    return mdp_ok();
}

mdp_status mdp_gather_bytes_all(const mdp_comm *comm, const void *data, int64_t n_byte, int root, void **out,
                                int64_t *n_out) {
    *out = NULL;
    *n_out = 0;
    int64_t *part = NULL, total = 0;
    char *all = NULL;
    mdp_status status = mdp_ok();
    if (comm->rank == root) status = MDP_ALLOC(&part, comm->size, "sizes of gathered parts");
    MDP_TRY_GOTO(status, done, mdp_agree_all(comm, status));
    MDP_TRY_GOTO(status, done,
                 mdp_mpi_status(MPI_Gather(&n_byte, 1, MPI_INT64_T, part, 1, MPI_INT64_T, root, comm->world),
                                "a gathering of sizes"));
    if (comm->rank == root) status = allocate_total(part, comm->size, &all, &total);
    MDP_TRY_GOTO(status, done, mdp_agree_all(comm, status));
    MDP_TRY_GOTO(status, done, move_parts_all(comm, data, n_byte, root, part, all));
    *out = all;
    *n_out = total;
    all = NULL;
done:
    mdp_free(all);
    mdp_free(part);
    return status;
}

mdp_status mdp_bcast_text_all(const mdp_comm *comm, char **text, int64_t *n_byte, int root) {
    if (comm->rank != root) *text = NULL;
    MDP_TRY(mdp_bcast_all(comm, n_byte, sizeof *n_byte, root));
    mdp_status status = mdp_ok();
    if (comm->rank != root) status = MDP_ALLOC(text, *n_byte + 1, "a text from another rank");
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = mdp_bcast_all(comm, *text, *n_byte, root);
    if (status.code != MDP_OK && comm->rank != root) {
        mdp_free(*text);
        *text = NULL;
    }
    return status;
}
