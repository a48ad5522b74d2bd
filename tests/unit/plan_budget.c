/* Budgets: which experts go, ties, minima, normalisation and what cannot be met; scores from hand-made statistics. */
#include "mdp/plan.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

enum { N_LAYER = 3, N_EXPERT = 4 };

static const int32_t top_k[N_LAYER] = {1, 1, 1};

/* A plan of 3 layers (numbers 1, 3, 5) with the scores given. */
static mdp_plan *plan_of(double scores[N_LAYER][N_EXPERT]) {
    mdp_plan *plan = NULL;
    assert_int_equal(mdp_plan_new(N_LAYER, &plan).code, MDP_OK);
    for (int i = 0; i < N_LAYER; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        layer->layer = 1 + 2 * i;
        layer->n_expert = N_EXPERT;
        assert_int_equal(MDP_ALLOC(&layer->scores, N_EXPERT, "scores").code, MDP_OK);
        memcpy(layer->scores, scores[i], sizeof scores[i]);
    }
    return plan;
}

/* Kept experts as a bit mask; checks that both lists ascend and name every expert once. */
static unsigned kept_of(const mdp_plan_layer *layer) {
    unsigned kept = 0, dropped = 0;
    for (int32_t i = 0; i < layer->n_kept; i++) {
        assert_int_equal(layer->kept[i].action, MDP_KEEP);
        assert_int_equal(layer->kept[i].n_from, 1);
        assert_true(i == 0 || layer->kept[i].from[0] > layer->kept[i - 1].from[0]);
        kept |= 1u << layer->kept[i].from[0];
    }
    for (int32_t i = 0; i < layer->n_dropped; i++) {
        assert_true(i == 0 || layer->dropped[i] > layer->dropped[i - 1]);
        dropped |= 1u << layer->dropped[i];
    }
    assert_int_equal(kept | dropped, 0xf);
    assert_int_equal(kept & dropped, 0);
    return kept;
}

/* Choose and compare with the expected masks. */
static void expect(double scores[N_LAYER][N_EXPERT], mdp_budget_options options, unsigned a, unsigned b, unsigned c) {
    mdp_plan *plan = plan_of(scores);
    mdp_status status = mdp_plan_choose(plan, top_k, &options);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    assert_int_equal(kept_of(&plan->layers[0]), a);
    assert_int_equal(kept_of(&plan->layers[1]), b);
    assert_int_equal(kept_of(&plan->layers[2]), c);
    bool even = plan->layers[0].n_kept == plan->layers[1].n_kept && plan->layers[1].n_kept == plan->layers[2].n_kept;
    assert_int_equal(plan->uniform, even);
    mdp_plan_destroy(plan);
}

static void refuse(double scores[N_LAYER][N_EXPERT], mdp_budget_options options, const char *part) {
    mdp_plan *plan = plan_of(scores);
    mdp_status status = mdp_plan_choose(plan, top_k, &options);
    assert_int_equal(status.code, MDP_USAGE);
    if (!strstr(status.text, part)) fail_msg("'%s' lacks '%s'", status.text, part);
    mdp_plan_destroy(plan);
}

static double plain[N_LAYER][N_EXPERT] = {{4, 3, 2, 1}, {10, 40, 20, 30}, {5, 5, 5, 5}};

static void uniform_keeps_the_best_of_each_layer_and_ties_drop_the_lower_expert(void **state) {
    (void)state;
    expect(plain, (mdp_budget_options){.keep = 2}, 0x3, 0xa, 0xc);
    expect(plain, (mdp_budget_options){.keep = 3}, 0x7, 0xe, 0xe);
    expect(plain, (mdp_budget_options){.keep = 4}, 0xf, 0xf, 0xf);
}

static void global_ranks_all_layers_together_and_respects_the_minimum(void **state) {
    (void)state;
    /* 6 stay: 1, 2, 3, 4 of the first layer go but one (k = 1), then ties of the last layer: experts 0, 1, 2. */
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 2}, 0x1, 0xf, 0x8);
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 2, .min_keep = 2}, 0x3, 0xa, 0xc);
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 3}, 0x1, 0xf, 0xf);
}

static void equal_scores_go_in_the_lower_layer_first(void **state) {
    (void)state;
    double equal[N_LAYER][N_EXPERT] = {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}};
    expect(equal, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 3}, 0x8, 0xf, 0xf);
}

static void scores_that_differ_beyond_30_bits_are_equal(void **state) {
    (void)state;
    double close[N_LAYER][N_EXPERT] = {{1 + 1e-12, 1, 1 - 1e-12, 2}, {1, 1 + 1e-8, 2, 3}, {1, 2, 3, 4}};
    expect(close, (mdp_budget_options){.keep = 3}, 0xe, 0xe, 0xe);
    double apart[N_LAYER][N_EXPERT] = {{1 + 1e-8, 1, 2, 2}, {1, 1 + 1e-8, 2, 3}, {1, 2, 3, 4}};
    expect(apart, (mdp_budget_options){.keep = 3}, 0xd, 0xe, 0xe);
}

static void normalised_layers_are_compared_on_one_scale(void **state) {
    (void)state;
    /* layer-sum: .4 .3 .2 .1 | .1 .4 .2 .3 | .25 x 4; six smallest: both .1, both .2, then experts 0, 1 of the last. */
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_SUM, .keep = 2}, 0x3, 0xa,
           0xc);
    /* layer-max: 1 .75 .5 .25 | .25 1 .5 .75 | 1 x 4: both .25, both .5, both .75. */
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_MAX, .keep = 2}, 0x1, 0x2,
           0xf);
    /* layer-z: +-1.34, +-.45 | the same | 0 x 4: the four negative ones, then experts 0, 1 of the last. */
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_Z, .keep = 2}, 0x3, 0xa,
           0xc);
}

static void normalisation_of_zero_layers_gives_zero_and_sums_refuse_negative_scores(void **state) {
    (void)state;
    double zero[N_LAYER][N_EXPERT] = {{0, 0, 0, 0}, {1, 2, 3, 4}, {1, 2, 3, 4}};
    expect(zero, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_SUM, .keep = 3}, 0x8, 0xf,
           0xf);
    double negative[N_LAYER][N_EXPERT] = {{1, 2, 3, 4}, {1, -2, 3, 4}, {1, 2, 3, 4}};
    refuse(negative, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_SUM, .keep = 3},
           "layer 3: expert 1");
    expect(negative, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_Z, .keep = 3}, 0xe, 0xd,
           0xe);
}

static void budgets_that_cannot_be_met_are_refused(void **state) {
    (void)state;
    refuse(plain, (mdp_budget_options){.keep = 0}, "layer 1");
    refuse(plain, (mdp_budget_options){.keep = 5}, "4");
    refuse(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 2, .min_keep = 3}, "--min-keep 3");
}

static void groups_keep_equally_many(void **state) {
    (void)state;
    /* blocks {0, 1} and {2, 3}: the best of each, though both of the best lie in one block */
    double one_sided[N_LAYER][N_EXPERT] = {{9, 8, 2, 1}, {1, 2, 8, 9}, {5, 5, 5, 5}};
    expect(one_sided, (mdp_budget_options){.keep = 2, .n_group = 2}, 0x5, 0xa, 0xa);
    expect(one_sided, (mdp_budget_options){.keep = 2}, 0x3, 0xc, 0xc);
    refuse(one_sided, (mdp_budget_options){.keep = 3, .n_group = 2}, "layer 1: 3 experts to keep are not a multiple");
    refuse(one_sided, (mdp_budget_options){.keep = 3, .n_group = 3}, "layer 1");
    refuse(one_sided, (mdp_budget_options){.keep = 2, .n_group = 2, .n_open = 1},
           "layer 1: keeping 2 experts leaves 1 to");
    expect(one_sided, (mdp_budget_options){.keep = 4, .n_group = 2, .n_open = 1}, 0xf, 0xf, 0xf);
    /* one ranking keeps 1, 4, 4 (see above); nine in all become ten */
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 3, .multiple_of = 2}, 0x3, 0xf, 0xf);
    expect(plain, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 2, .n_group = 2}, 0x5, 0xa, 0xa);
}

/* {experts, kept, multiples}: no more rounds than steps. */
static void rounds_are_no_more_than_steps(void **state) {
    (void)state;
    static const struct {
        mdp_budget budget;
        int32_t keep, unit;
        int64_t asked, want;
    } all[] = {{MDP_BUDGET_UNIFORM, 6, 0, 100, 2}, {MDP_BUDGET_UNIFORM, 6, 0, 1, 1},
               {MDP_BUDGET_UNIFORM, 8, 0, 100, 1}, {MDP_BUDGET_UNIFORM, 4, 4, 100, 1},
               {MDP_BUDGET_UNIFORM, 2, 2, 100, 3}, {MDP_BUDGET_GLOBAL, 5, 4, 100, 3},
               {MDP_BUDGET_TRAPEZOID, 5, 0, 2, 2}};
    const mdp_budget_layer layers[2] = {{0, 8, 8, 2}, {1, 8, 8, 2}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mdp_budget_options options = {.budget = all[i].budget, .keep = all[i].keep, .multiple_of = all[i].unit};
        mdp_keep_entry list[2];
        assert_int_equal(mdp_budget_rounds(layers, 2, &options, all[i].asked), all[i].want);
        /* every round but one that is the whole leaves something, and each less than the one before */
        for (int64_t r = 1, before = 8; all[i].budget == MDP_BUDGET_UNIFORM && r < all[i].want; r++) {
            mdp_budget_options of = mdp_budget_of_round(layers, 2, &options, r, all[i].want, list);
            assert_true(of.list[0].keep < before && of.list[0].keep > all[i].keep);
            before = of.list[0].keep;
        }
    }
}

static void experts_gone_before_go_again_and_count_for_nothing(void **state) {
    (void)state;
    mdp_plan *plan = plan_of(plain);
    for (int i = 0; i < N_LAYER; i++) assert_int_equal(MDP_ALLOC(&plan->layers[i].gone, N_EXPERT, "gone").code, MDP_OK);
    plan->layers[0].gone[0] = 1; /* the best of its layer */
    plan->layers[1].gone[1] = 1;
    mdp_budget_options options = {.budget = MDP_BUDGET_GLOBAL, .normalise = MDP_LAYER_MAX, .keep = 3};
    mdp_status status = mdp_plan_choose(plan, top_k, &options);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    /* beside those, one goes: layer-max of what is left is - 1 .67 .33 | .33 - .67 1 | 1 1 1 1; equal: the lower layer
     */
    assert_int_equal(kept_of(&plan->layers[0]), 0x6);
    assert_int_equal(kept_of(&plan->layers[1]), 0xd);
    assert_int_equal(kept_of(&plan->layers[2]), 0xf);
    mdp_plan_destroy(plan);
}

/* ---- from statistics ----------------------------------------------------------------------------------------- */

/* Two categories, one layer (number 7), top-1; sums of category c, expert e: (c + 1) * (10 * statistic + e). */
static mdp_stats *small_stats(void) {
    mdp_stats *stats = NULL;
    assert_int_equal(MDP_ALLOC(&stats, 1, "stats").code, MDP_OK);
    stats->n_category = 2;
    assert_int_equal(MDP_ALLOC(&stats->category, 2, "stats").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&stats->category_token, 2, "stats").code, MDP_OK);
    for (int c = 0; c < 2; c++) assert_int_equal(mdp_format(&stats->category[c], "c%d", c).code, MDP_OK);
    stats->n_layer = 1;
    stats->n_token = 100;
    assert_int_equal(MDP_ALLOC(&stats->layers, 1, "stats").code, MDP_OK);
    mdp_layer_stats *layer = stats->layers;
    *layer = (mdp_layer_stats){.layer = 7, .n_expert = N_EXPERT, .top_k = 1};
    assert_int_equal(MDP_ALLOC(&layer->counts, 2 * N_EXPERT, "stats").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&layer->sums, MDP_N_STATISTIC * 2 * N_EXPERT, "stats").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&layer->maxima, MDP_N_MAX * 2 * N_EXPERT, "stats").code, MDP_OK);
    for (int c = 0; c < 2; c++) {
        for (int e = 0; e < N_EXPERT; e++) {
            layer->counts[c * N_EXPERT + e] = e == 2 ? 0 : (c + 1) * (e + 1); /* expert 2 is never routed */
            for (int s = 0; s < MDP_N_STATISTIC && e != 2; s++)
                assert_true(mdp_exact_add(&layer->sums[(s * 2 + c) * N_EXPERT + e], (c + 1) * (10.0 * s + e)));
        }
    }
    return stats;
}

static void check_scores(const mdp_stats *stats, const char *name, const double *weight, double a, double b, double d) {
    double score[N_EXPERT] = {-1, -1, -1, -1};
    mdp_score_input input = {.stats = stats, .weight = weight, .layer = 7, .n_expert = N_EXPERT};
    const mdp_criterion *criterion = mdp_criterion_find(name);
    assert_non_null(criterion);
    assert_int_equal(criterion->score(&input, score).code, MDP_OK);
    const double expected[N_EXPERT] = {a, b, 0, d};
    for (int e = 0; e < N_EXPERT; e++) {
        if (fabs(score[e] - expected[e]) > 1e-12)
            fail_msg("%s of expert %d is %g, not %g", name, e, score[e], expected[e]);
    }
}

static void criteria_are_their_formulas(void **state) {
    (void)state;
    mdp_stats *stats = small_stats();
    const double weight[2] = {2, 0.5}; /* 2 * 1 + 0.5 * 2 = 3: the same total as unweighted */
    const double first[2] = {1, 0};
    check_scores(stats, "frequency", NULL, 3, 6, 12);
    check_scores(stats, "frequency", first, 1, 2, 4);
    check_scores(stats, "soft", NULL, 0, 3, 9);
    check_scores(stats, "ean", weight, 30, 33, 39);
    check_scores(stats, "ean-mean", NULL, 10, 33.0 / 6, 39.0 / 12);
    check_scores(stats, "weighted-ean", NULL, 60, 63, 69);
    check_scores(stats, "reap", NULL, 20, 63.0 / 6, 69.0 / 12);
    assert_null(mdp_criterion_find("reep"));
    mdp_stats_destroy(stats);
}

static void random_scores_differ_by_seed_and_layer_only(void **state) {
    (void)state;
    const mdp_criterion *criterion = mdp_criterion_find("random");
    assert_false(criterion->needs_stats);
    double score[3][N_EXPERT];
    const mdp_score_input input[3] = {{.seed = 1, .layer = 7, .n_expert = N_EXPERT},
                                      {.seed = 2, .layer = 7, .n_expert = N_EXPERT},
                                      {.seed = 1, .layer = 8, .n_expert = N_EXPERT}};
    for (int i = 0; i < 3; i++) assert_int_equal(criterion->score(&input[i], score[i]).code, MDP_OK);
    assert_memory_not_equal(score[0], score[1], sizeof score[0]);
    assert_memory_not_equal(score[0], score[2], sizeof score[0]);
    double again[N_EXPERT];
    assert_int_equal(criterion->score(&input[0], again).code, MDP_OK);
    assert_memory_equal(score[0], again, sizeof again);
}

static void a_plan_made_from_statistics_says_how(void **state) {
    (void)state;
    mdp_stats *stats = small_stats();
    mdp_plan *plan = NULL;
    mdp_plan_request request = {.criterion = mdp_criterion_find("reap"), .stats = stats, .budget = {.keep = 2}};
    strcpy(stats->model_type, "mixtral");
    assert_int_equal(mdp_plan_make(&request, &plan).code, MDP_OK);
    assert_int_equal(plan->layers[0].layer, 7);
    assert_int_equal(kept_of(&plan->layers[0]), 0x3);
    assert_string_equal(json_string_value(json_object_get(plan->recipe, "method")), "reap");
    assert_int_equal(json_integer_value(json_object_get(plan->recipe, "keep")), 2);
    mdp_plan_destroy(plan);
    request.stats = NULL;
    mdp_status status = mdp_plan_make(&request, &plan);
    assert_int_equal(status.code, MDP_USAGE);
    assert_non_null(strstr(status.text, "reap"));
    mdp_stats_destroy(stats);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform_keeps_the_best_of_each_layer_and_ties_drop_the_lower_expert),
        cmocka_unit_test(global_ranks_all_layers_together_and_respects_the_minimum),
        cmocka_unit_test(equal_scores_go_in_the_lower_layer_first),
        cmocka_unit_test(scores_that_differ_beyond_30_bits_are_equal),
        cmocka_unit_test(normalised_layers_are_compared_on_one_scale),
        cmocka_unit_test(normalisation_of_zero_layers_gives_zero_and_sums_refuse_negative_scores),
        cmocka_unit_test(budgets_that_cannot_be_met_are_refused),
        cmocka_unit_test(groups_keep_equally_many),
        cmocka_unit_test(rounds_are_no_more_than_steps),
        cmocka_unit_test(experts_gone_before_go_again_and_count_for_nothing),
        cmocka_unit_test(criteria_are_their_formulas),
        cmocka_unit_test(random_scores_differ_by_seed_and_layer_only),
        cmocka_unit_test(a_plan_made_from_statistics_says_how),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
