/* exchange.c - the bounded exchange of rows.
 *
 * Every rank has a sequence of rows for every other. At distance 1, 2, ... a rank sends to the rank that far above it
 * and receives from the rank that far below, so that each moment loads every rank equally. A sequence travels in
 * pieces; two pieces are in flight in each direction, and their four buffers are all the memory there is.
 *
 * Why it cannot lock up: a rank waits in its step i for (1) its piece i - 2 to be taken, into a buffer that the taker
 * posted before its own step i - 2 was over, and (2) piece i, which the sender sends before it waits in its own step
 * i. So the rank that is furthest behind can always go on. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "mdp/comm.h"

#include <inttypes.h>
#include <limits.h>

#define TAG_ROWS 72
#define N_SLOT 2                        /* pieces in flight in each direction */
#define MESSAGE_BYTE (INT64_C(1) << 30) /* the largest message: some MPI versions fail above 2 GiB */
#define SLOT_ALIGNMENT 64

typedef struct state {
    const mdp_comm *comm;
    const mdp_exchange *exchange;
    int64_t piece_row;  /* rows of a full piece, the same on every rank */
    MPI_Datatype row;   /* one row; MPI_DATATYPE_NULL until made */
    char *memory;       /* the buffers */
    char *send[N_SLOT]; /* [piece_row, row_byte] each */
    char *recv[N_SLOT]; /* [piece_row, row_byte] each */
    MPI_Request send_request[N_SLOT];
    MPI_Request recv_request[N_SLOT];
} state;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Rows of a full piece by this rank's own numbers; at least one, however long a row is. */
static int64_t nominal_piece(const mdp_comm *comm, const mdp_exchange *exchange) {
    int64_t n_byte = smaller(smaller(exchange->buffer_byte / (2 * N_SLOT), comm->count_max), MESSAGE_BYTE);
    return larger(1, n_byte / larger(1, exchange->row_byte));
}

/* Collective on `comm`. One piece length for all, and proof that all mean rows of the same length. */
static mdp_status agree_on_piece_all(state *s) {
    int64_t row_byte = s->exchange->row_byte;
    int64_t least[3] = {nominal_piece(s->comm, s->exchange), row_byte, -row_byte};
    MDP_TRY(mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, least, 3, MPI_INT64_T, MPI_MIN, s->comm->world),
                           "the agreement on the size of messages"));
    if (least[1] != -least[2] || least[1] < 1 || least[1] > INT_MAX)
        return MDP_ERROR(MDP_INTERNAL,
                         "exchange of rows: the ranks have rows of %" PRId64 " to %" PRId64
                         " bytes; expected one length from 1 to %d.",
                         least[1], -least[2], INT_MAX);
    s->piece_row = least[0];
    return mdp_ok();
}

/* Local: the row type, and buffers no larger than the longest sequence needs. */
static mdp_status prepare(state *s) {
    const mdp_exchange *exchange = s->exchange;
    int64_t longest = 1, slot_byte, total;
    for (int r = 0; r < s->comm->size; r++) {
        if (exchange->n_send[r] < 0 || exchange->n_recv[r] < 0)
            return MDP_ERROR(MDP_INTERNAL, "exchange of rows: a negative number of rows with rank %d.", r);
        longest = larger(longest, larger(exchange->n_send[r], exchange->n_recv[r]));
    }
    if (!mdp_multiply(smaller(longest, s->piece_row), exchange->row_byte, &slot_byte) ||
        !mdp_add(slot_byte, SLOT_ALIGNMENT - 1, &slot_byte) || !mdp_multiply(slot_byte, 2 * N_SLOT, &total))
        return MDP_ERROR(MDP_INTERNAL, "exchange of rows: buffers of %" PRId64 " rows do not fit in 64 bits.", longest);
    slot_byte -= slot_byte % SLOT_ALIGNMENT;
    MDP_TRY(MDP_ALLOC(&s->memory, 2 * N_SLOT * slot_byte, "the buffers of the exchange of rows"));
    for (int i = 0; i < N_SLOT; i++) {
        s->send[i] = s->memory + (2 * i) * slot_byte;
        s->recv[i] = s->memory + (2 * i + 1) * slot_byte;
    }
    MDP_TRY(mdp_fault(MDP_INTERNAL, "create an MPI type"));
    MDP_TRY(mdp_mpi_status(MPI_Type_contiguous((int)exchange->row_byte, MPI_BYTE, &s->row), "the type of a row"));
    return mdp_mpi_status(MPI_Type_commit(&s->row), "the type of a row");
}

#ifdef MDP_DEBUG_HOOKS
/* Collective on `comm`. Counts that do not match would be a hang: find them while it is still an error. */
static mdp_status check_counts_all(const state *s) {
    const mdp_comm *comm = s->comm;
    int64_t *announced = NULL;
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&announced, comm->size, "announced rows"));
    if (status.code != MDP_OK) { /* on another rank perhaps: this one has its piece */
        mdp_free(announced);
        return status;
    }
    status = mdp_alltoall_i64_all(comm, s->exchange->n_send, announced, 1);
    for (int r = 0; r < comm->size && status.code == MDP_OK; r++)
        if (announced[r] != s->exchange->n_recv[r])
            status = MDP_ERROR(MDP_INTERNAL,
                               "exchange of rows: rank %d sends %" PRId64 " rows to rank %d, which expects "
                               "%" PRId64 ".",
                               r, announced[r], comm->rank, s->exchange->n_recv[r]);
    mdp_free(announced);
    return mdp_agree_all(comm, status);
}
#endif

static int64_t piece_count(const state *s, int64_t n_row) {
    return n_row / s->piece_row + (n_row % s->piece_row != 0);
}

static int64_t piece_length(const state *s, int64_t piece, int64_t n_row) {
    return smaller(s->piece_row, n_row - piece * s->piece_row);
}

/* Local: rows of a rank for itself, through one buffer. */
static void copy_own(const state *s) {
    const mdp_exchange *exchange = s->exchange;
    int self = s->comm->rank;
    int64_t n_row = exchange->n_send[self];
    for (int64_t first = 0; first < n_row; first += s->piece_row) {
        int64_t n = smaller(s->piece_row, n_row - first);
        exchange->pack(exchange->context, self, first, n, s->send[0]);
        exchange->unpack(exchange->context, self, first, n, s->send[0]);
    }
}

/* The analyzer follows a request through two turns of a loop at most, and does not know that waiting for a request that
 * is null or done is defined to return at once. NOLINTBEGIN(clang-analyzer-optin.mpi.MPI-Checker) */
static mdp_status post_receive(state *s, int from, int64_t piece, int64_t n_row) {
    int slot = (int)(piece % N_SLOT);
    return mdp_mpi_status(MPI_Irecv(s->recv[slot], (int)piece_length(s, piece, n_row), s->row, from, TAG_ROWS,
                                    s->comm->world, &s->recv_request[slot]),
                          "the receiving of rows");
}

/* Wait until the buffer of the piece is free, fill it, send it. */
static mdp_status send_piece(state *s, int to, int64_t piece, int64_t n_row) {
    int slot = (int)(piece % N_SLOT);
    int64_t n = piece_length(s, piece, n_row);
    MDP_TRY(mdp_mpi_status(MPI_Wait(&s->send_request[slot], MPI_STATUS_IGNORE), "the sending of rows"));
    s->exchange->pack(s->exchange->context, to, piece * s->piece_row, n, s->send[slot]);
    return mdp_mpi_status(
        MPI_Isend(s->send[slot], (int)n, s->row, to, TAG_ROWS, s->comm->world, &s->send_request[slot]),
        "the sending of rows");
}

/* Wait for a piece, take it, and offer its buffer to the next but one. */
static mdp_status receive_piece(state *s, int from, int64_t piece, int64_t n_row) {
    int slot = (int)(piece % N_SLOT);
    MDP_TRY(mdp_mpi_status(MPI_Wait(&s->recv_request[slot], MPI_STATUS_IGNORE), "the receiving of rows"));
    s->exchange->unpack(s->exchange->context, from, piece * s->piece_row, piece_length(s, piece, n_row), s->recv[slot]);
    return piece + N_SLOT < piece_count(s, n_row) ? post_receive(s, from, piece + N_SLOT, n_row) : mdp_ok();
}

/* One distance: everything for rank `to`, everything from rank `from`. */
static mdp_status exchange_pair(state *s, int to, int from) {
    int64_t n_send = s->exchange->n_send[to], n_recv = s->exchange->n_recv[from];
    int64_t n_out = piece_count(s, n_send), n_in = piece_count(s, n_recv);
    for (int64_t piece = 0; piece < smaller(n_in, N_SLOT); piece++) MDP_TRY(post_receive(s, from, piece, n_recv));
    for (int64_t piece = 0; piece < larger(n_out, n_in); piece++) {
        if (piece < n_out) MDP_TRY(send_piece(s, to, piece, n_send));
        if (piece < n_in) MDP_TRY(receive_piece(s, from, piece, n_recv));
    }
    MPI_Status sent[N_SLOT]; /* gcc takes MPICH's MPI_STATUSES_IGNORE for an array of length 0 */
    return mdp_mpi_status(MPI_Waitall(N_SLOT, s->send_request, sent), "the sending of rows");
}

static void release(state *s) {
    if (s->row != MPI_DATATYPE_NULL) MPI_Type_free(&s->row);
    mdp_free(s->memory);
}

mdp_status mdp_exchange_all(const mdp_comm *comm, const mdp_exchange *exchange) {
    state s = {.comm = comm, .exchange = exchange, .row = MPI_DATATYPE_NULL};
    for (int i = 0; i < N_SLOT; i++) s.send_request[i] = s.recv_request[i] = MPI_REQUEST_NULL;
    MDP_TRY(agree_on_piece_all(&s));
    mdp_status status = mdp_agree_all(comm, prepare(&s));
#ifdef MDP_DEBUG_HOOKS
    if (status.code == MDP_OK) status = check_counts_all(&s);
#endif
    if (status.code != MDP_OK) {
        release(&s);
        return status;
    }
    copy_own(&s);
    for (int distance = 1; distance < comm->size; distance++) {
        int to = (comm->rank + distance) % comm->size, from = (comm->rank - distance + comm->size) % comm->size;
        /* After a failure MPI may still write to the buffers, so they are left alone; the run is over anyway. */
        MDP_TRY(exchange_pair(&s, to, from));
    }
    release(&s);
    return status;
}
/* NOLINTEND(clang-analyzer-optin.mpi.MPI-Checker) */
