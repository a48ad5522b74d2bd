/* traffic.c - what ranks will send each other for a wave of tokens, counted by the rules of dispatch.c and landing.c.
 *
 * In: the placement of the wave's tiles and the views of its branches. Out: bytes of notes, token rows and outputs, on
 * a node and between nodes. Who is routed where is not known before the run: each token is given experts by lot, from
 * open groups drawn by lot where the router has groups. Where every token uses every expert nothing is left to chance,
 * and the count is the run's. */
#include "engine/traffic.h"
#include "engine/dispatch.h"

#include <string.h>

#define SEED UINT64_C(0x7472616666696300)
#define MOST_DRAWN ((int64_t)1 << 24) /* routed rows; of more, one token stands for several */

/* A place where a token's row is needed. */
typedef struct stop {
    int32_t round;
    int owner;
} stop;

typedef struct drawing {
    const mdp_traffic *of;
    mdp_rank_cost *sent;
    uint64_t n_draw;   /* random numbers so far */
    int64_t stride;    /* tokens that one stands for */
    int64_t *next;     /* [n_branch, n_block, n_expert] the next row */
    int64_t *landing;  /* [n_round, n_node] rows that land on a node, so far; NULL: none does */
    int64_t *landed;   /* [n_round, n_node] in all */
    int32_t *group;    /* [n_group] in an order that changes */
    int32_t *by_group; /* [n_group + 1] first expert of the view in each group */
    int32_t *expert;   /* [n_expert of the largest view] in an order that changes */
    int32_t *chosen;   /* [top_k] experts of the view */
    stop *stops;       /* [top_k] */
    bool counts;       /* the rows that land are known, now count bytes */
} drawing;

/* ---- lots ------------------------------------------------------------------------------------------------------ */

static int32_t draw_below(drawing *d, int32_t n) {
    return (int32_t)(mdp_random_bits(SEED, 0, d->n_draw++) % (uint64_t)n);
}

/* Bring n of the `size` items to the front, each set of them as likely as any other. */
static void draw_front(drawing *d, int32_t *items, int32_t size, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        int32_t j = i + draw_below(d, size - i), item = items[j];
        items[j] = items[i];
        items[i] = item;
    }
}

static bool is_among(const int32_t *chosen, int32_t n, int32_t expert) {
    for (int32_t i = 0; i < n; i++)
        if (chosen[i] == expert) return true;
    return false;
}

/* Experts in the open groups, which are the first of d->group. */
static int32_t count_open(const drawing *d) {
    int32_t n = 0;
    for (int32_t i = 0; i < d->of->n_open; i++) n += d->by_group[d->group[i] + 1] - d->by_group[d->group[i]];
    return n;
}

static void choose_in_groups(drawing *d, int32_t top_k, int32_t n_open) {
    for (int32_t n = 0; n < top_k;) {
        int32_t at = draw_below(d, n_open), i = 0, first = d->by_group[d->group[0]];
        while (at >= d->by_group[d->group[i] + 1] - first) {
            at -= d->by_group[d->group[i] + 1] - first;
            first = d->by_group[d->group[++i]];
        }
        if (!is_among(d->chosen, n, first + at)) d->chosen[n++] = first + at;
    }
}

/* The experts of a token, as places in the view. */
static void choose(drawing *d, const mdp_layer_view *view) {
    if (d->of->n_group > 1) {
        draw_front(d, d->group, d->of->n_group, d->of->n_open);
        int32_t n_open = count_open(d);
        if (n_open >= view->top_k) {
            choose_in_groups(d, view->top_k, n_open);
            return;
        }
    }
    draw_front(d, d->expert, view->n_expert, view->top_k);
    memcpy(d->chosen, d->expert, (size_t)view->top_k * sizeof *d->chosen);
}

static mdp_expert_t expert_of(const mdp_layer_view *view, int32_t place) {
    return view->source ? view->source[place] : place;
}

/* Begin the tokens of a branch. */
static void begin_view(drawing *d, const mdp_layer_view *view) {
    for (int32_t e = 0; e < view->n_expert; e++) d->expert[e] = e;
    for (int32_t g = 0; g < d->of->n_group; g++) d->group[g] = g;
    for (int32_t g = 0, e = 0; d->of->n_group > 1 && g <= d->of->n_group; g++) {
        while (e < view->n_expert && expert_of(view, e) < g * d->of->group_size) e++;
        d->by_group[g] = g == d->of->n_group ? view->n_expert : e;
    }
}

/* ---- counting -------------------------------------------------------------------------------------------------- */

static void send(const drawing *d, int from, int to, int64_t n_byte) {
    const mdp_comm *layout = d->of->layout;
    if (from == to) return;
    d->sent[from].bytes_sent += d->stride * n_byte;
    if (layout->rank_node[from] != layout->rank_node[to]) d->sent[from].bytes_away += d->stride * n_byte;
}

/* The tile of the next row of an expert; more rows than were foretold fall into the last. */
static const mdp_tile_place *next_tile(const drawing *d, int64_t cell) {
    int64_t row = d->next[cell], last = d->of->rows[cell] - 1;
    d->next[cell] += d->stride;
    if (row > last) row = last;
    return &d->of->placement->tiles[d->of->placement->first_tile[cell] + row / MDP_TILE_ROWS];
}

/* Rows with their notes and outputs; returns where the token itself is needed. `cells`: the first of its block. */
static int32_t send_rows(drawing *d, int branch, int home, int64_t cells) {
    int32_t n_stop = 0;
    for (int32_t i = 0; i < d->of->views[branch].top_k; i++) {
        int64_t cell = cells + mdp_roster_of(d->of->roster, branch, d->chosen[i]);
        if (d->of->rows[cell] == 0) continue;
        const mdp_tile_place *tile = next_tile(d, cell);
        int32_t s = 0;
        while (s < n_stop && (d->stops[s].owner != tile->owner || d->stops[s].round != tile->round)) s++;
        if (s == n_stop) d->stops[n_stop++] = (stop){tile->round, tile->owner};
        if (!d->counts) continue;
        send(d, home, tile->owner, sizeof(mdp_row_note));
        send(d, tile->owner, home, mdp_dispatch_row_bytes(d->of->model, 0));
        if (branch == d->of->kept) send(d, tile->owner, home, d->of->roster->largest_ff * (int64_t)sizeof(float));
    }
    return n_stop;
}

/* The rank of a node on which its row number `row` of n_row lands. */
static int landing_rank(const mdp_comm *layout, int node, int64_t row, int64_t n_row) {
    int first = layout->node_first[node], n_rank = layout->node_first[node + 1] - first;
    return layout->by_node[first + row / ((n_row + n_rank - 1) / n_rank)];
}

/* A token's row to another node, and there from where it lands to whoever needs it in that round. */
static void send_by_landing(drawing *d, int home, int32_t n_stop, int32_t first) {
    const mdp_comm *layout = d->of->layout;
    int node = layout->rank_node[d->stops[first].owner];
    int32_t round = d->stops[first].round;
    int64_t at = (int64_t)round * layout->n_node + node, row = d->landing[at];
    d->landing[at] += d->stride;
    if (!d->counts) return;
    int lands = landing_rank(layout, node, row, d->landed[at]);
    send(d, home, lands, mdp_dispatch_row_bytes(d->of->model, mdp_landing_words(layout)));
    for (int32_t i = first; i < n_stop; i++)
        if (d->stops[i].round == round && layout->rank_node[d->stops[i].owner] == node)
            send(d, lands, d->stops[i].owner, mdp_dispatch_row_bytes(d->of->model, 0));
}

/* Has an earlier stop of the same round brought the row to this node? */
static bool was_there(const drawing *d, int32_t number) {
    const int *node = d->of->layout->rank_node;
    for (int32_t i = 0; i < number; i++)
        if (d->stops[i].round == d->stops[number].round && node[d->stops[i].owner] == node[d->stops[number].owner])
            return true;
    return false;
}

static void send_token(drawing *d, int home, int32_t n_stop) {
    const mdp_comm *layout = d->of->layout;
    for (int32_t i = 0; i < n_stop; i++) {
        int owner = d->stops[i].owner;
        if (d->landing && layout->rank_node[owner] != layout->rank_node[home]) {
            if (!was_there(d, i)) send_by_landing(d, home, n_stop, i);
        } else if (d->counts) {
            send(d, home, owner, mdp_dispatch_row_bytes(d->of->model, 0));
        }
    }
}

/* ---- the wave -------------------------------------------------------------------------------------------------- */

/* Tokens of the wave in a branch that a rank has. */
static void draw_rank(drawing *d, int home, int branch, const mdp_pack *packs, int64_t n_pack) {
    const mdp_placement *placement = d->of->placement;
    const mdp_layer_view *view = &d->of->views[branch];
    for (int64_t p = 0; p < n_pack; p++) {
        int64_t block = packs[p].block - placement->first_block;
        if (block < 0 || block >= placement->n_block) continue;
        int64_t cells = (branch * placement->n_block + block) * placement->n_expert;
        for (int64_t t = 0; t < packs[p].n_token; t += d->stride) {
            choose(d, view);
            send_token(d, home, send_rows(d, branch, home, cells));
        }
    }
}

/* All tokens, in the order in which rows are numbered on a node: by rank, branch and token. */
static void draw_all(drawing *d) {
    const mdp_traffic *of = d->of;
    int64_t n_cell = of->placement->n_branch * of->placement->n_block * of->placement->n_expert;
    memset(d->next, 0, (size_t)n_cell * sizeof *d->next);
    d->n_draw = 0;
    for (int rank = 0; rank < of->layout->size; rank++) {
        int64_t first, end;
        mdp_partition_share(of->partition, of->batch, rank, of->layout->size, &first, &end);
        for (int s = 0; s < of->placement->n_branch && first < end; s++) {
            begin_view(d, &of->views[s]);
            draw_rank(d, rank, s, of->partition->packs + first, end - first);
        }
    }
}

static mdp_status draw(drawing *d) {
    const mdp_traffic *of = d->of;
    const mdp_placement *placement = of->placement;
    int64_t n_landing = (int64_t)placement->n_round * of->layout->n_node, top_k = 0, n_expert = 0, n_row = 0;
    for (int s = 0; s < placement->n_branch; s++) {
        top_k = of->views[s].top_k > top_k ? of->views[s].top_k : top_k;
        n_expert = of->views[s].n_expert > n_expert ? of->views[s].n_expert : n_expert;
    }
    for (int64_t i = 0; i < placement->n_tile; i++) n_row += placement->tiles[i].n_row;
    d->stride = 1 + n_row / MOST_DRAWN;
    MDP_TRY(MDP_ALLOC(&d->next, placement->n_branch * placement->n_block * placement->n_expert, "routes by lot"));
    MDP_TRY(MDP_ALLOC(&d->group, of->n_group, "routes by lot"));
    MDP_TRY(MDP_ALLOC(&d->by_group, of->n_group + 1, "routes by lot"));
    MDP_TRY(MDP_ALLOC(&d->expert, n_expert, "routes by lot"));
    MDP_TRY(MDP_ALLOC(&d->chosen, top_k, "routes by lot"));
    MDP_TRY(MDP_ALLOC(&d->stops, top_k, "routes by lot"));
    if (mdp_landing_words(of->layout) > 0) {
        MDP_TRY(MDP_ALLOC(&d->landing, n_landing, "routes by lot"));
        draw_all(d);
        d->landed = d->landing;
        d->landing = NULL;
        MDP_TRY(MDP_ALLOC(&d->landing, n_landing, "routes by lot"));
    }
    d->counts = true;
    draw_all(d);
    return mdp_ok();
}

mdp_status mdp_traffic_add(const mdp_traffic *traffic, mdp_rank_cost *sent) {
    drawing d = {.of = traffic, .sent = sent};
    if (traffic->layout->size == 1 || traffic->placement->n_tile == 0) return mdp_ok();
    mdp_status status = draw(&d);
    mdp_free(d.next);
    mdp_free(d.landing);
    mdp_free(d.landed);
    mdp_free(d.group);
    mdp_free(d.by_group);
    mdp_free(d.expert);
    mdp_free(d.chosen);
    mdp_free(d.stops);
    return status;
}
