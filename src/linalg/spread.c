/* spread.c - entries of matrices from those who have them to those who are to have them, a block's side at a time. */
#include "linalg/grid.h"

#include <string.h>

typedef struct message {
    int64_t row, col;
    int32_t n, down;
    double values[MDP_GRID_BLOCK];
} message;

typedef struct sorted {
    const mdp_spread *spread;
    int64_t *order;  /* [spread->n] strips by receiver */
    int64_t *first;  /* [size + 1] into it */
    int64_t *counts; /* [2, size] */
} sorted;

int64_t mdp_spread_row_bytes(void) {
    return sizeof(message);
}

static void pack(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    const sorted *s = context;
    message *out = buffer;
    for (int64_t i = 0; i < n; i++, out++) {
        mdp_strip strip = s->spread->give(s->spread->context, s->order[s->first[peer] + first + i]);
        out->row = strip.row, out->col = strip.col;
        out->n = strip.n, out->down = strip.down;
        for (int32_t j = 0; j < strip.n; j++) out->values[j] = strip.values[j * strip.stride];
        memset(out->values + strip.n, 0, (size_t)(MDP_GRID_BLOCK - strip.n) * sizeof(double));
    }
}

static void unpack(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    const sorted *s = context;
    const message *in = buffer;
    (void)peer, (void)first;
    for (int64_t i = 0; i < n; i++, in++) {
        const mdp_strip strip = {
            .row = in->row, .col = in->col, .n = in->n, .down = in->down != 0, .values = in->values, .stride = 1};
        s->spread->take(s->spread->context, &strip);
    }
}

static void stay(void *context, int64_t n) {
    const sorted *s = context;
    for (int64_t i = 0; i < n; i++) {
        mdp_strip strip = s->spread->give(s->spread->context, s->order[s->first[s->spread->comm->rank] + i]);
        s->spread->take(s->spread->context, &strip);
    }
}

static mdp_status sort(sorted *s) {
    const mdp_spread *spread = s->spread;
    int size = spread->comm->size;
    MDP_TRY(MDP_ALLOC(&s->order, spread->n, "entries on their way"));
    MDP_TRY(MDP_ALLOC(&s->first, size + 2, "entries on their way"));
    MDP_TRY(MDP_ALLOC(&s->counts, 2 * size, "entries on their way"));
    int64_t *next = s->first + 1; /* shifted by one while counting, so that storing leaves the prefix in place */
    for (int64_t i = 0; i < spread->n; i++) next[spread->give(spread->context, i).to + 1]++;
    for (int r = 0; r < size; r++) s->counts[r] = next[r + 1];
    for (int r = 0; r < size; r++) next[r + 1] += next[r];
    for (int64_t i = 0; i < spread->n; i++) s->order[next[spread->give(spread->context, i).to]++] = i;
    return mdp_ok();
}

static mdp_status exchange_all(const sorted *s) {
    const mdp_spread *spread = s->spread;
    int size = spread->comm->size;
    MDP_TRY(mdp_alltoall_i64_all(spread->comm, s->counts, s->counts + size, 1));
    const mdp_exchange exchange = {.room = spread->room,
                                   .row_byte = sizeof(message),
                                   .n_send = s->counts,
                                   .n_recv = s->counts + size,
                                   .pack = pack,
                                   .unpack = unpack,
                                   .stay = stay,
                                   .context = (void *)(uintptr_t)s};
    return mdp_exchange_told_all(spread->comm, &exchange, spread->profile);
}

mdp_status mdp_spread_all(const mdp_spread *spread) {
    sorted s = {.spread = spread};
    mdp_status status = mdp_agree_all(spread->comm, sort(&s));
    if (status.code == MDP_OK) status = exchange_all(&s);
    mdp_free(s.order);
    mdp_free(s.first);
    mdp_free(s.counts);
    return status;
}
