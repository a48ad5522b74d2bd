/* Exact sums, rounding to 30 bits and random bits against vectors that Python's fractions and integers made
 * (tests/fixtures/base/make-vectors); order and grouping of additions; the quality of the random numbers. */
#include "mdp/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_WORD 64
#define VECTORS MDP_TEST_FIXTURES "/base/vectors.txt"

static uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Equal, with one zero: a sum has no sign of zero. */
static void assert_same_double(double found, double expected) {
    if (expected == 0 && found == 0) return;
    assert_int_equal(bits_of(found), bits_of(expected));
}

typedef void line_check(char *const *word, int n_word);

/* Apply `check` to every line of the vectors that begins with `kind`. */
static void check_lines(const char *kind, int n_expected, line_check *check) {
    FILE *file = fopen(VECTORS, "r");
    assert_non_null(file);
    char line[4000];
    int n_line = 0;
    while (fgets(line, sizeof line, file)) {
        char *word[MAX_WORD], *rest = line;
        int n_word = 0;
        for (char *w = strtok_r(rest, " \n", &rest); w && n_word < MAX_WORD; w = strtok_r(NULL, " \n", &rest))
            word[n_word++] = w;
        if (n_word == 0 || strcmp(word[0], kind) != 0) continue;
        check(word, n_word);
        n_line++;
    }
    fclose(file);
    assert_int_equal(n_line, n_expected);
}

static void check_sum(char *const *word, int n_word) {
    int n = atoi(word[1]);
    assert_int_equal(n_word, 2 + n + 1 + MDP_LIMBS);
    mdp_exact forward = {{0}}, backward = {{0}}, halves[2] = {{{0}}, {{0}}};
    for (int i = 0; i < n; i++) {
        assert_true(mdp_exact_add(&forward, strtod(word[2 + i], NULL)));
        assert_true(mdp_exact_add(&backward, strtod(word[2 + n - 1 - i], NULL)));
        assert_true(mdp_exact_add(&halves[i % 2], strtod(word[2 + i], NULL)));
    }
    double expected = strtod(word[2 + n], NULL);
    assert_same_double(mdp_exact_value(&forward), expected);
    mdp_exact_normalise(&halves[1]);
    for (int i = 0; i < MDP_LIMBS; i++) halves[0].limb[i] += halves[1].limb[i];
    mdp_exact *const all[] = {&forward, &backward, &halves[0]};
    for (int s = 0; s < 3; s++) {
        mdp_exact_normalise(all[s]);
        assert_same_double(mdp_exact_value(all[s]), expected);
        for (int i = 0; i < MDP_LIMBS; i++) assert_int_equal(all[s]->limb[i], strtoll(word[3 + n + i], NULL, 10));
    }
}

static void sums_and_limbs_equal_those_of_fractions(void **unused) {
    (void)unused;
    check_lines("sum", 266, check_sum);
}

static void check_multiple(char *const *word, int n_word) {
    assert_int_equal(n_word, 4);
    mdp_exact sum = {{0}}, addend = {{0}};
    assert_true(mdp_exact_add(&sum, strtod(word[1], NULL)));
    assert_true(mdp_exact_add(&addend, strtod(word[2], NULL)));
    for (int i = 0; i < MDP_LIMBS; i++) sum.limb[i] += 1000 * addend.limb[i];
    assert_same_double(mdp_exact_value(&sum), strtod(word[3], NULL));
    assert_int_equal(mdp_exact_fits(&sum), fabs(strtod(word[3], NULL)) < 0x1p159);
}

static void sums_of_limbs_beyond_the_range_of_an_addend_are_right(void **unused) {
    (void)unused;
    check_lines("add2", 43, check_multiple);
}

static void check_refused(char *const *word, int n_word) {
    assert_int_equal(n_word, 2);
    mdp_exact sum = {{1, -2, 3}}, before = sum;
    assert_false(mdp_exact_add(&sum, strtod(word[1], NULL)));
    assert_memory_equal(&sum, &before, sizeof sum);
}

static void what_is_not_finite_or_too_large_is_refused_and_changes_nothing(void **unused) {
    (void)unused;
    check_lines("refused", 6, check_refused);
}

static void a_million_additions_need_no_carry(void **unused) {
    (void)unused;
    mdp_exact sum = {{0}};
    double largest = (2 - 0x1p-52) * 0x1p20;
    for (int i = 0; i < 1000000; i++) assert_true(mdp_exact_add(&sum, i % 3 ? largest : -0x1p-107));
    /* 666,666 times `largest` and 333,334 times -2^-107, in integers of 2^-107: too long for a double, not for this. */
    mdp_exact again = {{0}};
    mdp_exact part = {{0}};
    assert_true(mdp_exact_add(&part, largest));
    for (int i = 0; i < MDP_LIMBS; i++) again.limb[i] += 666666 * part.limb[i];
    memset(&part, 0, sizeof part);
    assert_true(mdp_exact_add(&part, -0x1p-107));
    for (int i = 0; i < MDP_LIMBS; i++) again.limb[i] += 333334 * part.limb[i];
    mdp_exact_normalise(&sum);
    mdp_exact_normalise(&again);
    assert_memory_equal(&sum, &again, sizeof sum);
    assert_true(mdp_exact_fits(&sum));
}

static void check_round30(char *const *word, int n_word) {
    assert_int_equal(n_word, 3);
    assert_same_double(mdp_round30(strtod(word[1], NULL)), strtod(word[2], NULL));
}

static void rounding_to_30_bits_equals_that_of_fractions(void **unused) {
    (void)unused;
    check_lines("round30", 75, check_round30);
    assert_true(isnan(mdp_round30(NAN)));
    assert_true(mdp_round30(-INFINITY) == -INFINITY);
}

static void check_random(char *const *word, int n_word) {
    assert_int_equal(n_word, 5);
    uint64_t bits =
        mdp_random_bits(strtoull(word[1], NULL, 10), strtoull(word[2], NULL, 10), strtoull(word[3], NULL, 10));
    assert_int_equal(bits, strtoull(word[4], NULL, 10));
}

static void random_bits_equal_those_of_python(void **unused) {
    (void)unused;
    check_lines("random", 25, check_random);
}

/* Chi-squared of n draws in n_bin bins; expectation n_bin - 1, standard deviation sqrt(2 (n_bin - 1)). */
static double chi_squared(const int *bin, int n_bin, int n) {
    double expected = (double)n / n_bin, sum = 0;
    for (int i = 0; i < n_bin; i++) sum += (bin[i] - expected) * (bin[i] - expected) / expected;
    return sum;
}

/* Neighbours in seed, stream and index: pairs of draws fill a 16 x 16 grid evenly (5 standard deviations). */
static void neighbouring_random_numbers_are_uniform_and_independent(void **unused) {
    (void)unused;
    enum { N = 100000 };
    const uint64_t step[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    for (int kind = 0; kind < 3; kind++) {
        int bin[256] = {0};
        double mean = 0;
        for (uint64_t i = 0; i < N; i++) {
            double u = mdp_random_uniform(7 + i * step[kind][0], i * step[kind][1], i * step[kind][2]);
            double v =
                mdp_random_uniform(7 + (i + 1) * step[kind][0], (i + 1) * step[kind][1], (i + 1) * step[kind][2]);
            assert_true(u >= 0 && u < 1);
            bin[(int)(u * 16) * 16 + (int)(v * 16)]++;
            mean += u / N;
        }
        assert_true(fabs(mean - 0.5) < 5 * sqrt(1.0 / 12 / N));
        assert_true(fabs(chi_squared(bin, 256, N) - 255) < 5 * sqrt(2 * 255.0));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_and_limbs_equal_those_of_fractions),
        cmocka_unit_test(sums_of_limbs_beyond_the_range_of_an_addend_are_right),
        cmocka_unit_test(what_is_not_finite_or_too_large_is_refused_and_changes_nothing),
        cmocka_unit_test(a_million_additions_need_no_carry),
        cmocka_unit_test(rounding_to_30_bits_equals_that_of_fractions),
        cmocka_unit_test(random_bits_equal_those_of_python),
        cmocka_unit_test(neighbouring_random_numbers_are_uniform_and_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
