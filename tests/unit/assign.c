/* Assignments against scipy (fixtures/group) and against their own prices, which no better one can pass. */
#include "mdp/group.h"

#include "json_arrays.h"

#include <math.h>
#include <string.h>

/* Every column once; the prices cover all pairs and add up to the value. */
static void check_proof(int64_t n, const double *gain, const int64_t *permutation, const double *row_price,
                        const double *col_price, double value) {
    double sum = 0.0, prices = 0.0, scale = 1e-300;
    unsigned char *taken = NULL;
    assert_int_equal(MDP_ALLOC(&taken, n, "columns").code, MDP_OK);
    for (int64_t i = 0; i < n; i++) {
        assert_in_range(permutation[i], 0, n - 1);
        assert_int_equal(taken[permutation[i]]++, 0);
        sum += gain[i * n + permutation[i]];
        prices += row_price[i] + col_price[i];
        for (int64_t j = 0; j < n; j++) scale = fmax(scale, fabs(gain[i * n + j]));
    }
    for (int64_t at = 0; at < n * n; at++)
        assert_true(row_price[at / n] + col_price[at % n] >= gain[at] - 1e-14 * scale);
    assert_true(fabs(sum - value) <= 1e-14 * scale * (double)n);
    if (!(fabs(prices - value) <= 1e-13 * scale * (double)n))
        fail_msg("%d rows: the prices are %.17g, the value %.17g", (int)n, prices, value);
    mdp_free(taken);
}

/* Solve, prove, and return the value; the permutation is the caller's. */
static double solve(int64_t n, const double *gain, int64_t **permutation) {
    double *row_price = NULL, *col_price = NULL, value = 0.0;
    assert_int_equal(MDP_ALLOC(permutation, n, "permutation").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&row_price, n, "prices").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&col_price, n, "prices").code, MDP_OK);
    assert_int_equal(mdp_assign(n, gain, *permutation, row_price, col_price, &value).code, MDP_OK);
    check_proof(n, gain, *permutation, row_price, col_price, value);
    mdp_free(row_price);
    mdp_free(col_price);
    return value;
}

static void values_and_permutations_equal_scipy(void **state) {
    (void)state;
    json_error_t error;
    json_t *all = json_load_file(MDP_TEST_FIXTURES "/group/vectors.json", 0, &error);
    assert_non_null(all);
    json_t *cases = json_object_get(all, "assignment"), *test;
    size_t at;
    json_array_foreach(cases, at, test) {
        int64_t n = json_int(test, "n"), *permutation = NULL;
        double *gain = json_doubles(json_object_get(test, "gain"), n * n), theirs = json_double(test, "value");
        double value = solve(n, gain, &permutation);
        assert_true(fabs(value - theirs) <= 1e-13 * fabs(theirs));
        for (int64_t i = 0; i < n && !json_is_true(json_object_get(test, "tied")); i++)
            assert_int_equal(permutation[i],
                             json_integer_value(json_array_get(json_object_get(test, "permutation"), (size_t)i)));
        mdp_free(permutation);
        mdp_free(gain);
    }
    assert_int_equal(json_array_size(cases), 18);
    json_decref(all);
}

/* Gains of pairs: 0 smooth, 1 few different, 2 all equal, 3 a sum of a row's and a column's, so that all permutations
 * are worth the same, 4 vectors of which some are copies of others. */
static double gain_of(int kind, int64_t i, int64_t j) {
    uint64_t index = (uint64_t)i << 32 | (uint64_t)j;
    switch (kind) {
    case 0:
        return mdp_random_uniform(1, 0, index) - 0.3;
    case 1:
        return (double)(mdp_random_bits(2, 0, index) % 3);
    case 2:
        return 0.1;
    case 3:
        return mdp_random_uniform(3, 0, (uint64_t)i) + mdp_random_uniform(3, 1, (uint64_t)j);
    default:
        return 1e-3 * mdp_random_uniform(4, 0, (uint64_t)(i / 3) << 32 | (uint64_t)(j / 2)) + ((i * 7 + 3) % 60 == j);
    }
}

static double *gains_of(int kind, int64_t n) {
    double *gain = NULL;
    assert_int_equal(MDP_ALLOC(&gain, n * n, "gains").code, MDP_OK);
    for (int64_t at = 0; at < n * n; at++) gain[at] = gain_of(kind, at / n, at % n);
    return gain;
}

static void prices_prove_every_kind_of_gains(void **state) {
    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        int64_t *permutation = NULL;
        double *gain = gains_of(kind, 150);
        (void)solve(150, gain, &permutation);
        mdp_free(permutation);
        mdp_free(gain);
    }
}

/* What aligning neurons is about: a permutation that is hidden in noise. */
static void a_hidden_permutation_is_found(void **state) {
    (void)state;
    enum { N = 211 };
    int64_t *permutation = NULL;
    double *gain = gains_of(0, N);
    for (int64_t i = 0; i < N; i++) gain[i * N + (i * 50 + 13) % N] += 1.0;
    (void)solve(N, gain, &permutation);
    for (int64_t i = 0; i < N; i++) assert_int_equal(permutation[i], (i * 50 + 13) % N);
    mdp_free(permutation);
    mdp_free(gain);
}

/* Rows of a matrix that is held: the auction asks for them. */
typedef struct held_rows {
    int64_t n;
    const double *gain;
} held_rows;

static mdp_status give_rows(void *context, int64_t n_row, const int64_t *rows, double *gain) {
    const held_rows *held = context;
    if (n_row > MDP_AUCTION_ROWS) fail_msg("%d rows at once", (int)n_row);
    for (int64_t at = 0; at < n_row; at++)
        memcpy(gain + at * held->n, held->gain + rows[at] * held->n, (size_t)held->n * sizeof *gain);
    return mdp_ok();
}

static void check_auction(int64_t n, const double *gain, double tolerance) {
    int64_t *best = NULL, *found = NULL;
    mdp_auction_result result;
    held_rows held = {.n = n, .gain = gain};
    mdp_auction auction = {.n = n, .rows = give_rows, .context = &held, .tolerance = tolerance};
    double value = solve(n, gain, &best), sum = 0.0, scale = 1e-13 * (double)n;
    unsigned char *taken = NULL;
    assert_int_equal(MDP_ALLOC(&found, n, "permutation").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&taken, n, "columns").code, MDP_OK);
    assert_int_equal(mdp_assign_auction(&auction, found, &result).code, MDP_OK);
    for (int64_t i = 0; i < n; i++) {
        sum += gain[i * n + found[i]];
        assert_int_equal(taken[found[i]]++, 0);
    }
    assert_true(fabs(sum - result.value) <= scale);
    assert_true(result.value <= value + scale && value <= result.bound + scale); /* the bound holds */
    assert_true(result.bound - result.value <= tolerance * fabs(result.bound) + scale);
    print_message("auction of %d: %.9g to %.9g, exact %.9g, %.1f rows a row\n", (int)n, result.value, result.bound,
                  value, (double)result.n_row / (double)n);
    mdp_free(best);
    mdp_free(found);
    mdp_free(taken);
}

static void an_auction_comes_within_its_gap(void **state) {
    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        double *gain = gains_of(kind, 150);
        check_auction(150, gain, 1e-3);
        check_auction(150, gain, 1e-9);
        check_auction(33, gain, 1e-9);
        check_auction(2, gain, 1e-9);
        check_auction(1, gain, 1e-9);
        mdp_free(gain);
    }
}

static void what_is_no_number_is_refused(void **state) {
    (void)state;
    const double gain[4] = {0, 1, (double)INFINITY, 2};
    int64_t permutation[2];
    double row_price[2], col_price[2], value;
    mdp_status status = mdp_assign(2, gain, permutation, row_price, col_price, &value);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_string_equal(status.text, "the gain of row 1 and column 0 is inf.");
    held_rows held = {.n = 2, .gain = gain};
    mdp_auction auction = {.n = 2, .rows = give_rows, .context = &held};
    mdp_auction_result result;
    status = mdp_assign_auction(&auction, permutation, &result);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_string_equal(status.text, "the gain of row 1 and column 0 is inf.");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_permutations_equal_scipy), cmocka_unit_test(prices_prove_every_kind_of_gains),
        cmocka_unit_test(a_hidden_permutation_is_found),       cmocka_unit_test(an_auction_comes_within_its_gap),
        cmocka_unit_test(what_is_no_number_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
