/* Similarities of joined statistics: sums over tokens add, what is of the model stays, what is of one text goes. */
#include "mdp/observe.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_EXPERT 3
#define D_MODEL 2

/* Of one layer and one category: vectors of the given bits, the values of vector `id` being value(id, i). */
static mdp_stats *make(unsigned vectors, double n_probe, double (*value)(int id, int64_t i)) {
    mdp_stats *stats = NULL;
    assert_int_equal(MDP_ALLOC(&stats, 1, "test").code, MDP_OK);
    memcpy(stats->model_type, "mixtral", sizeof "mixtral");
    stats->d_model = D_MODEL;
    stats->n_token = stats->n_category = 1;
    stats->n_probe = n_probe;
    assert_int_equal(MDP_ALLOC(&stats->category, 1, "test").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&stats->category_token, 1, "test").code, MDP_OK);
    assert_int_equal(mdp_copy_text(&stats->category[0], "text").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&stats->layers, 1, "test").code, MDP_OK);
    stats->n_layer = 1;
    mdp_layer_stats *layer = &stats->layers[0];
    *layer = (mdp_layer_stats){.n_expert = N_EXPERT, .top_k = 1, .n_group = 1, .n_open = 1};
    assert_int_equal(mdp_layer_stats_allocate(layer, 1).code, MDP_OK);
    for (int id = 0; id < MDP_N_VECTOR; id++) {
        int64_t n = N_EXPERT * mdp_vector_width(stats, layer, (mdp_vector_id)id);
        if (!(vectors >> id & 1)) continue;
        assert_int_equal(MDP_ALLOC(&layer->vectors[id], n, "test").code, MDP_OK);
        for (int64_t i = 0; i < n; i++) assert_true(mdp_short_add(&layer->vectors[id][i], value(id, i)));
    }
    return stats;
}

static mdp_stats *join(mdp_stats *one, mdp_stats *other, double weight) {
    mdp_stats *all[] = {one, other}, *joined = NULL;
    const char *paths[] = {"one.h5", "other.h5"};
    const double weights[] = {1.0, weight};
    mdp_status status = mdp_stats_join(all, weights, paths, 2, &joined);
    assert_string_equal(status.text, "");
    mdp_stats_destroy(one);
    mdp_stats_destroy(other);
    return joined;
}

static void assert_entry(const mdp_stats *stats, mdp_similarity_id id, int i, int j, double expected) {
    const double *values = mdp_stats_similarity(stats, 0, id);
    assert_non_null(values);
    assert_true(fabs(values[i * N_EXPERT + j] - expected) < 1e-12);
    assert_true(values[i * N_EXPERT + j] == values[j * N_EXPERT + i]);
}

static const double pairs[2][N_EXPERT * N_EXPERT] = {{4, 1, 0, 1, 3, 2, 0, 2, 5}, {2, 2, 0, 2, 2, 0, 0, 0, 0}};
static const double outputs[2][N_EXPERT * D_MODEL] = {{3, 0, 0, 4, 0, 0}, {1, 8, 4, 4, 0, 0}};

static double of_one(int id, int64_t i) {
    return id == MDP_PAIR_COUNT ? pairs[0][i] : id == MDP_PROBE_OUTPUT_SUM ? outputs[0][i] : i % 4 == 0 ? 2.0 : 1.0;
}

static double of_other(int id, int64_t i) {
    return id == MDP_PAIR_COUNT ? pairs[1][i] : id == MDP_PROBE_OUTPUT_SUM ? outputs[1][i] : i % 4 == 0 ? 2.0 : 1.0;
}

static void sums_over_tokens_add(void **state) {
    (void)state;
    unsigned bits = 1u << MDP_PAIR_COUNT | 1u << MDP_PROBE_OUTPUT_SUM;
    mdp_stats *both = join(make(bits, 2.0, of_one), make(bits, 2.0, of_other), 1.0);
    assert_int_equal(mdp_stats_make_similarity(both, MDP_CO_ACTIVATION).code, MDP_OK);
    assert_entry(both, MDP_CO_ACTIVATION, 0, 1, 3.0 / (6.0 + 5.0 - 3.0));
    assert_entry(both, MDP_CO_ACTIVATION, 1, 2, 2.0 / (5.0 + 5.0 - 2.0));
    assert_entry(both, MDP_CO_ACTIVATION, 0, 0, 1.0);
    /* means (1, 2) and (1, 2), and an expert that gives 0 */
    assert_int_equal(mdp_stats_make_similarity(both, MDP_OUTPUT_MEAN_EUCLIDEAN).code, MDP_OK);
    assert_int_equal(mdp_stats_make_similarity(both, MDP_OUTPUT_MEAN_COSINE).code, MDP_OK);
    assert_entry(both, MDP_OUTPUT_MEAN_EUCLIDEAN, 0, 1, 0.0);
    assert_entry(both, MDP_OUTPUT_MEAN_EUCLIDEAN, 0, 2, sqrt(5.0));
    assert_entry(both, MDP_OUTPUT_MEAN_COSINE, 0, 1, 1.0);
    assert_entry(both, MDP_OUTPUT_MEAN_COSINE, 0, 2, 0.0);
    double mean[N_EXPERT * D_MODEL];
    assert_int_equal(mdp_stats_mean_outputs(both, 0, MDP_OUTPUT_MEAN_COSINE, mean).code, MDP_OK);
    assert_true(mean[2] == 1.0 && mean[3] == 2.0 && mean[4] == 0.0);
    mdp_stats_destroy(both);
}

static void weights_of_files_count(void **state) {
    (void)state;
    unsigned bits = 1u << MDP_PAIR_COUNT | 1u << MDP_PROBE_OUTPUT_SUM;
    mdp_stats *both = join(make(bits, 2.0, of_one), make(bits, 2.0, of_other), 0.5);
    assert_int_equal(mdp_stats_make_similarity(both, MDP_CO_ACTIVATION).code, MDP_OK);
    assert_entry(both, MDP_CO_ACTIVATION, 0, 1, 2.0 / (5.0 + 4.0 - 2.0));
    assert_int_equal(mdp_stats_make_similarity(both, MDP_OUTPUT_MEAN_EUCLIDEAN).code, MDP_OK);
    assert_entry(both, MDP_OUTPUT_MEAN_EUCLIDEAN, 0, 2, sqrt(3.5 * 3.5 + 4.0 * 4.0) / 3.0);
    mdp_stats_destroy(both);
}

static void what_is_of_the_model_stays(void **state) {
    (void)state;
    unsigned bits = 1u << MDP_WEIGHT_PRODUCT;
    mdp_stats *both = join(make(bits, 0.0, of_one), make(bits, 0.0, of_other), 0.5);
    assert_int_equal(mdp_stats_make_similarity(both, MDP_WEIGHT_COSINE).code, MDP_OK);
    assert_int_equal(mdp_stats_make_similarity(both, MDP_WEIGHT_EUCLIDEAN).code, MDP_OK);
    assert_entry(both, MDP_WEIGHT_COSINE, 2, 1, 0.5);
    assert_entry(both, MDP_WEIGHT_EUCLIDEAN, 2, 1, sqrt(2.0));
    mdp_stats_destroy(both);
}

static void what_is_of_one_text_goes_with_a_sentence(void **state) {
    (void)state;
    unsigned bits = 1u << MDP_CKA_RBF_PRODUCT;
    mdp_stats *both = join(make(bits, 2.0, of_one), make(bits, 2.0, of_other), 1.0);
    mdp_status status = mdp_stats_make_similarity(both, MDP_CKA_RBF);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "cka-rbf is of one sample of tokens"));
    assert_null(mdp_stats_similarity(both, 0, MDP_CKA_RBF));
    status = mdp_stats_make_similarity(both, MDP_ROUTER_LOGIT);
    assert_non_null(strstr(status.text, "observe with --similarity router-logit"));
    mdp_stats_destroy(both);
}

static void names_are_a_list(void **state) {
    (void)state;
    unsigned wanted;
    char *text = NULL;
    assert_int_equal(mdp_similarity_parse("router-row,cka-rbf", &wanted).code, MDP_OK);
    assert_int_equal(wanted, 1u << MDP_ROUTER_ROW | 1u << MDP_CKA_RBF);
    assert_int_equal(mdp_similarity_print(wanted, &text).code, MDP_OK);
    assert_string_equal(text, "cka-rbf,router-row");
    mdp_free(text);
    assert_int_equal(mdp_similarity_parse("none", &wanted).code, MDP_OK);
    assert_int_equal(wanted, 0);
    for (const char *const *bad = (const char *const[]){"", "cka-rbf,", ",cka-rbf", "none,cka-rbf", "cka", NULL}; *bad;
         bad++) {
        mdp_status status = mdp_similarity_parse(*bad, &wanted);
        assert_int_equal(status.code, MDP_USAGE);
        assert_non_null(strstr(status.text, "co-activation."));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_over_tokens_add),       cmocka_unit_test(weights_of_files_count),
        cmocka_unit_test(what_is_of_the_model_stays), cmocka_unit_test(what_is_of_one_text_goes_with_a_sentence),
        cmocka_unit_test(names_are_a_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
