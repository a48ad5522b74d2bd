/* The placement of tiles: every row in exactly one tile, owners in order, rounds within bounds, nodes by experts. */
#include "engine/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { N_STATE = 2, N_BLOCK = 3, N_EXPERT = 16, ROUND_ROWS = 4096 };

/* A communicator of `size` ranks, `per_node` on each node; only what placement reads. */
static mdp_comm *comm_of(int size, int per_node) {
    mdp_comm *comm = NULL;
    assert_int_equal(MDP_ALLOC(&comm, 1, "comm").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&comm->rank_node, size, "comm").code, MDP_OK);
    comm->size = size;
    for (int r = 0; r < size; r++) comm->rank_node[r] = r / per_node;
    comm->n_node = (size + per_node - 1) / per_node;
    return comm;
}

static void free_comm(mdp_comm *comm) {
    mdp_free(comm->rank_node);
    mdp_free(comm);
}

static void random_rows(uint64_t seed, int64_t most, int64_t *rows) {
    for (int i = 0; i < N_STATE * N_BLOCK * N_EXPERT; i++) {
        rows[i] = (int64_t)(mdp_random_uniform(seed, 2, (uint64_t)i) * (double)most);
        if (mdp_random_bits(seed, 3, (uint64_t)i) % 5 == 0) rows[i] = 0;
    }
}

static mdp_placement *place(const mdp_comm *comm, const int64_t *rows) {
    mdp_placement *placement = NULL;
    mdp_status status = mdp_placement_new(comm, rows, N_STATE, 4, N_BLOCK, N_EXPERT, ROUND_ROWS, &placement);
    assert_int_equal(status.code, MDP_OK);
    return placement;
}

static void every_row_is_in_one_tile_of_at_most_512(void **state) {
    (void)state;
    int64_t rows[N_STATE * N_BLOCK * N_EXPERT];
    for (uint64_t seed = 0; seed < 30; seed++) {
        mdp_comm *comm = comm_of(1 + (int)(seed % 9), 2);
        random_rows(seed, 5000, rows);
        mdp_placement *placement = place(comm, rows);
        for (int s = 0; s < N_STATE; s++) {
            for (int b = 0; b < N_BLOCK; b++) {
                for (int e = 0; e < N_EXPERT; e++) {
                    int at = (s * N_BLOCK + b) * N_EXPERT + e;
                    int64_t left = rows[at], t = placement->first_tile[at];
                    if (left == 0) assert_int_equal(t, -1);
                    for (; left > 0; t++) {
                        const mdp_tile_place *tile = &placement->tiles[t];
                        assert_int_equal(tile->expert, e);
                        assert_int_equal(tile->state, s);
                        assert_int_equal(tile->block, 4 + b);
                        assert_int_equal(tile->n_row, left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS);
                        left -= tile->n_row;
                    }
                }
            }
        }
        mdp_placement_destroy(placement);
        free_comm(comm);
    }
}

static void rounds_fill_without_overlap_and_within_bounds(void **state) {
    (void)state;
    int64_t rows[N_STATE * N_BLOCK * N_EXPERT];
    random_rows(5, 8000, rows);
    mdp_comm *comm = comm_of(3, 3);
    mdp_placement *placement = place(comm, rows);
    int32_t seen = 0;
    for (int64_t t = 0; t < placement->n_tile; t++) {
        const mdp_tile_place *tile = &placement->tiles[t], *before = t > 0 ? tile - 1 : NULL;
        assert_true(tile->position + tile->n_row <= ROUND_ROWS);
        if (before && before->owner == tile->owner && before->round == tile->round) {
            assert_int_equal(tile->position, before->position + before->n_row);
        } else {
            assert_int_equal(tile->position, 0);
            assert_int_equal(tile->round, before && before->owner == tile->owner ? before->round + 1 : 0);
        }
        if (tile->round + 1 > seen) seen = tile->round + 1;
    }
    assert_int_equal(placement->n_round, seen);
    mdp_placement_destroy(placement);
    free_comm(comm);
}

static void cost_is_even_over_ranks(void **state) {
    (void)state;
    int64_t rows[N_STATE * N_BLOCK * N_EXPERT], cost[64] = {0}, total = 0;
    random_rows(11, 40000, rows);
    rows[0] = 1500000; /* one expert gets most of it */
    mdp_comm *comm = comm_of(64, 8);
    mdp_placement *placement = place(comm, rows);
    for (int64_t t = 0; t < placement->n_tile; t++) {
        cost[placement->tiles[t].owner] += placement->tiles[t].n_row;
        total += placement->tiles[t].n_row;
    }
    for (int r = 0; r < 64; r++) assert_true((double)cost[r] <= 1.1 * (double)total / 64.0);
    mdp_placement_destroy(placement);
    free_comm(comm);
}

static void nodes_take_whole_experts_when_that_is_even(void **state) {
    (void)state;
    int64_t rows[N_STATE * N_BLOCK * N_EXPERT];
    int node_of[N_EXPERT];
    for (int i = 0; i < N_STATE * N_BLOCK * N_EXPERT; i++) rows[i] = 3000;
    for (int e = 0; e < N_EXPERT; e++) node_of[e] = -1;
    mdp_comm *comm = comm_of(8, 2);
    mdp_placement *placement = place(comm, rows);
    for (int64_t t = 0; t < placement->n_tile; t++) {
        int node = comm->rank_node[placement->tiles[t].owner];
        int *seen = &node_of[placement->tiles[t].expert];
        if (*seen < 0) *seen = node;
        assert_int_equal(*seen, node);
    }
    for (int e = 0; e < N_EXPERT; e++) assert_int_equal(node_of[e], e / 4);
    mdp_placement_destroy(placement);
    free_comm(comm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_in_one_tile_of_at_most_512),
        cmocka_unit_test(rounds_fill_without_overlap_and_within_bounds),
        cmocka_unit_test(cost_is_even_over_ranks),
        cmocka_unit_test(nodes_take_whole_experts_when_that_is_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
