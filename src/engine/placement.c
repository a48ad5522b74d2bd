/* placement.c - which rank computes which tile.
 *
 * In: rows of every (state, block, expert), summed over ranks. Out: the list of tiles, ascending by expert, block and
 * state, each with its owner, the owner's round and its place in it. Every rank makes the same list. The list is cut
 * into intervals of equal cost; across nodes experts are first dealt in consecutive runs, so that a node reads only its
 * share of the layer. Placement may change freely: no result depends on it. */
#include "engine/engine.h"

/* Cost of a tile in rows: its rows, and what it takes to bring in an expert that the tile before did not use. */
#define MDP_SWITCH_COST 64

static mdp_status list_tiles(const int64_t *rows, mdp_placement *placement) {
    int64_t n_state = placement->n_state, n_block = placement->n_block, n_expert = placement->n_expert;
    int64_t n_tile = 0;
    for (int64_t i = 0; i < n_state * n_block * n_expert; i++) n_tile += (rows[i] + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS;
    MDP_TRY(MDP_ALLOC(&placement->tiles, n_tile, "the list of tiles"));
    MDP_TRY(MDP_ALLOC(&placement->first_tile, n_state * n_block * n_expert, "the list of tiles"));
    for (int64_t e = 0; e < n_expert; e++) {
        for (int64_t b = 0; b < n_block; b++) {
            for (int64_t s = 0; s < n_state; s++) {
                int64_t at = (s * n_block + b) * n_expert + e;
                placement->first_tile[at] = rows[at] > 0 ? placement->n_tile : -1;
                for (int64_t first = 0; first < rows[at]; first += MDP_TILE_ROWS) {
                    int64_t left = rows[at] - first;
                    placement->tiles[placement->n_tile++] =
                        (mdp_tile_place){.expert = (mdp_expert_t)e,
                                         .state = (int32_t)s,
                                         .block = placement->first_block + b,
                                         .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
                }
            }
        }
    }
    return mdp_ok();
}

static int64_t tile_cost(const mdp_placement *placement, int64_t tile) {
    bool same = tile > 0 && placement->tiles[tile].expert == placement->tiles[tile - 1].expert;
    return placement->tiles[tile].n_row + (same ? 0 : MDP_SWITCH_COST);
}

static int64_t range_cost(const mdp_placement *placement, int64_t first, int64_t end) {
    int64_t cost = 0;
    for (int64_t t = first; t < end; t++) cost += tile_cost(placement, t);
    return cost;
}

/* Give the tiles first .. end-1 to the ranks list[0..n-1], in intervals of equal cost. */
static void cut_for_ranks(mdp_placement *placement, int64_t first, int64_t end, const int *list, int n) {
    int64_t total = range_cost(placement, first, end), before = 0;
    for (int64_t t = first; t < end; t++) {
        int64_t cost = tile_cost(placement, t);
        int64_t share = (int64_t)(((double)before + 0.5 * (double)cost) / (double)total * n);
        placement->tiles[t].owner = list[share < n ? share : n - 1];
        before += cost;
    }
}

/* Fill bounds [n_node + 1] with the first tile of each node; node i gets a share of weight[i] of the cost. Whole
 * experts where `whole`, else single tiles. */
static void cut_for_nodes(const mdp_placement *placement, const int *weight, int n_node, int n_rank, bool whole,
                          int64_t *bounds) {
    int64_t total = range_cost(placement, 0, placement->n_tile), before = 0;
    int node = 0;
    double filled = (double)weight[0] / n_rank;
    bounds[0] = 0;
    for (int64_t first = 0; first < placement->n_tile;) {
        int64_t end = first + 1;
        while (whole && end < placement->n_tile && placement->tiles[end].expert == placement->tiles[first].expert) {
            end++;
        }
        int64_t cost = range_cost(placement, first, end);
        double middle = ((double)before + 0.5 * (double)cost) / (double)total;
        while (node < n_node - 1 && middle >= filled) {
            bounds[++node] = first;
            filled += (double)weight[node] / n_rank;
        }
        before += cost;
        first = end;
    }
    while (node < n_node) bounds[++node] = placement->n_tile;
}

/* Largest node's cost over its fair share. */
static double node_excess(const mdp_placement *placement, const int *weight, int n_node, int n_rank,
                          const int64_t *bounds) {
    double total = (double)range_cost(placement, 0, placement->n_tile), worst = 0.0;
    for (int node = 0; node < n_node; node++) {
        double share = (double)range_cost(placement, bounds[node], bounds[node + 1]) * n_rank / (total * weight[node]);
        if (share > worst) worst = share;
    }
    return worst;
}

static mdp_status assign_owners(const mdp_comm *comm, mdp_placement *placement) {
    int *order = NULL, *weight = NULL;
    int64_t *bounds = NULL;
    mdp_status status;
    MDP_TRY_GOTO(status, done, MDP_ALLOC(&order, comm->size, "ranks by node"));
    MDP_TRY_GOTO(status, done, MDP_ALLOC(&weight, comm->n_node, "ranks of each node"));
    MDP_TRY_GOTO(status, done, MDP_ALLOC(&bounds, comm->n_node + 1, "tiles of each node"));
    int n = 0;
    for (int node = 0; node < comm->n_node; node++) {
        for (int rank = 0; rank < comm->size; rank++) {
            if (comm->rank_node[rank] != node) continue;
            order[n++] = rank;
            weight[node]++;
        }
    }
    cut_for_nodes(placement, weight, comm->n_node, comm->size, true, bounds);
    if (node_excess(placement, weight, comm->n_node, comm->size, bounds) > 1.1) {
        cut_for_nodes(placement, weight, comm->n_node, comm->size, false, bounds);
    }
    for (int node = 0, first = 0; node < comm->n_node; first += weight[node++]) {
        cut_for_ranks(placement, bounds[node], bounds[node + 1], order + first, weight[node]);
    }
done:
    mdp_free(order);
    mdp_free(weight);
    mdp_free(bounds);
    return status;
}

/* An owner takes its tiles in order; a round is full when the next tile would not fit. Tiles of one owner are adjacent.
 */
static void number_rounds(mdp_placement *placement, int32_t round_rows) {
    int32_t round = 0, filled = 0;
    for (int64_t t = 0; t < placement->n_tile; t++) {
        mdp_tile_place *tile = &placement->tiles[t];
        if (t == 0 || tile->owner != placement->tiles[t - 1].owner) {
            round = filled = 0;
        } else if (filled + tile->n_row > round_rows) {
            round++;
            filled = 0;
        }
        tile->round = round;
        tile->position = filled;
        filled += tile->n_row;
        if (round >= placement->n_round) placement->n_round = round + 1;
    }
}

mdp_status mdp_placement_new(const mdp_comm *comm, const int64_t *rows, int32_t n_state, int64_t first_block,
                             int64_t n_block, int32_t n_expert, int32_t round_rows, mdp_placement **out) {
    mdp_placement *placement = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&placement, 1, "the placement of tiles"));
    placement->n_state = n_state;
    placement->first_block = first_block;
    placement->n_block = n_block;
    placement->n_expert = n_expert;
    mdp_status status = list_tiles(rows, placement);
    if (status.code == MDP_OK && placement->n_tile > 0) status = assign_owners(comm, placement);
    if (status.code != MDP_OK) {
        mdp_placement_destroy(placement);
        return status;
    }
    number_rounds(placement, round_rows);
    *out = placement;
    return mdp_ok();
}

void mdp_placement_destroy(mdp_placement *placement) {
    if (!placement) return;
    mdp_free(placement->tiles);
    mdp_free(placement->first_tile);
    mdp_free(placement);
}
