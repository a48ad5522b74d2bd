/* row_product.c - rows travel to the owners of the blocks that they are part of, and are multiplied there.
 *
 * In: each rank's rows of some tokens, side by side. A rank tells all others how many it has on each side; to each
 * owner go, for the sides that it needs, the numbers of their tokens, and for the segments that it needs, those values
 * of the rows, each once. A rank's tokens are above those of lower ranks, so what comes is in the order of tokens when
 * it is laid out by rank. Own rows stay where they are. Then threads take blocks, each by itself: tokens that both
 * sides have, MDP_PRODUCT_ROWS at a time, widened to f64, multiplied and added. */
#include "mdp/row_product.h"

#include <cblas.h>
#include <omp.h>
#include <string.h>

#define PACK_BYTE (8 << 20) /* what BLAS packs of a product in f64, for each thread (measured) */
#define PANEL (MDP_PRODUCT_ROWS * MDP_PRODUCT_SEGMENT)

/* Rows of a side, of one call. */
typedef struct arrival {
    int64_t n;                /* of all ranks */
    int64_t own_first, n_own; /* of this rank: where they stand among them */
    int64_t *token;           /* [n] ascending; NULL: not needed here */
    const mdp_product_rows *own;
} arrival;

struct mdp_products {
    const mdp_comm *comm;
    const mdp_product_layout *layout;
    mdp_profile *profile;
    mdp_exchange_room *room;
    int n_set, n_thread;
    int64_t n_own, *own; /* [n_own] blocks */
    double **values;     /* [n_set, n_own] */
    int64_t *counts;     /* [2, size] rows of an exchange to and from each rank */
    int64_t *told;       /* [size, n_side] */
    int64_t *start;      /* [size + 1, n_side] rows of each side on lower ranks */
    arrival *sides;      /* [n_side] */
    int64_t *tokens;     /* room for all token lists */
    float **segments;    /* [needed here] rows that came; own ones are not among them */
    float *rows;         /* room for them */
    double *panels;      /* [n_thread, 2, PANEL] */
};

/* ---- life ------------------------------------------------------------------------------------------------------ */

static mdp_status list_own(mdp_products *p) {
    const mdp_product_layout *layout = p->layout;
    for (int64_t b = 0; b < layout->n_block; b++) p->n_own += layout->blocks[b].owner == p->comm->rank;
    MDP_TRY(MDP_ALLOC(&p->own, p->n_own, "blocks of row products"));
    MDP_TRY(MDP_ALLOC(&p->values, p->n_set * p->n_own, "blocks of row products"));
    int64_t n = 0;
    for (int64_t b = 0; b < layout->n_block; b++)
        if (layout->blocks[b].owner == p->comm->rank) p->own[n++] = b;
    for (int64_t i = 0; i < p->n_set * p->n_own; i++) {
        const mdp_product_block *block = &layout->blocks[p->own[i % p->n_own]];
        MDP_TRY(MDP_ALLOC(&p->values[i], block->n_row * block->n_col, "a block of row products"));
    }
    return mdp_ok();
}

static mdp_status new_local(mdp_products *p) {
    int64_t n_side = p->layout->n_side, size = p->comm->size;
    MDP_TRY(list_own(p));
    MDP_TRY(MDP_ALLOC(&p->counts, 2 * size, "row counts"));
    MDP_TRY(MDP_ALLOC(&p->told, size * n_side, "row counts"));
    MDP_TRY(MDP_ALLOC(&p->start, (size + 1) * n_side, "row counts"));
    MDP_TRY(MDP_ALLOC(&p->sides, n_side, "sides of row products"));
    int64_t n_need = p->layout->first_need[p->comm->rank + 1] - p->layout->first_need[p->comm->rank];
    MDP_TRY(MDP_ALLOC(&p->segments, n_need, "segments of row products"));
    return MDP_ALLOC(&p->panels, 2ll * p->n_thread * PANEL, "panels of row products");
}

mdp_status mdp_products_new_all(const mdp_comm *comm, const mdp_product_layout *layout, int n_set, int n_thread,
                                mdp_profile *profile, mdp_products **out) {
    mdp_products *p = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&p, 1, "row products");
    if (status.code == MDP_OK) {
        *p = (mdp_products){.comm = comm, .layout = layout, .profile = profile, .n_set = n_set, .n_thread = n_thread};
        status = new_local(p);
    }
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK)
        status = mdp_exchange_room_new_all(comm, MDP_SUM_MESSAGE_BYTE, MDP_PRODUCT_SEGMENT * sizeof(float), &p->room);
    if (status.code != MDP_OK) {
        mdp_products_destroy(p);
        return status;
    }
    *out = p;
    return status;
}

void mdp_products_destroy(mdp_products *p) {
    if (!p) return;
    for (int64_t i = 0; p->values && i < p->n_set * p->n_own; i++) mdp_free(p->values[i]);
    mdp_exchange_room_destroy(p->room);
    mdp_free(p->own);
    mdp_free(p->values);
    mdp_free(p->counts);
    mdp_free(p->told);
    mdp_free(p->start);
    mdp_free(p->sides);
    mdp_free(p->tokens);
    mdp_free(p->segments);
    mdp_free(p->rows);
    mdp_free(p->panels);
    mdp_free(p);
}

int64_t mdp_products_own(const mdp_products *products, const int64_t **own) {
    *own = products->own;
    return products->n_own;
}

double *mdp_products_values(mdp_products *products, int set, int64_t i) {
    return products->values[set * products->n_own + i];
}

/* ---- what comes ------------------------------------------------------------------------------------------------ */

/* Rows of a side on one rank. */
static int64_t rows_of(const mdp_products *p, int rank, int32_t side) {
    return p->start[(rank + 1) * (int64_t)p->layout->n_side + side] -
           p->start[rank * (int64_t)p->layout->n_side + side];
}

/* Where rows of a rank begin among those that came: own ones are not there. */
static int64_t place_of(const mdp_products *p, int rank, int32_t side) {
    int64_t before = p->start[rank * (int64_t)p->layout->n_side + side];
    return rank > p->comm->rank ? before - p->sides[side].n_own : before;
}

static mdp_status count_rows_all(mdp_products *p, const mdp_product_rows *rows) {
    int64_t n_side = p->layout->n_side;
    int size = p->comm->size;
    for (int64_t i = 0; i < size * n_side; i++) p->told[i] = rows[i % n_side].n;
    MDP_TRY(mdp_alltoall_i64_all(p->comm, p->told, p->start + n_side, n_side));
    for (int64_t i = n_side; i < (size + 1) * n_side; i++) p->start[i] += p->start[i - n_side];
    for (int32_t s = 0; s < n_side; s++)
        p->sides[s] = (arrival){.n = p->start[size * n_side + s],
                                .own_first = p->start[p->comm->rank * n_side + s],
                                .n_own = rows[s].n,
                                .own = &rows[s]};
    return mdp_ok();
}

/* The segments that a rank needs, and whether one is the first of its side. */
static int64_t needs_of(const mdp_products *p, int rank, const int64_t **needs) {
    *needs = p->layout->needs + p->layout->first_need[rank];
    return p->layout->first_need[rank + 1] - p->layout->first_need[rank];
}

static int32_t side_of(const mdp_products *p, int64_t segment) {
    int64_t first, n;
    return mdp_product_segment(p->layout, segment, &first, &n);
}

static bool begins_side(const mdp_products *p, const int64_t *needs, int64_t i) {
    return i == 0 || side_of(p, needs[i]) != side_of(p, needs[i - 1]);
}

static mdp_status make_room(mdp_products *p) {
    const int64_t *needs;
    int64_t n_need = needs_of(p, p->comm->rank, &needs), n_token = 0, n_value = 0, first, width;
    for (int64_t i = 0; i < n_need; i++) {
        const arrival *side = &p->sides[mdp_product_segment(p->layout, needs[i], &first, &width)];
        n_token += begins_side(p, needs, i) ? side->n : 0;
        n_value += (side->n - side->n_own) * width;
    }
    MDP_TRY(MDP_ALLOC(&p->tokens, n_token, "tokens of row products"));
    MDP_TRY(MDP_ALLOC(&p->rows, n_value, "rows of row products"));
    n_token = n_value = 0;
    for (int64_t i = 0; i < n_need; i++) {
        arrival *side = &p->sides[mdp_product_segment(p->layout, needs[i], &first, &width)];
        p->segments[i] = p->rows + n_value;
        n_value += (side->n - side->n_own) * width;
        if (!begins_side(p, needs, i)) continue;
        side->token = p->tokens + n_token;
        n_token += side->n;
        if (side->n_own > 0)
            memcpy(side->token + side->own_first, side->own->token, (size_t)side->n_own * sizeof *side->token);
    }
    return mdp_ok();
}

int64_t mdp_products_room_memory(int size, int n_thread) {
    return n_thread * (2 * PANEL * (int64_t)sizeof(double) + PACK_BYTE) + (size > 1 ? MDP_SUM_MESSAGE_BYTE : 0);
}

int64_t mdp_products_row_memory(const mdp_product_layout *layout, int rank, const int64_t *row) {
    int64_t n_byte = 0, first, width;
    int32_t before = -1;
    for (int64_t i = layout->first_need[rank]; i < layout->first_need[rank + 1]; i++) {
        int32_t side = mdp_product_segment(layout, layout->needs[i], &first, &width);
        int64_t away = layout->size > 1 ? row[side] : 0;
        n_byte += away * width * (int64_t)sizeof(float);
        if (side != before) n_byte += row[side] * (int64_t)sizeof(int64_t);
        before = side;
    }
    return n_byte;
}

static void drop_room(mdp_products *p) {
    mdp_free(p->tokens);
    mdp_free(p->rows);
    p->tokens = NULL;
    p->rows = NULL;
}

/* ---- on the way ------------------------------------------------------------------------------------------------ */

/* A walk over the rows that one rank sends to another: for each segment that the receiver needs (or for the first of
 * each side), the sender's rows. Pieces of a pair of ranks come in order. */
typedef struct row_walk {
    mdp_products *p;
    bool once_a_side; /* token numbers, not values */
    int sender, receiver;
    int64_t need, row; /* the next */
} row_walk;

/* Move on to a segment that has rows. */
static void settle(row_walk *walk, const int64_t *needs, int64_t n_need) {
    while (walk->need < n_need) {
        bool skipped = walk->once_a_side && !begins_side(walk->p, needs, walk->need);
        if (!skipped && walk->row < rows_of(walk->p, walk->sender, side_of(walk->p, needs[walk->need]))) return;
        walk->need++;
        walk->row = 0;
    }
}

static void begin_walk(row_walk *walk, int sender, int receiver, int64_t first) {
    if (first > 0) return;
    walk->sender = sender;
    walk->receiver = receiver;
    walk->need = walk->row = 0;
}

/* The next row: its segment, as the receiver counts them. */
static int64_t step(row_walk *walk, int64_t *row) {
    const int64_t *needs;
    int64_t n_need = needs_of(walk->p, walk->receiver, &needs);
    settle(walk, needs, n_need);
    *row = walk->row++;
    return walk->need;
}

/* Values of a row as they are multiplied; a 1 behind them. */
static void copy_row(const mdp_products *p, const mdp_product_rows *rows, int64_t i, int64_t segment, float *out) {
    int64_t first, n;
    const mdp_product_side *side = &p->layout->sides[mdp_product_segment(p->layout, segment, &first, &n)];
    float scale = rows->scale ? rows->scale[i] : 1.0F;
    for (int64_t j = 0; j < n; j++) out[j] = first + j < side->n_value ? rows->values[i][first + j] * scale : scale;
}

static void pack_tokens(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    row_walk *walk = context;
    const int64_t *needs;
    int64_t *out = buffer, row;
    (void)needs_of(walk->p, peer, &needs);
    begin_walk(walk, walk->p->comm->rank, peer, first);
    for (int64_t i = 0; i < n; i++) {
        int64_t need = step(walk, &row);
        out[i] = walk->p->sides[side_of(walk->p, needs[need])].own->token[row];
    }
}

static void unpack_tokens(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    row_walk *walk = (row_walk *)context + 1;
    const int64_t *needs, *in = buffer;
    int64_t row;
    (void)needs_of(walk->p, walk->p->comm->rank, &needs);
    begin_walk(walk, peer, walk->p->comm->rank, first);
    for (int64_t i = 0; i < n; i++) {
        int32_t side = side_of(walk->p, needs[step(walk, &row)]);
        walk->p->sides[side].token[walk->p->start[peer * (int64_t)walk->p->layout->n_side + side] + row] = in[i];
    }
}

static void pack_rows(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    row_walk *walk = context;
    const int64_t *needs;
    float *out = buffer;
    int64_t row;
    (void)needs_of(walk->p, peer, &needs);
    begin_walk(walk, walk->p->comm->rank, peer, first);
    for (int64_t i = 0; i < n; i++, out += MDP_PRODUCT_SEGMENT) {
        int64_t segment = needs[step(walk, &row)];
        copy_row(walk->p, walk->p->sides[side_of(walk->p, segment)].own, row, segment, out);
    }
}

static void unpack_rows(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    row_walk *walk = (row_walk *)context + 1;
    const int64_t *needs;
    const float *in = buffer;
    int64_t row, begin, width;
    (void)needs_of(walk->p, walk->p->comm->rank, &needs);
    begin_walk(walk, peer, walk->p->comm->rank, first);
    for (int64_t i = 0; i < n; i++, in += MDP_PRODUCT_SEGMENT) {
        int64_t need = step(walk, &row);
        int32_t side = mdp_product_segment(walk->p->layout, needs[need], &begin, &width);
        float *to = walk->p->segments[need] + (place_of(walk->p, peer, side) + row) * width;
        memcpy(to, in, (size_t)width * sizeof *to);
    }
}

/* Rows of `sender` that `receiver` gets. */
static int64_t count_sent(const mdp_products *p, int sender, int receiver, bool once_a_side) {
    const int64_t *needs;
    int64_t n_need = needs_of(p, receiver, &needs), n = 0;
    if (sender == receiver) return 0;
    for (int64_t i = 0; i < n_need; i++)
        if (!once_a_side || begins_side(p, needs, i)) n += rows_of(p, sender, side_of(p, needs[i]));
    return n;
}

static mdp_status send_all(mdp_products *p, bool tokens) {
    row_walk walks[2] = {{.p = p, .once_a_side = tokens}, {.p = p, .once_a_side = tokens}}; /* that go, that come */
    int size = p->comm->size;
    for (int peer = 0; peer < size; peer++) {
        p->counts[peer] = count_sent(p, p->comm->rank, peer, tokens);
        p->counts[size + peer] = count_sent(p, peer, p->comm->rank, tokens);
    }
    const mdp_exchange exchange = {.room = p->room,
                                   .row_byte = tokens ? sizeof(int64_t) : MDP_PRODUCT_SEGMENT * sizeof(float),
                                   .n_send = p->counts,
                                   .n_recv = p->counts + size,
                                   .pack = tokens ? pack_tokens : pack_rows,
                                   .unpack = tokens ? unpack_tokens : unpack_rows,
                                   .context = walks};
    return mdp_exchange_told_all(p->comm, &exchange, p->profile);
}

/* ---- products -------------------------------------------------------------------------------------------------- */

/* One side of a block, with the tokens of the product at hand. */
typedef struct half {
    const mdp_products *p;
    const arrival *side;
    const float *came; /* rows of the segment from other ranks */
    int64_t segment, width;
    int64_t next;                       /* row */
    int32_t row[MDP_PRODUCT_ROWS];      /* of the product */
    float scratch[MDP_PRODUCT_SEGMENT]; /* an own row */
} half;

static void open_half(const mdp_products *p, int64_t segment, half *out) {
    const int64_t *needs;
    int64_t n_need = needs_of(p, p->comm->rank, &needs), low = 0, first;
    while (low < n_need - 1 && needs[low] != segment) low++;
    out->p = p;
    out->side = &p->sides[mdp_product_segment(p->layout, segment, &first, &out->width)];
    out->came = p->segments[low];
    out->segment = segment;
    out->next = 0;
}

/* The next tokens that both have, MDP_PRODUCT_ROWS at most; how many. */
static int32_t next_rows(half *left, half *right) {
    int32_t n = 0;
    while (n < MDP_PRODUCT_ROWS && left->next < left->side->n && right->next < right->side->n) {
        int64_t a = left->side->token[left->next], b = right->side->token[right->next];
        if (a == b) {
            left->row[n] = (int32_t)left->next;
            right->row[n++] = (int32_t)right->next;
        }
        left->next += a <= b;
        right->next += b <= a;
    }
    return n;
}

static void widen(half *from, int32_t n, double *out) {
    const arrival *side = from->side;
    for (int32_t i = 0; i < n; i++, out += from->width) {
        int64_t at = from->row[i] - side->own_first;
        const float *row = from->scratch;
        if (at >= 0 && at < side->n_own)
            copy_row(from->p, side->own, at, from->segment, from->scratch);
        else
            row = from->came + (at < 0 ? from->row[i] : from->row[i] - side->n_own) * from->width;
        for (int64_t j = 0; j < from->width; j++) out[j] = (double)row[j];
    }
}

/* Add the products of a block; the operations that it took. */
static int64_t add_block(const mdp_products *p, const mdp_product_block *block, double *panels, double *values) {
    half left, right;
    int64_t flop = 0;
    bool square = block->left == block->right;
    int m = (int)block->n_row, n = (int)block->n_col;
    open_half(p, block->left, &left);
    open_half(p, block->right, &right);
    for (int32_t k = next_rows(&left, &right); k > 0; k = next_rows(&left, &right)) {
        widen(&left, k, panels);
        if (square) {
            cblas_dsyrk(CblasRowMajor, CblasLower, CblasTrans, m, k, 1.0, panels, m, 1.0, values, m);
            flop += (int64_t)k * m * (m + 1);
            continue;
        }
        widen(&right, k, panels + PANEL);
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1.0, panels, m, panels + PANEL, n, 1.0, values,
                    n);
        flop += 2ll * k * m * n;
    }
    return flop;
}

static void multiply(mdp_products *p, int set) {
    int64_t flop = 0;
#pragma omp parallel for schedule(dynamic) num_threads(p->n_thread)
    for (int64_t i = 0; i < p->n_own; i++) {
        double *panels = p->panels + 2 * (size_t)omp_get_thread_num() * PANEL;
        int64_t own = add_block(p, &p->layout->blocks[p->own[i]], panels, mdp_products_values(p, set, i));
#pragma omp atomic
        flop += own;
    }
    mdp_profile_flop(p->profile, flop);
}

mdp_status mdp_products_add_all(mdp_products *p, int set, const mdp_product_rows *rows) {
    MDP_TRY(count_rows_all(p, rows));
    mdp_status status = mdp_agree_all(p->comm, make_room(p));
    if (status.code == MDP_OK) status = send_all(p, true);
    if (status.code == MDP_OK) status = send_all(p, false);
    if (status.code == MDP_OK) multiply(p, set);
    drop_room(p);
    return status;
}
