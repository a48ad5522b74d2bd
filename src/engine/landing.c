/* landing.c - the way of token rows to other nodes: a row goes once to each node, however many of its ranks need it.
 *
 * The rows that a node needs from all others are numbered by (sender, branch, token) and cut into as many equal parts
 * as it has ranks: part i lands on its i-th rank, with the set of ranks that need each row. So no rank takes in more
 * than its share, which is at most a round's rows. What landed is handed on inside the node by dispatch.c. Rows arrive
 * at an owner in the order (sender, branch, token), as if each had come straight from its sender. */
#include "engine/dispatch.h"
#include "engine/norm.h"

#include <string.h>

static int largest_node(const mdp_comm *comm) {
    int largest = 0;
    for (int node = 0; node < comm->n_node; node++) {
        int n = comm->node_first[node + 1] - comm->node_first[node];
        if (n > largest) largest = n;
    }
    return largest;
}

int mdp_landing_words(const mdp_comm *comm) {
    int largest = largest_node(comm);
    return comm->n_node > 1 && largest > 1 ? (largest + 63) / 64 : 0;
}

mdp_status mdp_round_counts_new(const mdp_comm *comm, mdp_round_counts *counts) {
    int64_t size = comm->size;
    int64_t **arrays[] = {&counts->notes_out,  &counts->notes_in,     &counts->rows_out, &counts->rows_in,
                          &counts->note_first, &counts->row_first,    &counts->land_out, &counts->land_in,
                          &counts->land_first, &counts->landed_first, &counts->hand_out, &counts->hand_in,
                          &counts->hand_first, &counts->send,         &counts->recv,     &counts->kept_out,
                          &counts->kept_in};
    const size_t n_array = sizeof arrays / sizeof *arrays;
    MDP_TRY(MDP_ALLOC(&counts->memory, (int64_t)n_array * size + 2 * (int64_t)largest_node(comm), "row counts"));
    for (size_t i = 0; i < n_array; i++) *arrays[i] = counts->memory + (int64_t)i * size;
    counts->walk = counts->memory + (int64_t)n_array * size;
    return mdp_ok();
}

static mdp_node_walk walk_node(const mdp_round_context *round, int node) {
    const mdp_comm *comm = round->engine->comm;
    const int *ranks = comm->by_node + comm->node_first[node];
    mdp_node_walk walk = {
        .round = round, .node = node, .n_rank = comm->node_first[node + 1] - comm->node_first[node], .at = 0};
    walk.next = round->buffers->counts.walk;
    walk.end = walk.next + walk.n_rank;
    for (int i = 0; i < walk.n_rank; i++) {
        int64_t n;
        walk.next[i] = mdp_round_entries(round, ranks[i], &n) - round->w->entries;
        walk.end[i] = walk.next[i] + n;
    }
    return walk;
}

static bool comes_before(const mdp_route_entry *a, const mdp_route_entry *b) {
    return a->branch != b->branch ? a->branch < b->branch : a->local < b->local;
}

/* The next row and who needs it (needs [n_word]; NULL: not asked); NULL at the end. */
static const mdp_route_entry *walk_on(mdp_node_walk *walk, uint64_t *needs) {
    const mdp_route_entry *entries = walk->round->w->entries, *row = NULL;
    for (int i = 0; i < walk->n_rank; i++) {
        const mdp_route_entry *entry = &entries[walk->next[i]];
        if (walk->next[i] < walk->end[i] && (!row || comes_before(entry, row))) row = entry;
    }
    if (!row) return NULL;
    if (needs) memset(needs, 0, (size_t)walk->round->buffers->landing.n_word * sizeof *needs);
    for (int i = 0; i < walk->n_rank; i++) {
        while (walk->next[i] < walk->end[i] && mdp_same_token(&entries[walk->next[i]], row)) {
            walk->next[i]++;
            if (needs) needs[i / 64] |= UINT64_C(1) << (i % 64);
        }
    }
    walk->at++;
    return row;
}

void mdp_landing_count(const mdp_round_context *round) {
    const mdp_comm *comm = round->engine->comm;
    const mdp_wave *w = round->w;
    for (int node = 0; node < comm->n_node; node++) {
        mdp_node_walk walk = walk_node(round, node);
        while (node != comm->node && walk_on(&walk, NULL)) continue;
        w->node_row[(int64_t)round->number * comm->n_node + node] = walk.at;
        for (int i = comm->node_first[node]; i < comm->node_first[node + 1]; i++)
            mdp_wave_told(w, w->told, comm->by_node[i], round->number)[2] = walk.at;
    }
}

mdp_status mdp_landing_number_all(const mdp_engine *engine, const mdp_wave *w) {
    int64_t n = (int64_t)w->placement->n_round * engine->comm->n_node;
    memcpy(w->node_start, w->node_row, (size_t)n * sizeof *w->node_row);
    memcpy(w->node_total, w->node_row, (size_t)n * sizeof *w->node_row);
    MDP_TRY(mdp_exscan_i64_all(engine->comm, w->node_start, n));
    return mdp_sum_i64_all(engine->comm, w->node_total, n);
}

/* ---- who sends what where ---- */

typedef struct part {
    int64_t first, end; /* rows of a node */
} part;

/* Part i of n of a node's n_row rows. */
static part part_of(int64_t n_row, int n, int i) {
    int64_t length = (n_row + n - 1) / n, first = length * i;
    if (first > n_row) first = n_row;
    return (part){first, first + length < n_row ? first + length : n_row};
}

static part common(part a, part b) {
    part both = {a.first > b.first ? a.first : b.first, a.end < b.end ? a.end : b.end};
    if (both.end < both.first) both.end = both.first;
    return both;
}

/* From what each node needs: land_out, land_first, land_in, landed_first. Local. */
static void divide_rows(const mdp_round_context *round) {
    const mdp_comm *comm = round->engine->comm;
    const mdp_wave *w = round->w;
    mdp_round_counts *counts = &round->buffers->counts;
    int64_t nodes = (int64_t)round->number * comm->n_node;
    for (int node = 0; node < comm->n_node; node++) {
        int first = comm->node_first[node], n = comm->node_first[node + 1] - first;
        part own = {w->node_start[nodes + node], w->node_start[nodes + node] + w->node_row[nodes + node]};
        for (int i = 0; i < n; i++) {
            part lands = common(own, part_of(w->node_total[nodes + node], n, i));
            counts->land_out[comm->by_node[first + i]] = lands.end - lands.first;
            counts->land_first[comm->by_node[first + i]] = lands.first - own.first;
        }
    }
    part here = part_of(w->node_total[nodes + comm->node], comm->node_size, comm->node_rank);
    int64_t start = 0;
    for (int source = 0; source < comm->size; source++) {
        int64_t n = mdp_wave_told(w, w->heard, source, round->number)[2];
        part lands = common((part){start, start + n}, here);
        counts->land_in[source] = lands.end - lands.first;
        counts->landed_first[source] = lands.first - here.first;
        start += n;
    }
    round->buffers->landing.n_row = here.end - here.first;
}

/* ---- rows on their way ---- */

static void pack_landing(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    mdp_landing *landing = opaque;
    const mdp_round_context *round = landing->walk.round;
    const mdp_engine *engine = round->engine;
    mdp_node_walk *walk = &landing->walk;
    uint64_t *needs = landing->needs + round->buffers->capacity * landing->n_word;
    int64_t d = engine->model->d_model, row = round->buffers->counts.land_first[peer] + first;
    size_t set_byte = (size_t)landing->n_word * sizeof(uint64_t);
    char *to = buffer;
    if (walk->node != engine->comm->rank_node[peer] || walk->at > row)
        *walk = walk_node(round, engine->comm->rank_node[peer]);
    while (walk->at < row) (void)walk_on(walk, NULL);
    for (int64_t i = 0; i < n; i++, to += (size_t)d * sizeof(float) + set_byte) {
        const mdp_route_entry *entry = walk_on(walk, needs);
        mdp_norm_row(engine->model, round->norm, engine->branches[entry->branch].x + entry->local * d,
                     (float *)(void *)to);
        memcpy(to + (size_t)d * sizeof(float), needs, set_byte);
    }
}

static void unpack_landing(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    const mdp_landing *landing = opaque;
    const mdp_round_context *round = landing->walk.round;
    int64_t d = round->engine->model->d_model, row = round->buffers->counts.landed_first[peer] + first;
    size_t row_byte = (size_t)d * sizeof(float), set_byte = (size_t)landing->n_word * sizeof(uint64_t);
    const char *from = buffer;
    for (int64_t i = row; i < row + n; i++, from += row_byte + set_byte) {
        memcpy(landing->x + i * d, from, row_byte);
        memcpy(landing->needs + i * landing->n_word, from + row_byte, set_byte);
    }
}

/* Landed rows that each rank of this node needs. Local. */
static void count_handed(const mdp_round_context *round) {
    const mdp_comm *comm = round->engine->comm;
    const mdp_landing *landing = &round->buffers->landing;
    int64_t *hand_out = round->buffers->counts.hand_out;
    memset(hand_out, 0, (size_t)comm->size * sizeof *hand_out);
    for (int64_t row = 0; row < landing->n_row; row++) {
        const uint64_t *needs = landing->needs + row * landing->n_word;
        for (int i = 0; i < comm->node_size; i++)
            hand_out[comm->by_node[comm->node_first[comm->node] + i]] += (int64_t)(needs[i / 64] >> (i % 64) & 1);
    }
}

mdp_status mdp_landing_begin_all(const mdp_round_context *round) {
    mdp_engine *engine = round->engine;
    mdp_round_counts *counts = &round->buffers->counts;
    divide_rows(round);
    round->buffers->landing.walk = (mdp_node_walk){.round = round, .node = -1};
    const mdp_exchange exchange = {.room = engine->room,
                                   .row_byte = mdp_dispatch_row_bytes(engine->model, round->buffers->landing.n_word),
                                   .n_send = counts->land_out,
                                   .n_recv = counts->land_in,
                                   .pack = pack_landing,
                                   .unpack = unpack_landing,
                                   .context = &round->buffers->landing};
    return mdp_dispatch_begin_all(engine, &exchange);
}

static void pack_handed(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    const mdp_round_counts *counts = opaque;
    (void)first, (void)n; /* one number */
    memcpy(buffer, &counts->hand_out[peer], sizeof *counts->hand_out);
}

static void unpack_handed(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    const mdp_round_counts *counts = opaque;
    (void)first, (void)n;
    memcpy(&counts->hand_in[peer], buffer, sizeof *counts->hand_in);
}

mdp_status mdp_landing_count_handed_all(const mdp_round_context *round) {
    const mdp_comm *comm = round->engine->comm;
    mdp_round_counts *counts = &round->buffers->counts;
    const mdp_exchange exchange = {.room = round->engine->room,
                                   .row_byte = sizeof(int64_t),
                                   .n_send = counts->send,
                                   .n_recv = counts->recv,
                                   .pack = pack_handed,
                                   .unpack = unpack_handed,
                                   .context = counts};
    count_handed(round);
    for (int peer = 0; peer < comm->size; peer++)
        counts->send[peer] = counts->recv[peer] = comm->rank_node[peer] == comm->node;
    MDP_TRY(mdp_exchange_begin_all(comm, &exchange));
    MDP_TRY(mdp_dispatch_finish_all(round->engine));
    int64_t first = 0;
    for (int i = 0; i < comm->node_size; i++) {
        int rank = comm->by_node[comm->node_first[comm->node] + i];
        counts->hand_first[rank] = first;
        first += counts->hand_in[rank];
    }
    return mdp_ok();
}
