/* exchange.c - the bounded exchange of rows.
 *
 * Every rank has a sequence of rows for every other. At distance 1, 2, ... a rank sends to the rank that far above it
 * and receives from the rank that far below, so that each moment loads every rank equally. A sequence travels in
 * pieces; two pieces are in flight in each direction, and their four buffers are all the memory there is.
 *
 * Exchanges are begun one after the other and travel one after the other, whenever a rank looks after them; between two
 * looks it may compute. A rank is done with one when its last piece is sent and taken; only then its next begins.
 *
 * Why it cannot lock up, as long as every rank looks again: of all pieces that are not taken yet, look at the first
 * one, by exchange, distance and place. Its sender's earlier pieces are taken, so it has a free buffer and sends; its
 * receiver's earlier pieces are taken too, so it has posted a buffer for this one, and takes it. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "comm/wait.h"

#include <inttypes.h>
#include <limits.h>

#define TAG_ROWS 72
#define MESSAGE_BYTE (INT64_C(1) << 30) /* the largest message: some MPI versions fail above 2 GiB */
#define SLOT_ALIGNMENT 64

/* Bytes from one buffer to the next. */
static int64_t slot_stride(const mdp_exchange_room *room) {
    int64_t n_byte = mdp_larger(room->slot_byte, room->row_byte);
    return (n_byte + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
}

mdp_status mdp_exchange_room_new_all(const mdp_comm *comm, int64_t n_byte, int64_t row_byte, mdp_exchange_room **out) {
    int64_t least[2] = {mdp_smaller(mdp_smaller(n_byte / (2 * MDP_EXCHANGE_SLOTS), comm->count_max), MESSAGE_BYTE),
                        -row_byte};
    *out = NULL;
    MDP_TRY(mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, least, 2, MPI_INT64_T, MPI_MIN, comm->world),
                           "the agreement on the size of messages"));
    if (-least[1] > INT_MAX)
        return MDP_ERROR(MDP_INTERNAL, "exchange of rows: rows of %" PRId64 " bytes; expected at most %d.", -least[1],
                         INT_MAX);
    mdp_exchange_room *room = NULL;
    mdp_status status = MDP_ALLOC(&room, 1, "the buffers of the exchange of rows");
    if (status.code == MDP_OK) {
        *room = (mdp_exchange_room){.slot_byte = mdp_larger(0, least[0]), .row_byte = -least[1]};
        for (int i = 0; i < 2 * MDP_EXCHANGE_SLOTS; i++) room->request[i] = MPI_REQUEST_NULL;
        status =
            MDP_ALLOC(&room->memory, 2 * MDP_EXCHANGE_SLOTS * slot_stride(room), "the buffers of the exchange of rows");
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

/* ---- pieces --------------------------------------------------------------------------------------------------- */

static char *buffer_of(const mdp_exchange_room *room, int place) {
    return room->memory + place * slot_stride(room);
}

/* Rows of a full piece, the same on every rank. */
static int64_t piece_rows(const mdp_exchange_room *room, const mdp_exchange *exchange) {
    return mdp_larger(1, room->slot_byte / mdp_larger(1, exchange->row_byte));
}

/* A rank's piece at a cursor. */
typedef struct piece {
    int peer;
    int64_t first, n; /* rows */
} piece;

/* The piece at the cursor, of the rows n_row [size] to or from the ranks that are `sign` times the distance away.
 * false: there is none any more. */
static bool find_piece(const mdp_comm *comm, int64_t piece_row, const int64_t *n_row, int sign,
                       mdp_exchange_cursor *cursor, piece *out) {
    for (; cursor->distance < comm->size; cursor->distance++, cursor->first = 0) {
        int peer = (comm->rank + sign * cursor->distance + comm->size) % comm->size;
        if (cursor->first >= n_row[peer]) continue;
        *out = (piece){.peer = peer, .first = cursor->first, .n = mdp_smaller(piece_row, n_row[peer] - cursor->first)};
        return true;
    }
    return false;
}

static void pass_piece(mdp_exchange_cursor *cursor, const piece *one) {
    cursor->first += one->n;
    cursor->n_passed++;
}

/* Local: rows of a rank for itself, through one buffer where nobody knows a shorter way. */
static void copy_own(const mdp_comm *comm, const mdp_exchange_room *room) {
    const mdp_exchange *exchange = &room->queue[room->n_done];
    int64_t n_row = exchange->n_send[comm->rank], piece_row = piece_rows(room, exchange);
    if (exchange->stay) {
        exchange->stay(exchange->context, n_row);
        return;
    }
    for (int64_t first = 0; first < n_row; first += piece_row) {
        int64_t n = mdp_smaller(piece_row, n_row - first);
        exchange->pack(exchange->context, comm->rank, first, n, buffer_of(room, 0));
        exchange->unpack(exchange->context, comm->rank, first, n, buffer_of(room, 0));
    }
}

/* The next exchange of the queue sets out; all buffers are free. */
static void set_out(const mdp_comm *comm, mdp_exchange_room *room) {
    const mdp_exchange_cursor start = {.distance = 1};
    room->sent = room->posted = room->taken = start;
    copy_own(comm, room);
}

/* The analyzer follows requests through two turns of a loop at most, and does not know that a request that is null
 * counts as done. NOLINTBEGIN(clang-analyzer-optin.mpi.MPI-Checker) */

/* Offer buffers to the pieces that come next. */
static mdp_status post_receives(const mdp_comm *comm, mdp_exchange_room *room, bool *moved) {
    const mdp_exchange *exchange = &room->queue[room->n_done];
    piece one;
    while (room->posted.n_passed < room->taken.n_passed + MDP_EXCHANGE_SLOTS &&
           find_piece(comm, piece_rows(room, exchange), exchange->n_recv, -1, &room->posted, &one)) {
        int slot = (int)(room->posted.n_passed % MDP_EXCHANGE_SLOTS);
        MDP_TRY(mdp_mpi_status(MPI_Irecv(buffer_of(room, slot), (int)(one.n * exchange->row_byte), MPI_BYTE, one.peer,
                                         TAG_ROWS, comm->world, &room->request[slot]),
                               "the receiving of rows"));
        pass_piece(&room->posted, &one);
        *moved = true;
    }
    return mdp_ok();
}

/* Take what has come, in order. */
static mdp_status take_pieces(const mdp_comm *comm, mdp_exchange_room *room, bool *moved) {
    const mdp_exchange *exchange = &room->queue[room->n_done];
    piece one;
    while (room->taken.n_passed < room->posted.n_passed &&
           find_piece(comm, piece_rows(room, exchange), exchange->n_recv, -1, &room->taken, &one)) {
        int slot = (int)(room->taken.n_passed % MDP_EXCHANGE_SLOTS), done = 0;
        MDP_TRY(mdp_mpi_status(MPI_Test(&room->request[slot], &done, MPI_STATUS_IGNORE), "the receiving of rows"));
        if (!done) break;
        exchange->unpack(exchange->context, one.peer, one.first, one.n, buffer_of(room, slot));
        pass_piece(&room->taken, &one);
        *moved = true;
        MDP_TRY(post_receives(comm, room, moved));
    }
    return mdp_ok();
}

/* Fill free buffers and send them. */
static mdp_status send_pieces(const mdp_comm *comm, mdp_exchange_room *room, bool *moved) {
    const mdp_exchange *exchange = &room->queue[room->n_done];
    piece one;
    while (find_piece(comm, piece_rows(room, exchange), exchange->n_send, 1, &room->sent, &one)) {
        int slot = MDP_EXCHANGE_SLOTS + (int)(room->sent.n_passed % MDP_EXCHANGE_SLOTS), done = 0;
        MDP_TRY(mdp_mpi_status(MPI_Test(&room->request[slot], &done, MPI_STATUS_IGNORE), "the sending of rows"));
        if (!done) break;
        exchange->pack(exchange->context, one.peer, one.first, one.n, buffer_of(room, slot));
        MDP_TRY(mdp_mpi_status(MPI_Isend(buffer_of(room, slot), (int)(one.n * exchange->row_byte), MPI_BYTE, one.peer,
                                         TAG_ROWS, comm->world, &room->request[slot]),
                               "the sending of rows"));
        pass_piece(&room->sent, &one);
        *moved = true;
    }
    return mdp_ok();
}

/* When nothing is left to send and to take: the next exchange sets out. */
static mdp_status end_exchange(const mdp_comm *comm, mdp_exchange_room *room, bool *moved) {
    const mdp_exchange *exchange = &room->queue[room->n_done];
    piece one;
    if (find_piece(comm, 1, exchange->n_send, 1, &room->sent, &one) ||
        find_piece(comm, 1, exchange->n_recv, -1, &room->taken, &one))
        return mdp_ok();
    for (int slot = MDP_EXCHANGE_SLOTS; slot < 2 * MDP_EXCHANGE_SLOTS; slot++) {
        int done = 0;
        MDP_TRY(mdp_mpi_status(MPI_Test(&room->request[slot], &done, MPI_STATUS_IGNORE), "the sending of rows"));
        if (!done) return mdp_ok();
    }
    if (++room->n_done < room->n_begun) set_out(comm, room);
    *moved = true;
    return mdp_ok();
}

/* All that can be done without waiting. */
static mdp_status move(const mdp_comm *comm, mdp_exchange_room *room) {
    for (bool moved = true; moved && room->n_done < room->n_begun;) {
        moved = false;
        MDP_TRY(post_receives(comm, room, &moved));
        MDP_TRY(send_pieces(comm, room, &moved));
        MDP_TRY(take_pieces(comm, room, &moved));
        MDP_TRY(end_exchange(comm, room, &moved));
    }
    return mdp_ok();
}

void mdp_exchange_look(const mdp_comm *comm, mdp_exchange_room *room) {
    if (room->n_done < room->n_begun && room->failed.code == MDP_OK) room->failed = move(comm, room);
}

/* Pieces and exchanges that have passed since the last finish. */
static int64_t count_passed(const mdp_exchange_room *room) {
    return room->sent.n_passed + room->taken.n_passed + room->n_done;
}

/* Until something has come or gone, or, where ranks share cores, until it is time to look. */
static mdp_status wait_for_pieces(const mdp_comm *comm, mdp_exchange_room *room, double idle) {
    int any;
    if (!comm->crowded)
        return mdp_mpi_status(MPI_Waitany(2 * MDP_EXCHANGE_SLOTS, room->request, &any, MPI_STATUS_IGNORE),
                              "the exchange of rows");
    mdp_nap(idle);
    return mdp_ok();
}

mdp_status mdp_exchange_finish_all(const mdp_comm *comm, mdp_exchange_room *room) {
    int64_t n_passed = -1;
    double idle = 0.0;
    mdp_exchange_look(comm, room);
    while (room->n_done < room->n_begun && room->failed.code == MDP_OK) {
        if (count_passed(room) != n_passed) idle = mdp_seconds();
        n_passed = count_passed(room);
        double start = mdp_seconds();
        room->failed = wait_for_pieces(comm, room, idle);
        room->waited += mdp_seconds() - start;
        mdp_exchange_look(comm, room);
    }
    room->n_begun = room->n_done = 0;
    return room->failed;
}
/* NOLINTEND(clang-analyzer-optin.mpi.MPI-Checker) */

mdp_status mdp_exchange_begin_all(const mdp_comm *comm, const mdp_exchange *exchange) {
    mdp_exchange_room *room = exchange->room;
    mdp_status status = mdp_ok();
#ifdef MDP_DEBUG_HOOKS
    status = check_counts_all(comm, exchange);
#endif
    if (status.code == MDP_OK && room->n_begun == MDP_EXCHANGE_QUEUE)
        status = MDP_ERROR(MDP_INTERNAL, "exchange of rows: more than %d at a time.", MDP_EXCHANGE_QUEUE);
    if (status.code != MDP_OK) {
        (void)mdp_exchange_finish_all(comm, room); /* nothing is to be under way when the room goes */
        return status;
    }
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) continue;
        int64_t *sent = comm->rank_node[r] == comm->node ? &room->node_byte : &room->away_byte;
        *sent += exchange->n_send[r] * exchange->row_byte;
    }
    room->queue[room->n_begun++] = *exchange;
    if (room->n_done == room->n_begun - 1) set_out(comm, room);
    mdp_exchange_look(comm, room);
    return mdp_ok();
}

mdp_status mdp_exchange_all(const mdp_comm *comm, const mdp_exchange *exchange) {
    MDP_TRY(mdp_exchange_begin_all(comm, exchange));
    return mdp_exchange_finish_all(comm, exchange->room);
}
