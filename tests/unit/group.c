/* Groupings against scipy, scikit-learn, tables over all subsets, and the plain reference of the golden files
 * (fixtures/group); blocks, experts that stay whole, and refusals. */
#include "mdp/group.h"

#include "json_arrays.h"

#include <math.h>
#include <string.h>

static json_t *read_cases(const char *key) {
    json_error_t error;
    json_t *all = json_load_file(MDP_TEST_FIXTURES "/group/vectors.json", 0, &error);
    if (!all) fail_msg("%s", error.text);
    json_t *cases = json_incref(json_object_get(all, key));
    assert_true(json_array_size(cases) > 0);
    json_decref(all);
    return cases;
}

static int find(const char *name, const char *const *names) {
    for (int at = 0; names[at]; at++)
        if (strcmp(name, names[at]) == 0) return at;
    fail_msg("'%s' is no name that there is", name);
    return -1;
}

static void expect_groups(const json_t *expected, int32_t n, const int32_t *group, const char *what) {
    assert_int_equal(json_array_size(expected), n);
    for (int32_t e = 0; e < n; e++) {
        int32_t number = (int32_t)json_integer_value(json_array_get(expected, (size_t)e));
        if (group[e] != number) fail_msg("%s: expert %d of %d is in group %d, not %d", what, e, n, number, group[e]);
    }
}

static void expect_near(double found, double expected, double tolerance, const char *what) {
    if (!(fabs(found - expected) <= tolerance * fmax(fabs(expected), 1.0)))
        fail_msg("%s: %.17g, not %.17g", what, found, expected);
}

static mdp_grouping must_group(const mdp_group_input *input) {
    mdp_grouping grouping;
    mdp_status status = mdp_group(input, &grouping);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    return grouping;
}

/* ---- hierarchical ------------------------------------------------------------------------------------------------ */

static void check_leaves(int32_t n, const mdp_join *joins) {
    int32_t *order = NULL, *place = NULL, *group = NULL;
    assert_int_equal(MDP_ALLOC(&order, n, "order").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&place, n, "place").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&group, n, "group").code, MDP_OK);
    assert_int_equal(mdp_joins_leaves(n, joins, order).code, MDP_OK);
    for (int32_t at = 0; at < n; at++) place[order[at]] += at + 1;
    for (int32_t e = 0; e < n; e++) assert_in_range(place[e], 1, n); /* each once */
    for (int32_t n_join = 0; n_join < n; n_join++) {                 /* every group stands together */
        int32_t n_change = 0;
        mdp_joins_cut(n, joins, n_join, group);
        for (int32_t at = 1; at < n; at++) n_change += group[order[at]] != group[order[at - 1]];
        assert_int_equal(n_change, n - n_join - 1);
    }
    mdp_free(order);
    mdp_free(place);
    mdp_free(group);
}

static void check_joins(const json_t *test, double *distance, int32_t n, mdp_linkage linkage) {
    const json_t *heights = json_object_get(test, "heights");
    int32_t n_join = (int32_t)json_array_size(heights);
    mdp_join *joins = NULL;
    assert_int_equal(MDP_ALLOC(&joins, n, "joins").code, MDP_OK);
    assert_int_equal(mdp_joins_make(n, distance, linkage, n - n_join, joins).code, MDP_OK);
    for (int32_t at = 0; at < n_join; at++)
        expect_near(joins[at].height, json_number_value(json_array_get(heights, (size_t)at)), 1e-13, "height");
    if (n_join == n - 1) check_leaves(n, joins);
    mdp_free(joins);
}

static void hierarchical_equals_scipy_and_the_definition(void **state) {
    (void)state;
    json_t *cases = read_cases("hierarchical"), *test;
    size_t at;
    json_array_foreach(cases, at, test) {
        const char *key;
        const json_t *expected;
        int32_t n = json_int(test, "n");
        double *distance = json_symmetric(json_object_get(test, "distance"), n);
        int linkage = find(json_string_value(json_object_get(test, "linkage")), mdp_linkage_names);
        check_joins(test, distance, n, (mdp_linkage)linkage);
        json_object_foreach(json_object_get(test, "groups"), key, expected) {
            mdp_grouping found = must_group(&(mdp_group_input){.n = n,
                                                               .n_group = (int32_t)strtol(key, NULL, 10),
                                                               .matrix = distance,
                                                               .linkage = (mdp_linkage)linkage});
            expect_groups(expected, n, found.group, mdp_linkage_names[linkage]);
            mdp_grouping_clear(&found);
        }
        mdp_free(distance);
    }
    assert_true(json_array_size(cases) > 60);
    json_decref(cases);
}

/* ---- kmeans, spectral, partition --------------------------------------------------------------------------------- */

static void expect_inertia(const json_t *test, const mdp_grouping *found, const char *what) {
    double theirs = json_double(test, "inertia");
    print_message("%s: %d groups of %d: %.12g, scikit-learn %.12g, next %+.3g\n", what, found->n_group, found->n,
                  found->objective, theirs, found->gap);
    expect_near(found->objective / theirs, 1.0, 1e-10, what);
    expect_groups(json_object_get(test, "group"), found->n, found->group, what);
}

static void kmeans_is_as_good_as_scikit_learn(void **state) {
    (void)state;
    json_t *cases = read_cases("kmeans"), *test;
    size_t at;
    json_array_foreach(cases, at, test) {
        int32_t n = json_int(test, "n"), width = json_int(test, "n_feature");
        double *feature = json_doubles(json_object_get(test, "feature"), (int64_t)n * width);
        mdp_group_input input = {.method = MDP_GROUP_KMEANS,
                                 .n = n,
                                 .n_group = json_int(test, "n_group"),
                                 .feature = feature,
                                 .n_feature = width};
        mdp_grouping found = must_group(&input);
        expect_inertia(test, &found, "kmeans");
        mdp_grouping_clear(&found);
        mdp_free(feature);
    }
    json_decref(cases);
}

static void vectors_that_are_equal_still_fill_every_group(void **state) {
    (void)state;
    const double feature[12] = {1, 2, 1, 2, 1, 2, 5, 5, 1, 2, 5, 5};
    mdp_grouping found = must_group(&(mdp_group_input){
        .method = MDP_GROUP_KMEANS, .n = 6, .n_group = 4, .feature = feature, .n_feature = 2, .seed = 3});
    assert_int_equal(found.n_group, 4);
    assert_true(found.objective == 0.0);
    for (int32_t e = 0; e < 6; e++) assert_in_range(found.group[e], 0, 3);
    mdp_grouping_clear(&found);
}

static void spectral_equals_numpy_with_scikit_learn(void **state) {
    (void)state;
    json_t *cases = read_cases("spectral"), *test;
    size_t at;
    json_array_foreach(cases, at, test) {
        int32_t n = json_int(test, "n");
        double *similarity = json_symmetric(json_object_get(test, "similarity"), n);
        mdp_group_input input = {
            .method = MDP_GROUP_SPECTRAL, .n = n, .n_group = json_int(test, "n_group"), .matrix = similarity};
        mdp_grouping found = must_group(&input);
        expect_inertia(test, &found, "spectral");
        mdp_grouping_clear(&found);
        mdp_free(similarity);
    }
    json_decref(cases);
}

static void partition_reaches_the_optimum(void **state) {
    (void)state;
    json_t *cases = read_cases("partition"), *test;
    size_t at;
    json_array_foreach(cases, at, test) {
        int32_t n = json_int(test, "n");
        double *similarity = json_symmetric(json_object_get(test, "similarity"), n), best = json_double(test, "value");
        mdp_group_input input = {
            .method = MDP_GROUP_PARTITION, .n = n, .n_group = json_int(test, "n_group"), .matrix = similarity};
        for (int searched = 0; searched < 2; searched++) {
            input.exact_up_to = searched ? -1 : 8;
            mdp_grouping found = must_group(&input);
            expect_near(found.objective, best, 1e-13, searched ? "local search" : "partition");
            assert_true(found.gap > 0.0 || (searched && isnan(found.gap))); /* all starts may end in the best */
            mdp_grouping_clear(&found);
        }
        mdp_free(similarity);
    }
    json_decref(cases);
}

static void golden_groupings_are_found(void **state) {
    (void)state;
    json_t *cases = read_cases("golden"), *test;
    size_t at;
    json_array_foreach(cases, at, test) {
        int32_t n = json_int(test, "n");
        double *matrix = json_symmetric(json_object_get(test, "matrix"), n);
        int linkage = find(json_string_value(json_object_get(test, "linkage")), mdp_linkage_names);
        int method = find(json_string_value(json_object_get(test, "method")), mdp_group_method_names);
        mdp_grouping found = must_group(&(mdp_group_input){.method = (mdp_group_method)method,
                                                           .linkage = (mdp_linkage)linkage,
                                                           .n = n,
                                                           .n_group = json_int(test, "n_group"),
                                                           .matrix = matrix});
        expect_groups(json_object_get(test, "group"), n, found.group, mdp_group_method_names[method]);
        if (method == MDP_GROUP_PARTITION) {
            expect_near(found.objective, json_double(test, "value"), 1e-13, "value");
            expect_near(found.objective - found.gap, json_double(test, "second"), 1e-12, "value of the second best");
        } else {
            check_joins(test, matrix, n, (mdp_linkage)linkage);
        }
        mdp_grouping_clear(&found);
        mdp_free(matrix);
    }
    assert_true(json_array_size(cases) == 45);
    json_decref(cases);
}

/* ---- dominant, centroid ------------------------------------------------------------------------------------------ */

/* Similarities of six experts, above the diagonal. */
static const double six[36] = {0, .5, .4, .9, .8, .1, /**/ 0, 0, .3, .9, .2, .6, /**/ 0, 0, 0, .1, .7, .6,
                               0, 0,  0,  0,  .3, .2, /**/ 0, 0, 0,  0,  0,  .1, /**/ 0, 0, 0, 0,  0,  0};

static void expect_six(const mdp_group_input *options, const int32_t group[6], double objective, double gap) {
    mdp_group_input input = *options;
    input.n = 6;
    input.matrix = six;
    mdp_grouping found = must_group(&input);
    for (int32_t e = 0; e < 6; e++) assert_int_equal(found.group[e], group[e]);
    expect_near(found.objective, objective, 1e-15, "objective");
    expect_near(found.gap, gap, 1e-12, "gap");
    mdp_grouping_clear(&found);
}

static void others_join_the_most_similar_dominant(void **state) {
    (void)state;
    const double count[6] = {7, 9, 3, 1, 2, 7};
    const unsigned char dominant[6] = {0, 0, 1, 0, 1, 0};
    /* 1 and 0 (before 5, which has as many); 3 is as similar to either, so it joins the lower one. */
    expect_six(&(mdp_group_input){.method = MDP_GROUP_DOMINANT, .n_group = 2, .score = count},
               (int32_t[6]){0, 1, 0, 0, 0, 1}, .4 + .9 + .8 + .6, 0.0);
    expect_six(&(mdp_group_input){.method = MDP_GROUP_DOMINANT, .n_group = 2, .dominant = dominant},
               (int32_t[6]){0, 1, 1, 0, 0, 1}, .8 + .3 + .3 + .6, .1);
}

static void centroids_take_the_most_similar_while_they_have_room(void **state) {
    (void)state;
    const double saliency[6] = {9, 8, 1, 2, 3, 4};
    /* (0, 3) .9, (0, 4) .8, then 0 is full: 2 and 5 go to 1. */
    expect_six(&(mdp_group_input){.method = MDP_GROUP_CENTROID, .n_group = 2, .score = saliency, .max_group = 3},
               (int32_t[6]){0, 1, 1, 0, 0, 1}, .9 + .8 + .6 + .3, -.1);
    expect_six(&(mdp_group_input){.method = MDP_GROUP_CENTROID, .n_group = 2, .score = saliency},
               (int32_t[6]){0, 1, 0, 0, 0, 1}, .9 + .8 + .4 + .6, 0.0);
}

static void experts_of_the_highest_score_stay_whole(void **state) {
    (void)state;
    const double saliency[6] = {9, 1, 2, 8, 3, 4};
    mdp_group_input input = {
        .method = MDP_GROUP_CENTROID, .n = 6, .n_group = 4, .matrix = six, .score = saliency, .keep_whole = 0.5};
    mdp_grouping found = must_group(&input);
    const int32_t group[6] = {0, 1, 2, 3, 2, 1}, centre[4] = {0, 5, 4, 3}; /* 0 and 3 alone; 5 and 4 are centres */
    assert_memory_equal(found.group, group, sizeof group);
    assert_memory_equal(found.centre, centre, sizeof centre);
    mdp_grouping_clear(&found);
}

/* ---- blocks, penalties, refusals --------------------------------------------------------------------------------- */

static void groups_never_cross_a_block(void **state) {
    (void)state;
    json_t *cases = read_cases("hierarchical"), *test = json_array_get(cases, 11);
    int32_t n = json_int(test, "n");
    const int32_t n_block = 4, n_group = 12;
    double *matrix = json_symmetric(json_object_get(test, "distance"), n), *score = NULL;
    assert_int_equal(MDP_ALLOC(&score, n, "scores").code, MDP_OK);
    for (int32_t e = 0; e < n; e++) score[e] = (double)(mdp_random_bits(5, 0, (uint64_t)e) >> 40);
    for (int method = 0; mdp_group_method_names[method]; method++) {
        for (int whole = 0; whole < 2; whole++) {
            mdp_grouping found = must_group(&(mdp_group_input){.method = (mdp_group_method)method,
                                                               .n = n,
                                                               .n_group = n_group,
                                                               .n_block = n_block,
                                                               .matrix = matrix,
                                                               .feature = score,
                                                               .n_feature = 1,
                                                               .score = score,
                                                               .keep_whole = whole * 0.34});
            int32_t next = 0;
            for (int32_t e = 0; e < n; e++) {
                assert_in_range(found.group[e], e / (n / n_block) * 3, e / (n / n_block) * 3 + 2);
                assert_in_range(found.group[e], 0, next); /* numbered by the smallest members */
                next += found.group[e] == next;
            }
            assert_int_equal(next, n_group);
            assert_int_equal(found.n_join, method == MDP_GROUP_HIERARCHICAL ? n - n_group : 0);
            mdp_grouping_clear(&found);
        }
    }
    mdp_free(matrix);
    mdp_free(score);
    json_decref(cases);
}

static void one_group_and_a_group_for_each_expert(void **state) {
    (void)state;
    const double score[6] = {9, 1, 2, 8, 3, 4};
    for (int method = 0; mdp_group_method_names[method]; method++) {
        for (int at = 0; at < 3; at++) {
            int32_t n = at == 0 ? 1 : 6, n_group = at == 1 ? 6 : 1;
            mdp_grouping found = must_group(&(mdp_group_input){.method = (mdp_group_method)method,
                                                               .n = n,
                                                               .n_group = n_group,
                                                               .matrix = six,
                                                               .feature = six,
                                                               .n_feature = 6,
                                                               .score = score,
                                                               .exact_up_to = -1});
            for (int32_t e = 0; e < n; e++) assert_int_equal(found.group[e], n_group == n ? e : 0);
            if (n_group == n) assert_int_equal(found.centre[n - 1], n - 1);
            mdp_grouping_clear(&found);
        }
    }
}

static void rare_experts_are_nearer_with_the_penalty(void **state) {
    (void)state;
    double a[9] = {1, .9, .8, .9, 1, .7, .8, .7, 1};
    const double share[3] = {.5, .4, .1};
    mdp_group_flip(3, a);
    mdp_group_penalise(3, share, a);
    expect_near(a[1], (1 - .9) * (.5 + .4), 1e-15, "penalised");
    expect_near(a[5], (1 - .7) * (.4 + .1), 1e-15, "penalised");
    expect_near(a[6], (1 - .8) * (.5 + .1), 1e-15, "penalised");
}

static void expect_refusal(const mdp_group_input *input, int code, const char *words) {
    mdp_grouping found;
    mdp_status status = mdp_group(input, &found);
    assert_int_equal(status.code, code);
    if (!strstr(status.text, words)) fail_msg("'%s' does not say '%s'", status.text, words);
    mdp_grouping_clear(&found);
}

static void what_cannot_be_met_is_refused(void **state) {
    (void)state;
    const double nan[4] = {0, (double)NAN, 0, 0}, score[6] = {0};
    const unsigned char dominant[6] = {1, 1, 1, 0, 0, 0};
    expect_refusal(&(mdp_group_input){.n = 6, .n_group = 7, .matrix = six}, MDP_USAGE, "7 groups");
    expect_refusal(&(mdp_group_input){.n = 6, .n_group = 3, .n_block = 2, .matrix = six}, MDP_USAGE, "multiples");
    expect_refusal(&(mdp_group_input){.n = 6, .n_group = 3, .keep_whole = 1.5, .matrix = six}, MDP_USAGE, "1.5");
    expect_refusal(&(mdp_group_input){.n = 2, .n_group = 1, .matrix = nan}, MDP_BAD_INPUT, "expert 1 of expert 0");
    expect_refusal(&(mdp_group_input){.n = 6, .n_group = 2}, MDP_INTERNAL, "nothing to group by");
    expect_refusal(&(mdp_group_input){.method = MDP_GROUP_CENTROID, .n = 6, .n_group = 2, .matrix = six}, MDP_INTERNAL,
                   "no scores");
    expect_refusal(
        &(mdp_group_input){
            .method = MDP_GROUP_CENTROID, .n = 6, .n_group = 2, .max_group = 2, .matrix = six, .score = score},
        MDP_USAGE, "--max-group at least 3");
    expect_refusal(
        &(mdp_group_input){.method = MDP_GROUP_DOMINANT, .n = 6, .n_group = 2, .matrix = six, .dominant = dominant},
        MDP_USAGE, "3 dominant experts are given for 2 groups");
}

/* Whichever allocation fails, the error says so and nothing is left behind. */
static void an_allocation_that_fails_leaves_nothing(void **state) {
    (void)state;
    char what[MDP_MEMORY_WHAT];
    const double score[6] = {9, 1, 2, 8, 3, 4};
    for (int method = 0; mdp_group_method_names[method]; method++) {
        mdp_group_input input = {.method = (mdp_group_method)method,
                                 .n = 6,
                                 .n_group = 3,
                                 .matrix = six,
                                 .feature = six,
                                 .n_feature = 6,
                                 .score = score,
                                 .keep_whole = 0.34,
                                 .exact_up_to = -1};
        int64_t before = mdp_memory_left(what);
        mdp_fault_configure(INT64_MAX, 0); /* only counts */
        mdp_grouping found = must_group(&input);
        int64_t n = mdp_fault_count();
        mdp_grouping_clear(&found);
        for (int64_t at = 1; at <= n; at++) {
            mdp_fault_configure(at, 0);
            mdp_status status = mdp_group(&input, &found);
            mdp_fault_configure(0, 0);
            assert_int_equal(status.code, MDP_EXHAUSTED);
            mdp_grouping_clear(&found);
            assert_int_equal(mdp_memory_left(what), before);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hierarchical_equals_scipy_and_the_definition),
        cmocka_unit_test(kmeans_is_as_good_as_scikit_learn),
        cmocka_unit_test(vectors_that_are_equal_still_fill_every_group),
        cmocka_unit_test(spectral_equals_numpy_with_scikit_learn),
        cmocka_unit_test(partition_reaches_the_optimum),
        cmocka_unit_test(golden_groupings_are_found),
        cmocka_unit_test(others_join_the_most_similar_dominant),
        cmocka_unit_test(centroids_take_the_most_similar_while_they_have_room),
        cmocka_unit_test(experts_of_the_highest_score_stay_whole),
        cmocka_unit_test(groups_never_cross_a_block),
        cmocka_unit_test(one_group_and_a_group_for_each_expert),
        cmocka_unit_test(rare_experts_are_nearer_with_the_penalty),
        cmocka_unit_test(an_allocation_that_fails_leaves_nothing),
        cmocka_unit_test(what_cannot_be_met_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
