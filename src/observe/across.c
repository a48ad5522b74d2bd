/* across.c - see across.h. */
#include "observe/across.h"

#include <string.h>

#define LEAST_COLUMNS 16384 /* of a piece */
#define MOST_COLUMNS 131072

/* One round of pieces on its way. */
typedef struct piece_round {
    mdp_across *across;
    const float *rows; /* [own experts, length] */
    int64_t length, first_piece;
} piece_round;

static int64_t own_of(const mdp_across *across, int rank) {
    return mdp_across_count(across->n_expert, rank, across->comm->size);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

int64_t mdp_across_piece(int32_t n_expert) {
    int64_t n = ((int64_t)1 << 21) / n_expert / MDP_GRAM_COLUMNS * MDP_GRAM_COLUMNS;
    return n < LEAST_COLUMNS ? LEAST_COLUMNS : n > MOST_COLUMNS ? MOST_COLUMNS : n;
}

static mdp_status take_room(mdp_across *across) {
    MDP_TRY(MDP_ALLOC(&across->piece, across->n_expert * across->n_column, "columns of experts"));
    MDP_TRY(MDP_ALLOC(&across->counts, 2 * across->comm->size, "row counts"));
    return MDP_ALLOC(&across->row, across->n_expert, "columns of experts");
}

mdp_status mdp_across_begin_all(mdp_across *across) {
    across->n_column = mdp_across_piece(across->n_expert);
    MDP_AGREE(across->comm, take_room(across));
    return mdp_exchange_room_new_all(across->comm, MDP_SUM_MESSAGE_BYTE, across->n_column * (int64_t)sizeof(float),
                                     &across->room);
}

void mdp_across_clear(mdp_across *across) {
    mdp_exchange_room_destroy(across->room);
    mdp_free(across->counts);
    mdp_free(across->row);
    mdp_free(across->piece);
}

/* ---- rounds ----------------------------------------------------------------------------------------------------- */

/* Columns of the piece of a rank in the round; 0: it has none. */
static int64_t piece_columns(const piece_round *r, int rank) {
    int64_t most = r->across->n_column, left = r->length - (r->first_piece + rank) * most;
    return left < 0 ? 0 : left < most ? left : most;
}

static void pack_piece(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    const piece_round *r = context;
    int64_t columns = piece_columns(r, peer), most = r->across->n_column;
    float *to = buffer;
    for (int64_t i = first; i < first + n; i++, to += most) {
        memcpy(to, r->rows + i * r->length + (r->first_piece + peer) * most, (size_t)columns * sizeof *to);
        memset(to + columns, 0, (size_t)(most - columns) * sizeof *to);
    }
}

static void unpack_piece(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    const piece_round *r = context;
    const float *from = buffer;
    int64_t most = r->across->n_column;
    for (int64_t i = first; i < first + n; i++, from += most)
        memcpy(r->across->piece + mdp_across_expert(peer, r->across->comm->size, i) * most, from,
               (size_t)most * sizeof *from);
}

/* Pieces of all experts to the ranks that multiply them. Collective. */
static mdp_status exchange_round_all(piece_round *r) {
    const mdp_across *across = r->across;
    const mdp_comm *comm = across->comm;
    int64_t *n_send = across->counts, *n_recv = n_send + comm->size;
    for (int q = 0; q < comm->size; q++) {
        n_send[q] = piece_columns(r, q) > 0 ? own_of(across, comm->rank) : 0;
        n_recv[q] = piece_columns(r, comm->rank) > 0 ? own_of(across, q) : 0;
    }
    const mdp_exchange exchange = {.room = across->room,
                                   .row_byte = across->n_column * (int64_t)sizeof(float),
                                   .n_send = n_send,
                                   .n_recv = n_recv,
                                   .pack = pack_piece,
                                   .unpack = unpack_piece,
                                   .context = r};
    return mdp_exchange_told_all(comm, &exchange, across->profile);
}

mdp_status mdp_across_multiply_all(mdp_across *across, const float *rows, int64_t length, const char *what,
                                   mdp_short_sum *sum) {
    piece_round r = {.across = across, .rows = rows, .length = length};
    const mdp_gram gram = {
        .n = across->n_expert, .n_thread = across->n_thread, .layer = across->layer, .what = what, .sum = sum};
    int64_t n_piece = (length + across->n_column - 1) / across->n_column;
    mdp_status status = mdp_ok();
    for (int32_t e = 0; e < gram.n; e++) across->row[e] = across->piece + e * across->n_column;
    for (; r.first_piece < n_piece; r.first_piece += across->comm->size) {
        MDP_TRY(exchange_round_all(&r));
        int64_t columns = piece_columns(&r, across->comm->rank);
        if (columns > 0 && status.code == MDP_OK)
            status = mdp_gram_add_rows(&gram, across->row, columns, &across->flop);
    }
    return mdp_agree_all(across->comm, status);
}

/* ---- what it takes ---------------------------------------------------------------------------------------------- */

int64_t mdp_across_memory(int32_t n_expert, int64_t n_own, int n_thread) {
    int64_t piece = mdp_across_piece(n_expert) * (int64_t)sizeof(float), slot = MDP_SUM_MESSAGE_BYTE / 4;
    int64_t messages = 4 * (n_own * piece < slot ? n_own * piece : slot); /* of the room, what rows fill */
    return n_expert * piece + messages + mdp_gram_memory(n_expert, n_thread);
}

void mdp_across_send(const mdp_comm *layout, int32_t n_expert, int rank, int64_t length, mdp_rank_cost *out) {
    int64_t piece = mdp_across_piece(n_expert), n_piece = (length + piece - 1) / piece, size = layout->size;
    int64_t n_own = mdp_across_count(n_expert, rank, layout->size);
    for (int q = 0; q < size; q++) {
        int64_t n_byte = n_own * ((n_piece - q + size - 1) / size) * piece * (int64_t)sizeof(float);
        if (q == rank) continue;
        out->bytes_sent += n_byte;
        if (layout->rank_node[q] != layout->rank_node[rank]) out->bytes_away += n_byte;
    }
}
