/* placement.c - which rank computes which tile.
 *
 * In: rows of every (branch, block, expert), summed over ranks. Out: the list of tiles, ascending by expert, block and
 * branch, each with its owner, the owner's round and its place in it. Every rank makes the same list. The list is cut
 * into intervals of equal cost; across nodes experts are first dealt in consecutive runs, so that a node reads only its
 * share of the layer. Placement may change freely: no result depends on it. */
#include "engine/placement.h"
#include "engine/moe.h"

/* Cost in rows, measured (doc/decisions.md): of starting a GEMM, which packs the panel for every tile, and of bringing
 * in the panels of an expert for a group of tiles. Both grow with d_model * d_ff as a row does, so they are constants.
 */
#define MDP_TILE_COST 44
#define MDP_GROUP_COST 44

/* Nodes take whole experts while the busiest rank then has at most this many hundredths of its cost otherwise. */
#define MDP_WHOLE_PERCENT 103

static mdp_status list_tiles(const int64_t *rows, mdp_placement *placement) {
    int64_t n_branch = placement->n_branch, n_block = placement->n_block, n_expert = placement->n_expert;
    int64_t n_tile = 0;
    for (int64_t i = 0; i < n_branch * n_block * n_expert; i++) n_tile += (rows[i] + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS;
    MDP_TRY(MDP_ALLOC(&placement->tiles, n_tile, "the list of tiles"));
    MDP_TRY(MDP_ALLOC(&placement->first_tile, n_branch * n_block * n_expert, "the list of tiles"));
    for (int64_t e = 0; e < n_expert; e++) {
        for (int64_t b = 0; b < n_block; b++) {
            for (int64_t s = 0; s < n_branch; s++) {
                int64_t at = (s * n_block + b) * n_expert + e;
                placement->first_tile[at] = rows[at] > 0 ? placement->n_tile : -1;
                for (int64_t first = 0; first < rows[at]; first += MDP_TILE_ROWS) {
                    int64_t left = rows[at] - first;
                    placement->tiles[placement->n_tile++] =
                        (mdp_tile_place){.expert = (mdp_expert_t)e,
                                         .branch = (int32_t)s,
                                         .block = placement->first_block + b,
                                         .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
                }
            }
        }
    }
    return mdp_ok();
}

/* What all attempts to fill the ranks share; ranks take tiles in the order of comm->by_node. */
typedef struct rank_order {
    const mdp_comm *comm;
    int64_t n_group;   /* tiles that share the panels of their expert */
    int64_t total;     /* cost of all tiles, as one rank would have it */
    int64_t n_largest; /* rows of the largest tile */
} rank_order;

static int node_at(const rank_order *order, int place) {
    return order->comm->rank_node[order->comm->by_node[place]];
}

/* Where filling stands. */
typedef struct filling {
    int place;            /* in comm->by_node */
    int64_t filled;       /* cost that its rank has */
    int64_t in_group;     /* tiles in its last group */
    int64_t node_first;   /* first tile of its node */
    int64_t expert_first; /* first tile of the expert at hand */
    int64_t left;         /* cost of the tiles that no rank has yet, as one rank would have it */
    int64_t expert_left;  /* the same before the expert at hand */
    int64_t target;       /* cost at which an even share of the rest is reached */
} filling;

static bool same_expert(const mdp_placement *placement, int64_t tile) {
    return tile > 0 && placement->tiles[tile].expert == placement->tiles[tile - 1].expert;
}

/* What a tile adds to the cost of the rank being filled. */
static int64_t tile_cost(const mdp_placement *placement, int64_t tile, const filling *f, int64_t n_group) {
    bool joins = f->filled > 0 && same_expert(placement, tile) && f->in_group < n_group;
    return placement->tiles[tile].n_row + MDP_TILE_COST + (joins ? 0 : MDP_GROUP_COST);
}

/* The last rank takes all that is left. */
static void set_target(const rank_order *order, filling *f) {
    int n = order->comm->size - f->place;
    f->target = n > 1 ? f->left / n : INT64_MAX;
}

/* Go on with the next rank; back to the first tile of the expert at hand where it begins a node and may not share it.
 * false: there is no next rank, or the expert does not fit on a node. */
static bool next_rank(const rank_order *order, filling *f, bool whole, int64_t *tile) {
    if (++f->place == order->comm->size) return false;
    f->filled = f->in_group = 0;
    if (node_at(order, f->place) != node_at(order, f->place - 1)) {
        if (whole && *tile > f->expert_first) {
            if (f->expert_first == f->node_first) return false;
            *tile = f->expert_first;
            f->left = f->expert_left;
        }
        f->node_first = *tile;
    }
    set_target(order, f);
    return true;
}

/* Fill the ranks in order with tiles of a cost of at most `bound` each. `whole`: no expert on two nodes. `even`: stop
 * at an even share of what is left rather than at the bound. false: tiles are left over. */
static bool fill(mdp_placement *placement, const rank_order *order, int64_t bound, bool whole, bool even) {
    filling f = {.left = order->total, .expert_left = order->total};
    set_target(order, &f);
    for (int64_t t = 0; t < placement->n_tile;) {
        if (!same_expert(placement, t) && f.expert_first != t) {
            f.expert_first = t;
            f.expert_left = f.left;
        }
        int64_t cost = tile_cost(placement, t, &f, order->n_group);
        if (f.filled + cost > bound || (even && f.filled > 0 && f.filled + cost / 2 > f.target)) {
            if (!next_rank(order, &f, whole, &t)) return false;
            continue;
        }
        f.in_group = cost > placement->tiles[t].n_row + MDP_TILE_COST ? 1 : f.in_group + 1;
        f.filled += cost;
        f.left -= cost;
        placement->tiles[t++].owner = order->comm->by_node[f.place];
    }
    return true;
}

/* The smallest cost of the busiest rank. */
static int64_t least_bound(mdp_placement *placement, const rank_order *order, bool whole) {
    int64_t low = order->n_largest + MDP_TILE_COST + MDP_GROUP_COST, high = order->total;
    if (low < order->total / order->comm->size) low = order->total / order->comm->size;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (fill(placement, order, middle, whole, false)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* Cost of all tiles on one rank, and the largest tile. */
static void add_costs(const mdp_placement *placement, rank_order *order) {
    filling f = {0};
    for (int64_t t = 0; t < placement->n_tile; t++) {
        int64_t cost = tile_cost(placement, t, &f, order->n_group);
        f.in_group = cost > placement->tiles[t].n_row + MDP_TILE_COST ? 1 : f.in_group + 1;
        f.filled += cost;
        if (placement->tiles[t].n_row > order->n_largest) order->n_largest = placement->tiles[t].n_row;
    }
    order->total = f.filled;
}

static void assign_owners(const mdp_comm *comm, int n_thread, mdp_placement *placement) {
    rank_order order = {.comm = comm, .n_group = mdp_group_tiles(n_thread)};
    add_costs(placement, &order);
    int64_t bound = least_bound(placement, &order, false);
    int64_t whole_bound = comm->n_node > 1 ? least_bound(placement, &order, true) : bound;
    bool whole = comm->n_node > 1 && whole_bound * 100 <= bound * MDP_WHOLE_PERCENT;
    if (whole) bound = whole_bound;
    if (!fill(placement, &order, bound, whole, true)) fill(placement, &order, bound, whole, false);
}

/* Has the tile the owner of the one before? Tiles of a rank are adjacent. */
static bool tiles_share_owner(const mdp_placement *placement, int64_t tile) {
    return placement->tiles[tile].owner == placement->tiles[tile - 1].owner;
}

/* Number the rounds of tiles first .. end-1, which one rank has and takes in order; a round holds round_rows rows. With
 * `n_even` rounds it is also full at its even share of the cost. Returns how many there are. */
static int32_t number_own(mdp_placement *placement, int64_t first, int64_t end, int32_t round_rows, int32_t n_even) {
    int64_t total = 0, done = 0;
    int32_t round = 0, filled = 0;
    for (int64_t t = first; t < end; t++) total += placement->tiles[t].n_row + MDP_TILE_COST;
    for (int64_t t = first; t < end; t++) {
        mdp_tile_place *tile = &placement->tiles[t];
        int64_t cost = tile->n_row + MDP_TILE_COST;
        bool is_even = n_even > 0 && (2 * done + cost) * n_even > 2 * total * (round + 1); /* by the tile's middle */
        if (filled > 0 && (is_even || filled + tile->n_row > round_rows)) {
            round++;
            filled = 0;
        }
        tile->round = round;
        tile->position = filled;
        filled += tile->n_row;
        done += cost;
    }
    return round + 1;
}

/* Number the rounds of all ranks, `n_even` as above where that is enough for a rank. Returns the cost of all rounds
 * when ranks wait for each other after each; worst [n_tile] is scratch. */
static int64_t number_all(mdp_placement *placement, int32_t round_rows, int32_t n_even, int64_t *worst) {
    int64_t sum = 0;
    placement->n_round = 0;
    for (int64_t first = 0, end; first < placement->n_tile; first = end) {
        for (end = first + 1; end < placement->n_tile && tiles_share_owner(placement, end);) end++;
        int32_t n = number_own(placement, first, end, round_rows, n_even);
        if (n_even > 0 && n > n_even) n = number_own(placement, first, end, round_rows, 0);
        for (; placement->n_round < n; placement->n_round++) worst[placement->n_round] = 0;
        for (int64_t t = first, cost = 0; t < end; t++) {
            const mdp_tile_place *tile = &placement->tiles[t];
            cost = (tile->position > 0 ? cost : 0) + tile->n_row + MDP_TILE_COST;
            if (cost > worst[tile->round]) worst[tile->round] = cost;
        }
    }
    for (int32_t round = 0; round < placement->n_round; round++) sum += worst[round];
    return sum;
}

/* As few rounds as the fullest rank needs, but two where others could send meanwhile. Full rounds and a short rest, or
 * as many even ones: whatever keeps ranks less waiting for each other. */
static mdp_status number_rounds(mdp_placement *placement, const mdp_comm *comm, int32_t round_rows) {
    int64_t *worst = NULL, n_row = 0;
    MDP_TRY(MDP_ALLOC(&worst, placement->n_tile, "rounds of tiles"));
    for (int64_t t = 0; t < placement->n_tile; t++) n_row += placement->tiles[t].n_row;
    int64_t full = number_all(placement, round_rows, 0, worst);
    int32_t n_even = placement->n_round;
    if (comm->size > 1 && n_row > round_rows && n_even < 2) n_even = 2;
    bool must = n_even > placement->n_round;
    if (number_all(placement, round_rows, n_even, worst) >= full && !must) number_all(placement, round_rows, 0, worst);
    mdp_free(worst);
    return mdp_ok();
}

mdp_status mdp_placement_new(const mdp_comm *comm, const int64_t *rows, int32_t n_branch, int64_t first_block,
                             int64_t n_block, int32_t n_expert, int n_thread, mdp_placement **out) {
    mdp_placement *placement = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&placement, 1, "the placement of tiles"));
    placement->n_branch = n_branch;
    placement->first_block = first_block;
    placement->n_block = n_block;
    placement->n_expert = n_expert;
    mdp_status status = list_tiles(rows, placement);
    if (status.code == MDP_OK && placement->n_tile > 0) {
        assign_owners(comm, n_thread, placement);
        status = number_rounds(placement, comm, mdp_round_rows(n_thread));
    }
    if (status.code != MDP_OK) {
        mdp_placement_destroy(placement);
        return status;
    }
    *out = placement;
    return status;
}

int64_t mdp_placement_most_rows(const mdp_comm *comm, int64_t n_row, int64_t n_cell) {
    int64_t most_tile = n_cell + n_row / MDP_TILE_ROWS, each = MDP_TILE_COST + MDP_GROUP_COST;
    if (comm->size == 1) return n_row;
    /* Each rank but the last is filled until one more tile would exceed the bound, and parting a group costs once more.
     */
    int64_t bound = (n_row + most_tile * each) / comm->size + MDP_TILE_ROWS + each + MDP_GROUP_COST;
    if (comm->n_node > 1) bound = bound * MDP_WHOLE_PERCENT / 100;
    int64_t own = bound * MDP_TILE_ROWS / (MDP_TILE_ROWS + MDP_TILE_COST) + 1; /* without the cost of full tiles */
    return own < n_row ? own : n_row;
}

void mdp_placement_destroy(mdp_placement *placement) {
    if (!placement) return;
    mdp_free(placement->tiles);
    mdp_free(placement->first_tile);
    mdp_free(placement);
}
