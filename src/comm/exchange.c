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

/* Bytes from one buffer to the next. */
static int64_t slot_stride(const mdp_exchange_room *room) {
    int64_t n_byte = larger(room->slot_byte, room->row_byte);
    return (n_byte + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
}

mdp_status mdp_exchange_room_new_all(const mdp_comm *comm, int64_t n_byte, int64_t row_byte, mdp_exchange_room **out) {
    int64_t least[2] = {smaller(smaller(n_byte / (2 * N_SLOT), comm->count_max), MESSAGE_BYTE), -row_byte};
    *out = NULL;
    MDP_TRY(mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, least, 2, MPI_INT64_T, MPI_MIN, comm->world),
                           "the agreement on the size of messages"));
    if (-least[1] > INT_MAX)
        return MDP_ERROR(MDP_INTERNAL, "exchange of rows: rows of %" PRId64 " bytes; expected at most %d.", -least[1],
                         INT_MAX);
    mdp_exchange_room *room = NULL;
    mdp_status status = MDP_ALLOC(&room, 1, "the buffers of the exchange of rows");
    if (status.code == MDP_OK) {
        *room = (mdp_exchange_room){.slot_byte = larger(0, least[0]), .row_byte = -least[1]};
        status = MDP_ALLOC(&room->memory, 2 * N_SLOT * slot_stride(room), "the buffers of the exchange of rows");
    }
    status = mdp_agree_all(comm, status);
    if (status.code != MDP_OK) {
        mdp_exchange_room_destroy(room);
        return status;
    }
    *out = room;
    return status;
}

void mdp_exchange_room_destroy(mdp_exchange_room *room) {
    if (!room) return;
    mdp_free(room->memory);
    mdp_free(room);
}

/* Local: divide the room, and count what will be sent. */
static state begin(const mdp_comm *comm, const mdp_exchange *exchange) {
    mdp_exchange_room *room = exchange->room;
    int64_t row_byte = exchange->row_byte, stride = slot_stride(room);
    state s = {.comm = comm, .exchange = exchange, .piece_row = larger(1, room->slot_byte / larger(1, row_byte))};
    for (int i = 0; i < N_SLOT; i++) {
        s.send_request[i] = s.recv_request[i] = MPI_REQUEST_NULL;
        s.send[i] = room->memory + (2 * i) * stride;
        s.recv[i] = room->memory + (2 * i + 1) * stride;
    }
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) continue;
        int64_t *sent = comm->rank_node[r] == comm->node ? &room->node_byte : &room->away_byte;
        *sent += exchange->n_send[r] * row_byte;
    }
    return s;
}

#ifdef MDP_DEBUG_HOOKS
/* Local: what the ranks announced, {rows, length of a row} each, against what is expected. */
static mdp_status compare_announced(const mdp_comm *comm, const mdp_exchange *exchange, const int64_t *announced) {
    for (int r = 0; r < comm->size; r++) {
        if (announced[2 * r] != exchange->n_recv[r])
            return MDP_ERROR(MDP_INTERNAL,
                             "exchange of rows: rank %d sends %" PRId64 " rows to rank %d, which expects "
                             "%" PRId64 ".",
                             r, announced[2 * r], comm->rank, exchange->n_recv[r]);
        if (announced[2 * r + 1] != exchange->row_byte || exchange->row_byte > exchange->room->row_byte)
            return MDP_ERROR(MDP_INTERNAL,
                             "exchange of rows: rank %d has rows of %" PRId64 " bytes, rank %d of %" PRId64
                             ", in room for %" PRId64 ".",
                             r, announced[2 * r + 1], comm->rank, exchange->row_byte, exchange->room->row_byte);
    }
    return mdp_ok();
}

/* Collective on `comm`. Counts that do not match would be a hang: find them while it is still an error. */
static mdp_status check_counts_all(const mdp_comm *comm, const mdp_exchange *exchange) {
    int64_t *pairs = NULL;
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&pairs, 4 * comm->size, "announced rows"));
    for (int r = 0; r < comm->size && status.code == MDP_OK; r++) {
        pairs[2 * r] = exchange->n_send[r];
        pairs[2 * r + 1] = exchange->row_byte;
    }
    if (status.code == MDP_OK) {
        int64_t *announced = pairs + 2 * comm->size;
        status = mdp_alltoall_i64_all(comm, pairs, announced, 2);
        if (status.code == MDP_OK) status = compare_announced(comm, exchange, announced);
        status = mdp_agree_all(comm, status);
    }
    mdp_free(pairs);
    return status;
}
#endif

static int64_t piece_count(const state *s, int64_t n_row) {
    return n_row / s->piece_row + (n_row % s->piece_row != 0);
}

static int64_t piece_length(const state *s, int64_t piece, int64_t n_row) {
    return smaller(s->piece_row, n_row - piece * s->piece_row);
}

/* Local: rows of a rank for itself, through one buffer where nobody knows a shorter way. */
static void copy_own(const state *s) {
    const mdp_exchange *exchange = s->exchange;
    int self = s->comm->rank;
    int64_t n_row = exchange->n_send[self];
    if (exchange->stay) {
        exchange->stay(exchange->context, n_row);
        return;
    }
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
    int n_byte = (int)(piece_length(s, piece, n_row) * s->exchange->row_byte);
    return mdp_mpi_status(
        MPI_Irecv(s->recv[slot], n_byte, MPI_BYTE, from, TAG_ROWS, s->comm->world, &s->recv_request[slot]),
        "the receiving of rows");
}

/* Wait until the buffer of the piece is free, fill it, send it. */
static mdp_status send_piece(state *s, int to, int64_t piece, int64_t n_row) {
    int slot = (int)(piece % N_SLOT);
    int64_t n = piece_length(s, piece, n_row);
    MDP_TRY(mdp_mpi_status(MPI_Wait(&s->send_request[slot], MPI_STATUS_IGNORE), "the sending of rows"));
    s->exchange->pack(s->exchange->context, to, piece * s->piece_row, n, s->send[slot]);
    return mdp_mpi_status(MPI_Isend(s->send[slot], (int)(n * s->exchange->row_byte), MPI_BYTE, to, TAG_ROWS,
                                    s->comm->world, &s->send_request[slot]),
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

mdp_status mdp_exchange_all(const mdp_comm *comm, const mdp_exchange *exchange) {
#ifdef MDP_DEBUG_HOOKS
    MDP_TRY(check_counts_all(comm, exchange));
#endif
    state s = begin(comm, exchange);
    copy_own(&s);
    for (int distance = 1; distance < comm->size; distance++) {
        int to = (comm->rank + distance) % comm->size, from = (comm->rank - distance + comm->size) % comm->size;
        MDP_TRY(exchange_pair(&s, to, from));
    }
    return mdp_ok();
}
/* NOLINTEND(clang-analyzer-optin.mpi.MPI-Checker) */
