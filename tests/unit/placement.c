/* The placement of tiles: every row in exactly one tile, owners in order, rounds within bounds, nodes by experts. */
#include "engine/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { N_STATE = 2, N_BLOCK = 3, N_EXPERT = 16, N_THREAD = 1, ROUND_ROWS = 4096 };

/* A communicator of `size` ranks, `per_node` on each node; only what placement reads. */
static mdp_comm *comm_of(int size, int per_node) {
    mdp_comm *comm = NULL;
    assert_int_equal(MDP_ALLOC(&comm, 1, "comm").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&comm->rank_node, size, "comm").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&comm->by_node, size, "comm").code, MDP_OK);
    comm->size = size;
    for (int r = 0; r < size; r++) {
        comm->rank_node[r] = r / per_node;
        comm->by_node[r] = r;
    }
    comm->n_node = (size + per_node - 1) / per_node;
    return comm;
}

static void free_comm(mdp_comm *comm) {
    mdp_free(comm->rank_node);
    mdp_free(comm->by_node);
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
    mdp_status status = mdp_placement_new(comm, rows, N_STATE, 4, N_BLOCK, N_EXPERT, N_THREAD, &placement);
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
                        assert_int_equal(tile->branch, s);
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

/* Largest over mean of what the ranks compute: FLOPs are rows times a constant of the layer. */
static double imbalance(const mdp_comm *comm, const mdp_placement *placement) {
    int64_t row[64] = {0}, total = 0, worst = 0;
    for (int64_t t = 0; t < placement->n_tile; t++) {
        row[placement->tiles[t].owner] += placement->tiles[t].n_row;
        total += placement->tiles[t].n_row;
    }
    for (int r = 0; r < comm->size; r++) worst = row[r] > worst ? row[r] : worst;
    return (double)worst * comm->size / (double)total;
}

/* The same if the ranks waited for each other after every round. */
static double imbalance_in_rounds(const mdp_comm *comm, const mdp_placement *placement) {
    int64_t *row = NULL, total = 0, sum = 0;
    assert_int_equal(MDP_ALLOC(&row, (int64_t)placement->n_round * comm->size, "rows").code, MDP_OK);
    for (int64_t t = 0; t < placement->n_tile; t++) {
        const mdp_tile_place *tile = &placement->tiles[t];
        row[tile->round * comm->size + tile->owner] += tile->n_row;
        total += tile->n_row;
    }
    for (int32_t round = 0; round < placement->n_round; round++) {
        int64_t worst = 0;
        for (int r = 0; r < comm->size; r++) {
            if (row[round * comm->size + r] > worst) worst = row[round * comm->size + r];
        }
        sum += worst;
    }
    mdp_free(row);
    return (double)sum * comm->size / (double)total;
}

/* Rows of n_token tokens in blocks: about `head` of them in expert 0, none in the last quarter of the experts, the rest
 * spread unevenly. */
static int64_t *skewed_rows(uint64_t seed, int64_t n_block, int32_t n_expert, int64_t block_rows, double head) {
    int64_t *rows = NULL;
    assert_int_equal(MDP_ALLOC(&rows, n_block * n_expert, "rows").code, MDP_OK);
    for (int64_t b = 0; b < n_block; b++) {
        double sum = 0.0, share;
        for (int e = 1; e < n_expert - n_expert / 4; e++)
            sum += 0.2 + mdp_random_uniform(seed, (uint64_t)b, (uint64_t)e);
        rows[b * n_expert] = (int64_t)(head * (double)block_rows);
        for (int e = 1; e < n_expert - n_expert / 4; e++) {
            share = (0.2 + mdp_random_uniform(seed, (uint64_t)b, (uint64_t)e)) / sum;
            rows[b * n_expert + e] = (int64_t)(share * (1.0 - head) * (double)block_rows);
        }
    }
    return rows;
}

/* A wave of P ranks has P blocks of 16,384 tokens: 64 tiles a rank with two experts a token. */
static void skewed_routing_is_even_over_ranks(void **state) {
    (void)state;
    const int size[] = {2, 4, 8, 64}, per_node[] = {2, 3, 8, 64};
    const struct { int32_t n_expert, top_k; } model[] = {{8, 2}, {16, 4}, {64, 8}, {256, 8}};
    for (int m = 0; m < 4; m++) {
        for (int i = 0; i < 16; i++) {
            mdp_comm *comm = comm_of(size[i / 4], per_node[i % 4]);
            int64_t n_block = comm->size;
            int64_t *rows = skewed_rows((uint64_t)(100 * m + i), n_block, model[m].n_expert,
                                        INT64_C(16384) * model[m].top_k, m % 2 ? 0.5 : 0.25);
            mdp_placement *placement = NULL;
            assert_int_equal(mdp_placement_new(comm, rows, 1, 0, n_block, model[m].n_expert, N_THREAD, &placement).code,
                             MDP_OK);
            assert_true(imbalance(comm, placement) <= 1.05);
            assert_true(imbalance_in_rounds(comm, placement) <= 1.1);
            mdp_placement_destroy(placement);
            mdp_free(rows);
            free_comm(comm);
        }
    }
}

/* A few thousand tokens: rounds of a rank are as even as whole tiles let them be, though one round would nearly hold
 * all of its rows. */
static void few_rows_are_even_over_rounds(void **state) {
    (void)state;
    double sum = 0.0;
    for (uint64_t seed = 0; seed < 100; seed++) {
        mdp_comm *comm = comm_of(2, 2);
        int64_t rows[8];
        for (int e = 0; e < 8; e++) rows[e] = 990 + (int64_t)(mdp_random_bits(seed, 1, (uint64_t)e) % 70);
        mdp_placement *placement = NULL;
        assert_int_equal(mdp_placement_new(comm, rows, 1, 0, 1, 8, N_THREAD, &placement).code, MDP_OK);
        assert_int_equal(placement->n_round, 2);
        sum += imbalance_in_rounds(comm, placement);
        mdp_placement_destroy(placement);
        free_comm(comm);
    }
    assert_true(sum / 100 <= 1.03);
}

/* Where a rank has few tiles, no rank has more than its share and one tile. */
static void few_tiles_are_spread_over_all_ranks(void **state) {
    (void)state;
    for (int n_tile = 1; n_tile <= 40; n_tile++) {
        int64_t rows[1] = {INT64_C(512) * n_tile};
        int n[8] = {0}, least = 40, most = 0;
        mdp_comm *comm = comm_of(8, 3);
        mdp_placement *placement = NULL;
        assert_int_equal(mdp_placement_new(comm, rows, 1, 0, 1, 1, N_THREAD, &placement).code, MDP_OK);
        for (int64_t t = 0; t < placement->n_tile; t++) n[placement->tiles[t].owner]++;
        for (int r = 0; r < 8; r++) {
            least = n[r] < least ? n[r] : least;
            most = n[r] > most ? n[r] : most;
        }
        assert_int_equal(most, (n_tile + 7) / 8);
        assert_int_equal(least, n_tile / 8);
        mdp_placement_destroy(placement);
        free_comm(comm);
    }
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

static void no_rank_has_more_rows_than_foretold(void **state) {
    (void)state;
    int64_t rows[N_STATE * N_BLOCK * N_EXPERT];
    for (uint64_t seed = 0; seed < 200; seed++) {
        mdp_comm *comm = comm_of(1 + (int)(seed % 11), 1 + (int)(seed % 4));
        random_rows(seed, seed % 3 == 0 ? 40 : 3000, rows);
        if (seed % 2 == 0) rows[seed % (N_STATE * N_BLOCK * N_EXPERT)] = 20000;
        mdp_placement *placement = place(comm, rows);
        int64_t all = 0, own[11] = {0};
        for (int64_t t = 0; t < placement->n_tile; t++) {
            own[placement->tiles[t].owner] += placement->tiles[t].n_row;
            all += placement->tiles[t].n_row;
        }
        int64_t most = mdp_placement_most_rows(comm, all, (int64_t)N_STATE * N_BLOCK * N_EXPERT);
        for (int r = 0; r < comm->size; r++) assert_true(own[r] <= most);
        assert_true(most <= all);
        mdp_placement_destroy(placement);
        free_comm(comm);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_in_one_tile_of_at_most_512),
        cmocka_unit_test(rounds_fill_without_overlap_and_within_bounds),
        cmocka_unit_test(skewed_routing_is_even_over_ranks),
        cmocka_unit_test(few_rows_are_even_over_rounds),
        cmocka_unit_test(few_tiles_are_spread_over_all_ranks),
        cmocka_unit_test(nodes_take_whole_experts_when_that_is_even),
        cmocka_unit_test(no_rank_has_more_rows_than_foretold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
