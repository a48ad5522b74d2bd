/* Elements of vector sums: exact on their grid, in any order, against long double arithmetic. */
#include "mdp/observe.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N 4000

static double value(int64_t i) {
    double sign = mdp_random_uniform(1, 0, (uint64_t)i) < 0.5 ? -1.0 : 1.0;
    return sign *
           ldexp(mdp_random_uniform(2, 0, (uint64_t)i), (int)(40.0 * mdp_random_uniform(3, 0, (uint64_t)i)) - 20);
}

static void order_and_parts_do_not_show(void **state) {
    (void)state;
    mdp_short_sum forward = {{0}}, backward = {{0}}, part[2] = {{{0}}, {{0}}};
    for (int64_t i = 0; i < N; i++) {
        assert_true(mdp_short_add(&forward, value(i)));
        assert_true(mdp_short_add(&backward, value(N - 1 - i)));
        assert_true(mdp_short_add(&part[i % 2], value(i)));
        if (i % 7 == 0) mdp_short_normalise(&part[i % 2]);
    }
    for (int j = 0; j < MDP_SHORT_LIMBS; j++) part[0].limb[j] += part[1].limb[j];
    mdp_short_normalise(&forward);
    mdp_short_normalise(&backward);
    mdp_short_normalise(&part[0]);
    assert_memory_equal(&forward, &backward, sizeof forward);
    assert_memory_equal(&forward, &part[0], sizeof forward);
}

/* Values are below 2^20 and have their lowest bit above 2^-73: long double keeps 2^-40 of the sum exactly enough. */
static void the_value_is_the_sum(void **state) {
    (void)state;
    mdp_short_sum sum = {{0}};
    long double expected = 0.0L;
    for (int64_t i = 0; i < N; i++) {
        expected += (long double)value(i);
        assert_true(mdp_short_add(&sum, value(i)));
        assert_true(fabsl((long double)mdp_short_value(&sum) - expected) <= 1e-15L * fabsl(expected) + 1e-12L);
    }
}

static void single_values_come_back(void **state) {
    (void)state;
    static const double values[] = {0.0, 1.0, -1.0, 0x1p-64, -0x1p-64, 0x1.fffffep+59, -0x1.8p+40, 3.25, -1e-9};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        mdp_short_sum sum = {{0}};
        assert_true(mdp_short_add(&sum, values[i]));
        assert_true(fabs(mdp_short_value(&sum) - values[i]) <= 0x1p-65);
        assert_true(mdp_short_add(&sum, -values[i]));
        assert_true(mdp_short_value(&sum) == 0.0);
        mdp_short_normalise(&sum);
        for (int j = 0; j < MDP_SHORT_LIMBS; j++) assert_true(sum.limb[j] == 0);
    }
}

static void what_is_below_the_grid_is_rounded_to_even(void **state) {
    (void)state;
    mdp_short_sum sum = {{0}};
    assert_true(mdp_short_add(&sum, 0x1p-65)); /* a tie: to 0 */
    assert_true(mdp_short_value(&sum) == 0.0);
    assert_true(mdp_short_add(&sum, 0x1.8p-64)); /* a tie: to 2 */
    assert_true(mdp_short_value(&sum) == 0x1p-63);
}

static void what_does_not_fit_is_refused_and_changes_nothing(void **state) {
    (void)state;
    static const double values[] = {NAN, INFINITY, -INFINITY, 0x1p60, -0x1p60, 1e300};
    mdp_short_sum sum = {{5, 6, 7}};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        assert_false(mdp_short_add(&sum, values[i]));
        assert_true(sum.limb[0] == 5 && sum.limb[1] == 6 && sum.limb[2] == 7);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_parts_do_not_show),
        cmocka_unit_test(the_value_is_the_sum),
        cmocka_unit_test(single_values_come_back),
        cmocka_unit_test(what_is_below_the_grid_is_rounded_to_even),
        cmocka_unit_test(what_does_not_fit_is_refused_and_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
