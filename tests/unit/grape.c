/* Budgets by similarity against a simulation step by step (fixtures/group), and what cannot be met. */
#include "mdp/group.h"

#include "json_arrays.h"

#include <math.h>
#include <string.h>

enum { MOST_LAYERS = 8 };

static void free_layers(int64_t n_layer, mdp_grape_layer *layers) {
    for (int64_t l = 0; l < n_layer; l++) {
        mdp_free((double *)layers[l].similarity);
        mdp_free(layers[l].group);
    }
}

static int64_t read_layers(const json_t *test, mdp_grape_layer *layers) {
    const json_t *sizes = json_object_get(test, "n");
    int64_t n_layer = (int64_t)json_array_size(sizes);
    assert_in_range(n_layer, 1, MOST_LAYERS);
    for (int64_t l = 0; l < n_layer; l++) {
        int32_t n = (int32_t)json_integer_value(json_array_get(sizes, (size_t)l));
        const json_t *above = json_array_get(json_object_get(test, "similarity"), (size_t)l);
        layers[l] = (mdp_grape_layer){.n = n, .min_keep = json_int(test, "min_keep")};
        layers[l].similarity = json_symmetric(above, n);
        assert_int_equal(MDP_ALLOC(&layers[l].group, n, "groups").code, MDP_OK);
    }
    return n_layer;
}

static void check_case(const json_t *test) {
    mdp_grape_layer layers[MOST_LAYERS];
    int64_t n_layer = read_layers(test, layers), total = json_int(test, "total"), n_group = 0;
    mdp_status status = mdp_grape(n_layer, layers, total, json_int(test, "n_block"), json_double(test, "gamma"));
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    for (int64_t l = 0; l < n_layer; l++) {
        const json_t *expected = json_array_get(json_object_get(test, "groups"), (size_t)l);
        int32_t largest = 0;
        for (int32_t e = 0; e < layers[l].n; e++) {
            assert_int_equal(layers[l].group[e], json_integer_value(json_array_get(expected, (size_t)e)));
            if (layers[l].group[e] > largest) largest = layers[l].group[e];
        }
        assert_int_equal(layers[l].keep, largest + 1);
        n_group += layers[l].keep;
    }
    assert_int_equal(n_group, total);
    free_layers(n_layer, layers);
}

static json_t *read_cases(void) {
    json_t *all = json_load_file(MDP_TEST_FIXTURES "/group/vectors.json", 0, NULL);
    assert_non_null(all);
    json_t *cases = json_incref(json_object_get(all, "grape"));
    json_decref(all);
    return cases;
}

static void layers_merge_in_turn_as_simulated(void **state) {
    (void)state;
    json_t *cases = read_cases(), *test;
    size_t at;
    json_array_foreach(cases, at, test) check_case(test);
    assert_int_equal(json_array_size(cases), 6);
    json_decref(cases);
}

static void expect_refusal(int64_t total, int32_t n_block, double gamma, const char *words) {
    json_t *cases = read_cases();
    mdp_grape_layer layers[MOST_LAYERS];
    int64_t n_layer = read_layers(json_array_get(cases, 0), layers); /* 3 layers of 8, at least 2 each */
    mdp_status status = mdp_grape(n_layer, layers, total, n_block, gamma);
    assert_int_equal(status.code, MDP_USAGE);
    if (!strstr(status.text, words)) fail_msg("'%s' does not say '%s'", status.text, words);
    free_layers(n_layer, layers);
    json_decref(cases);
}

static void totals_that_cannot_be_met_are_refused(void **state) {
    (void)state;
    expect_refusal(25, 1, 0.1, "possible are 6 to 24, in steps of 1");
    expect_refusal(5, 1, 0.1, "possible are 6 to 24");
    expect_refusal(13, 2, 0.1, "in steps of 2");
    expect_refusal(12, 3, 0.1, "8 experts in 3 blocks");
    expect_refusal(12, 4, 0.1, "at least 2");
    expect_refusal(12, 1, (double)NAN, "gamma");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_merge_in_turn_as_simulated),
        cmocka_unit_test(totals_that_cannot_be_met_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
