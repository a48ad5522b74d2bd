/* Attention of a team: who attends together, and that every item is dealt once, in runs as even as items allow. */
#include "engine/attention.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define MOST_MEMBERS 8
#define MOST_ITEMS 4096

static const mdp_tensor some_tensor; /* that a matrix is there */

typedef struct world {
    mdp_model model;
    mdp_attention attention;
    mdp_tokens *tokens;
    mdp_partition *partition;
    mdp_comm *layout;
    mdp_pack_group group;
} world;

static mdp_matrix matrix_of(int64_t n_row, int64_t n_col) {
    return (mdp_matrix){.tensor = &some_tensor, .n_row = n_row, .n_col = n_col};
}

/* Projections whose rows are no multiples of a panel, heads that share keys, and texts of these lengths. */
static world make_world(const int64_t *length, int64_t n, int size, int per_node) {
    world w = {.model = {.d_model = 96, .n_head = 6, .n_kv_head = 2, .head_dim = 200, .q_step = 200}};
    w.attention.q = matrix_of(1200, 96);
    w.attention.k = w.attention.v = matrix_of(400, 96);
    w.attention.o = matrix_of(96, 1200);
    assert_int_equal(MDP_ALLOC(&w.tokens, 1, "tokens").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&w.tokens->offset, n + 1, "offsets").code, MDP_OK);
    w.tokens->n_sequence = n;
    for (int64_t i = 0; i < n; i++) w.tokens->offset[i + 1] = w.tokens->offset[i] + length[i];
    w.tokens->n_token = w.tokens->offset[n];
    assert_int_equal(mdp_partition_new(w.tokens, 0, &w.partition).code, MDP_OK);
    assert_int_equal(mdp_layout_new(size, per_node, &w.layout).code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&w.group.packs, 2 * w.partition->n_pack, "packs").code, MDP_OK);
    return w;
}

static void free_world(world *w) {
    mdp_free(w->group.packs);
    mdp_layout_destroy(w->layout);
    mdp_partition_destroy(w->partition);
    mdp_free(w->tokens->offset);
    mdp_free(w->tokens);
}

/* ---- who attends together ---- */

/* On some node. A pair of tokens costs a hundredth of a token. */
static void ranks_of_a_node_attend_together_where_one_would_have_much_more(void **state) {
    (void)state;
    const struct {
        int64_t length[10];
        int n, size, per_node;
        bool together;
    } cases[] = {
        {{600}, 1, 1, 1, false},
        {{600, 600, 600}, 3, 3, 3, false},
        {{600, 600, 600}, 3, 8, 1, false}, /* alone on their nodes */
        {{600, 600, 600}, 3, 2, 2, true},  /* two and one */
        {{600, 600, 600}, 3, 4, 4, true},
        {{600, 600, 600}, 3, 8, 2, true},
        {{600, 600, 600, 600, 600, 600, 600, 600, 600, 520}, 10, 2, 2, false},
        {{4000, 600, 600, 600, 600}, 5, 2, 2, true},                           /* more tokens */
        {{6000, 600, 600, 600, 600, 600, 600, 600, 600, 600}, 10, 2, 2, true}, /* more pairs */
        {{2000, 2000, 2000, 2000, 2000, 2000}, 6, 3, 3, false},                /* equal ones */
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        world w = make_world(cases[c].length, cases[c].n, cases[c].size, cases[c].per_node);
        mdp_layer layer = {.attention = w.attention};
        bool together = false;
        w.model.layers = &layer;
        w.model.n_layer = 1;
        for (int node = 0; node < w.layout->n_node; node++) {
            const mdp_team team = mdp_team_of_node(w.layout, &w.model, w.partition, 0, node);
            together = together || mdp_team_shares(&team);
        }
        assert_int_equal(together, cases[c].together);
        free_world(&w);
    }
}

static void groups_hold_every_pack_of_every_branch_once(void **state) {
    (void)state;
    const int64_t length[] = {700, 3000, 513, 90, 600, 2000, 4000, 1500};
    world w = make_world(length, 8, 2, 2);
    const mdp_team team = mdp_team_of_node(w.layout, &w.model, w.partition, 0, 0);
    mdp_pack_group_walk walk = mdp_pack_group_begin(&team, 2);
    int64_t n = 0, n_group = 0, n_pack = w.partition->n_pack;
    while (mdp_pack_group_next(&walk, &w.group)) {
        int64_t row = 0;
        for (int64_t i = 0; i < w.group.n_pack; i++, n++) {
            const mdp_pack_group_item *item = &w.group.packs[i];
            int64_t first, end;
            assert_int_equal(item->branch, n / n_pack);
            assert_ptr_equal(item->pack, &w.partition->packs[n % n_pack]);
            mdp_team_packs(&team, item->member, &first, &end);
            assert_true(n % n_pack >= first && n % n_pack < end);
            assert_int_equal(item->first, row);
            row += item->pack->n_token;
        }
        assert_int_equal(w.group.n_row, row);
        assert_true(row <= 2 * MDP_ATTENTION_ROWS);
        n_group++;
    }
    assert_int_equal(n, 2 * n_pack);
    assert_true(n_group > 2);
    free_world(&w);
}

/* ---- items ---- */

typedef struct tally {
    int n_given[MDP_N_PROJECTION][MOST_ITEMS];
    int64_t flop[MDP_N_PROJECTION_STEP][MOST_MEMBERS], largest[MDP_N_PROJECTION_STEP];
    int last;              /* member */
    int64_t seen[6][4096]; /* queries of each head, by row of the group */
} tally;

static void tally_item(void *context, int member, int projection, int64_t item, int64_t flop) {
    tally *t = context;
    int step = mdp_projection_step[projection];
    t->n_given[projection][item]++;
    t->flop[step][member] += flop;
    if (flop > t->largest[step]) t->largest[step] = flop;
}

static void every_item_is_dealt_once_and_evenly(void **state) {
    (void)state;
    const int64_t length[] = {1700, 40, 700}; /* 4 + 2 tiles, the last ones short */
    world w = make_world(length, 3, 4, 4);
    const mdp_team team = mdp_team_of_node(w.layout, &w.model, w.partition, 0, 0);
    const int64_t n_tile = 6, n_panel[MDP_N_PROJECTION] = {[OF_Q] = 3, [OF_K] = 1, [OF_V] = 1, [OF_O] = 1};
    mdp_pack_group_walk walk = mdp_pack_group_begin(&team, 1);
    assert_true(mdp_pack_group_next(&walk, &w.group));
    assert_int_equal(w.group.n_tile, n_tile);
    for (int n_member = 1; n_member <= MOST_MEMBERS; n_member++) {
        static tally t;
        t = (tally){.last = 0};
        mdp_deal_items(&w.attention, &w.group, n_member, tally_item, &t);
        for (int i = 0; i < MDP_N_PROJECTION; i++)
            for (int64_t j = 0; j < MOST_ITEMS; j++) assert_int_equal(t.n_given[i][j], j < n_panel[i] * n_tile);
        const int64_t all[] = {0, 2 * 2440 * 96 * (1200 + 400 + 400), 2 * 2440 * 96 * 1200};
        for (int step = 0; step < MDP_N_PROJECTION_STEP; step++) {
            int64_t sum = 0;
            for (int m = 0; m < n_member; m++) {
                sum += t.flop[step][m];
                assert_true(t.flop[step][m] <= all[step] / n_member + t.largest[step]);
            }
            assert_int_equal(sum, all[step]);
        }
    }
    free_world(&w);
}

static void tally_query(void *context, int member, const mdp_query_tile *tile) {
    tally *t = context;
    assert_true(member >= t->last); /* runs */
    t->last = member;
    for (int64_t i = 0; i < tile->n_query; i++) t->seen[tile->head][tile->first + tile->query + i]++;
    t->flop[0][member] += tile->flop;
    if (tile->flop > t->largest[0]) t->largest[0] = tile->flop;
}

static void the_triangle_of_a_long_text_is_dealt_evenly(void **state) {
    (void)state;
    const int64_t length[] = {1700, 40, 700};
    world w = make_world(length, 3, 4, 4);
    const mdp_team team = mdp_team_of_node(w.layout, &w.model, w.partition, 0, 0);
    mdp_pack_group_walk walk = mdp_pack_group_begin(&team, 1);
    assert_true(mdp_pack_group_next(&walk, &w.group));
    for (int64_t window = 0; window <= 300; window += 300) {
        int64_t all = 0; /* pairs of a query and a key that tiles of 128 queries compute, from the definition */
        w.attention.window = window;
        for (int s = 0; s < 3; s++)
            for (int64_t i = 0; i < length[s]; i++) {
                int64_t first = i - i % 128, end = first + 128 < length[s] ? first + 128 : length[s];
                int64_t low = window > 0 && first - window + 1 > 0 ? first - window + 1 : 0;
                all += end - low;
            }
        for (int n_member = 1; n_member <= MOST_MEMBERS; n_member++) {
            static tally t;
            int64_t sum = 0;
            t = (tally){.last = 0};
            mdp_deal_queries(&w.model, w.tokens, &w.attention, &w.group, n_member, tally_query, &t);
            for (int head = 0; head < 6; head++)
                for (int64_t row = 0; row < 4096; row++) assert_int_equal(t.seen[head][row], row < 2440);
            for (int m = 0; m < n_member; m++) sum += t.flop[0][m];
            assert_int_equal(sum, 6 * 2 * 2 * 200 * all);
            for (int m = 0; m < n_member; m++) assert_true(t.flop[0][m] <= sum / n_member + t.largest[0]);
        }
    }
    free_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_of_a_node_attend_together_where_one_would_have_much_more),
        cmocka_unit_test(groups_hold_every_pack_of_every_branch_once),
        cmocka_unit_test(every_item_is_dealt_once_and_evenly),
        cmocka_unit_test(the_triangle_of_a_long_text_is_dealt_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
