/* The row kernels against long double arithmetic, libm's double exp, and, bit for bit, against a plain scalar spelling
 * of the documented order: every vectorised version must equal it at every length and alignment. */
#include "mdp/linalg.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LANES 16
#define LONGEST 2100

static float value(uint64_t seed, int64_t i) {
    return (float)(4.0 * (double)(int64_t)((seed * 2862933555777941757U + (uint64_t)i * 3935559000370003845U) >> 11) /
                       9007199254740992.0 -
                   2.0);
}

static void fill(uint64_t seed, int64_t n, float *x) {
    for (int64_t i = 0; i < n; i++) x[i] = value(seed, i);
}

/* The order of lanes.h, spelled without lanes. */
static double plain_tree(const double *lane, int first, int step) {
    if (step == LANES) return lane[first];
    return plain_tree(lane, first, 2 * step) + plain_tree(lane, first + step, 2 * step);
}

static double plain_dot(const float *a, const float *b, int64_t n) {
    double lane[LANES] = {0.0};
    for (int64_t i = 0; i < n; i++) lane[i % LANES] += (double)a[i] * (double)b[i];
    return plain_tree(lane, 0, 1);
}

static void dot_has_one_order_at_every_length_and_alignment(void **state) {
    (void)state;
    static float a[LONGEST + 32], b[LONGEST + 32];
    for (int64_t n = 0; n <= LONGEST; n += n < 70 ? 1 : 97) {
        for (int offset = 0; offset < 17; offset += 3) {
            fill(1, n, a + offset);
            fill(2, n, b + 5);
            double expected = plain_dot(a + offset, b + 5, n), found = mdp_dot(a + offset, b + 5, n);
            assert_memory_equal(&expected, &found, sizeof expected);
            expected = plain_dot(b + 5, b + 5, n);
            found = mdp_sum_squares(b + 5, n);
            assert_memory_equal(&expected, &found, sizeof expected);
            const float *const rows[MDP_DOT_ROWS] = {b + 5, a + offset, b + 6, a};
            double several[MDP_DOT_ROWS];
            mdp_dot_rows(a + offset, rows, n, several);
            for (int r = 0; r < MDP_DOT_ROWS; r++) {
                expected = plain_dot(a + offset, rows[r], n);
                assert_memory_equal(&expected, &several[r], sizeof expected);
            }
        }
    }
}

static void sum_and_largest_of_absolute_values(void **state) {
    (void)state;
    static float a[LONGEST + 32], size[LONGEST], ones[LONGEST];
    for (int64_t i = 0; i < LONGEST; i++) ones[i] = 1.0F;
    for (int64_t n = 0; n <= LONGEST; n += n < 70 ? 1 : 97) {
        for (int offset = 0; offset < 17; offset += 5) {
            float largest = 0.0F;
            fill(6, n, a + offset);
            for (int64_t i = 0; i < n; i++) {
                size[i] = fabsf(a[offset + i]);
                largest = size[i] > largest ? size[i] : largest;
            }
            double expected = plain_dot(size, ones, n), found = mdp_sum_abs(a + offset, n);
            assert_memory_equal(&expected, &found, sizeof expected);
            assert_true(mdp_row_moments(ones, a + offset, n).max_abs_y == largest);
            if (n == 0) continue;
            a[offset + n - 1] = -7.0F; /* the last one, and negative */
            assert_true(mdp_row_moments(ones, a + offset, n).max_abs_y == 7.0F);
        }
    }
}

/* The same bits as one sum after the other. */
static void moments_are_the_sums_of_their_own_loops(void **state) {
    (void)state;
    static float a[LONGEST + 32], b[LONGEST + 32];
    for (int64_t n = 0; n <= LONGEST; n += n < 70 ? 1 : 97) {
        for (int offset = 0; offset < 17; offset += 3) {
            fill(7, n, a + offset);
            fill(8, n, b + 5);
            mdp_moments found = mdp_row_moments(a + offset, b + 5, n);
            double xx = plain_dot(a + offset, a + offset, n), xy = plain_dot(a + offset, b + 5, n);
            double yy = plain_dot(b + 5, b + 5, n);
            assert_memory_equal(&xx, &found.xx, sizeof xx);
            assert_memory_equal(&xy, &found.xy, sizeof xy);
            assert_memory_equal(&yy, &found.yy, sizeof yy);
        }
    }
}

static void rows_are_added_column_by_column_in_order(void **state) {
    (void)state;
    enum { ROWS = 37, LD = 111 };
    static float y[ROWS * LD];
    fill(9, ROWS * LD, y);
    for (int64_t n = 1; n <= LD; n++) {
        double sum[LD + 1], expected[LD + 1];
        for (int64_t j = 0; j <= n; j++) {
            sum[j] = expected[j] = 0.1 * (double)j;
            for (int64_t i = 0; i < ROWS && j < n; i++) expected[j] += (double)y[i * LD + j];
        }
        mdp_add_rows(y, LD, ROWS, n, sum);
        assert_memory_equal(sum, expected, (size_t)(n + 1) * sizeof *sum);
    }
}

static void nan_and_infinity_are_found_wherever_they_are(void **state) {
    (void)state;
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    static float x[LONGEST];
    for (int64_t n = 0; n <= 70; n++) {
        for (int64_t i = 0; i < n; i++) x[i] = i % 2 == 0 ? -3.4e38F : 1e-45F;
        assert_true(mdp_all_finite(x, n));
        for (int64_t i = 0; i < n; i++) {
            float before = x[i];
            x[i] = bad[i % 4];
            assert_false(mdp_all_finite(x, n));
            x[i] = before;
        }
    }
}

static void dot_is_the_sum_of_products(void **state) {
    (void)state;
    static float a[LONGEST], b[LONGEST];
    fill(3, LONGEST, a);
    fill(4, LONGEST, b);
    long double sum = 0.0L, size = 0.0L;
    for (int64_t i = 0; i < LONGEST; i++) {
        sum += (long double)a[i] * b[i];
        size += fabsl((long double)a[i] * b[i]);
    }
    assert_true(fabsl(sum - mdp_dot(a, b, LONGEST)) < 1e-15L * size);
}

static void rms_norm_is_the_formula_and_may_work_in_place(void **state) {
    (void)state;
    static float x[LONGEST], weight[LONGEST], y[LONGEST];
    for (int64_t n = 1; n <= LONGEST; n += 131) {
        fill(5, n, x);
        fill(6, n, weight);
        long double sum = 0.0L;
        for (int64_t i = 0; i < n; i++) sum += (long double)x[i] * x[i];
        mdp_rms_norm(x, weight, 1e-5, n, y);
        for (int64_t i = 0; i < n; i++) {
            long double expected = x[i] / sqrtl(sum / n + 1e-5L) * weight[i];
            assert_true(fabsl(expected - y[i]) <= 2.5e-7L * fabsl(expected));
        }
        mdp_rms_norm(x, weight, 1e-5, n, x);
        assert_memory_equal(x, y, (size_t)n * sizeof *x);
    }
}

static void axpy_and_max(void **state) {
    (void)state;
    static float x[LONGEST], y[LONGEST], before[LONGEST];
    for (int64_t n = 1; n <= LONGEST; n += n < 40 ? 1 : 173) {
        fill(7, n, x);
        fill(8, n, y);
        memcpy(before, y, sizeof y);
        mdp_axpy(0.37F, x, n, y);
        for (int64_t i = 0; i < n; i++) {
            volatile float product = 0.37F * x[i];
            float expected = before[i] + product;
            assert_memory_equal(&expected, &y[i], sizeof expected);
        }
        for (int64_t at = 0; at < n; at += 1 + n / 5) {
            fill(9, n, x);
            x[at] = 3.0F;
            assert_true(mdp_max(x, n) == 3.0F);
            for (int64_t i = 0; i < n; i++) x[i] = -fabsf(x[i]) - 1.0F;
            x[at] = -0.5F;
            assert_true(mdp_max(x, n) == -0.5F);
        }
    }
}

static void exp_is_within_2e_7_of_double_exp(void **state) {
    (void)state;
    double worst = 0.0;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 641) {
        uint32_t pattern = (uint32_t)bits;
        float x;
        memcpy(&x, &pattern, sizeof x);
        float found = mdp_exp(x);
        if (isnan(x)) {
            assert_true(isnan(found));
            continue;
        }
        double expected = exp((double)x);
        if (expected > 3.4028235677973366e38) { /* rounds to infinity */
            assert_true(isinf(found) || found > 3.4e38F);
        } else if (expected < 1.1754943508222875e-38) { /* below the normal numbers: one step of their grid */
            assert_true(fabs(expected - (double)found) <= 1.5e-45);
        } else {
            double error = fabs((double)found - expected) / expected;
            worst = error > worst ? error : worst;
        }
    }
    print_message("exp: largest relative error %.3g\n", worst);
    assert_true(worst < 2e-7);
    assert_true(mdp_exp(0.0F) == 1.0F);
    assert_true(mdp_exp(-INFINITY) == 0.0F);
    assert_true(isinf(mdp_exp(INFINITY)));
    assert_true(mdp_exp(-104.0F) == 0.0F);
}

static void exp_shift_equals_exp_one_by_one_bit_for_bit(void **state) {
    (void)state;
    static float x[LONGEST + 8], y[LONGEST + 8];
    for (int64_t n = 0; n <= LONGEST; n += n < 40 ? 1 : 211) {
        for (int offset = 0; offset < 8; offset += 3) {
            double lane[LANES] = {0.0};
            for (int64_t i = 0; i < n; i++) {
                x[offset + i] = 60.0F * value(10, i);
                y[i] = mdp_exp(x[offset + i] - 1.5F);
                lane[i % LANES] += (double)y[i];
            }
            double expected = plain_tree(lane, 0, 1), found = mdp_exp_shift(x + offset, 1.5F, n);
            assert_memory_equal(&expected, &found, sizeof expected);
            assert_memory_equal(x + offset, y, (size_t)n * sizeof *x);
        }
    }
}

static long double activated(mdp_activation_kind kind, long double x) {
    switch (kind) {
    case MDP_SILU:
        return x / (1.0L + expl(-x));
    case MDP_GELU:
        return 0.5L * x * erfcl(-x * sqrtl(0.5L));
    case MDP_GELU_TANH:
        return 0.5L * x * (1.0L + tanhl(sqrtl(2.0L / acosl(-1.0L)) * (x + 0.044715L * x * x * x)));
    case MDP_SWIGLU_CLAMPED:
        return x / (1.0L + expl(-1.702L * x));
    }
    return NAN;
}

static void a_clamped_gate_is_its_formula(void **state) {
    (void)state;
    static float h[LONGEST], u[LONGEST], before[LONGEST];
    for (int64_t i = 0; i < LONGEST; i++) {
        h[i] = before[i] = 9.0F * value(11, i);
        u[i] = 9.0F * value(12, i);
    }
    const mdp_activation clamped = {.kind = MDP_SWIGLU_CLAMPED, .alpha = 1.702F, .limit = 5.0F};
    mdp_gate(&clamped, u, LONGEST, h);
    for (int64_t i = 0; i < LONGEST; i++) {
        long double up = fmaxl(fminl(u[i], 5.0L), -5.0L) + 1.0L;
        long double expected = activated(MDP_SWIGLU_CLAMPED, fminl(before[i], 5.0L)) * up;
        assert_true(fabsl(expected - h[i]) <= 2e-6L * fabsl(expected) + 1e-6L);
    }
}

static void a_layer_norm_has_mean_and_deviation_taken_out(void **state) {
    (void)state;
    static float x[LONGEST], w[LONGEST], b[LONGEST], y[LONGEST];
    fill(13, LONGEST, w);
    fill(14, LONGEST, b);
    for (int64_t n = 1; n <= LONGEST; n = 2 * n + 1) {
        long double mean = 0.0L, variance = 0.0L;
        for (int64_t i = 0; i < n; i++) x[i] = 3.0F + value(15, i);
        for (int64_t i = 0; i < n; i++) mean += x[i] / (long double)n;
        for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / (long double)n;
        mdp_layer_norm(x, w, b, 1e-5, n, y);
        for (int64_t i = 0; i < n; i++) {
            long double expected = (x[i] - mean) / sqrtl(variance + 1e-5L) * w[i] + b[i];
            assert_true(fabsl(expected - y[i]) <= 1e-6L * (1.0L + fabsl(expected)));
        }
    }
}

static void gates_are_their_formulas(void **state) {
    (void)state;
    static float h[LONGEST], u[LONGEST], before[LONGEST];
    const mdp_activation all[] = {{.kind = MDP_SILU}, {.kind = MDP_GELU}, {.kind = MDP_GELU_TANH}};
    for (int a = 0; a < 3; a++) {
        for (int64_t i = 0; i < LONGEST; i++) h[i] = before[i] = 9.0F * value(11, i);
        fill(12, LONGEST, u);
        mdp_gate(&all[a], u, LONGEST, h);
        for (int64_t i = 0; i < LONGEST; i++) {
            long double act = activated(all[a].kind, before[i]);
            assert_true(fabsl(act * u[i] - h[i]) <= 2e-6L * fabsl(act * u[i]) + 1e-7L);
        }
        /* one at a time: the scalar remainder of the loops gives the same bits */
        for (int64_t i = 0; i < 100; i++) {
            float one = before[i];
            mdp_gate(&all[a], &u[i], 1, &one);
            assert_memory_equal(&one, &h[i], sizeof one);
        }
    }
}

static void rope_rotates_halves_or_pairs(void **state) {
    (void)state;
    const float cosine[3] = {0.0F, 1.0F, 0.6F}, sine[3] = {1.0F, 0.0F, 0.8F};
    float half[7] = {1, 2, 3, 4, 5, 6, 7}, pair[7] = {1, 2, 3, 4, 5, 6, 7};
    const float half_expected[6] = {-4, 2, 3 * 0.6F - 6 * 0.8F, 1, 5, 6 * 0.6F + 3 * 0.8F};
    const float pair_expected[6] = {-2, 1, 3, 4, 5 * 0.6F - 6 * 0.8F, 6 * 0.6F + 5 * 0.8F};
    mdp_rope_rotate(MDP_ROPE_HALF, cosine, sine, 3, half);
    mdp_rope_rotate(MDP_ROPE_PAIR, cosine, sine, 3, pair);
    for (int i = 0; i < 6; i++) {
        assert_true(fabsf(half[i] - half_expected[i]) < 1e-6F);
        assert_true(fabsf(pair[i] - pair_expected[i]) < 1e-6F);
    }
    assert_true(half[6] == 7.0F && pair[6] == 7.0F);
}

static void rotation_has_the_same_bits_at_every_width(void **state) {
    (void)state;
    static float cosine[64], sine[64], whole[128], single[128];
    for (int i = 0; i < 64; i++) {
        cosine[i] = cosf((float)i);
        sine[i] = sinf((float)i);
    }
    fill(13, 128, whole);
    memcpy(single, whole, sizeof whole);
    mdp_rope_rotate(MDP_ROPE_PAIR, cosine, sine, 64, whole);
    for (int i = 0; i < 64; i++) mdp_rope_rotate(MDP_ROPE_PAIR, cosine + i, sine + i, 1, single + 2 * i);
    assert_memory_equal(whole, single, sizeof whole);
    fill(13, 128, whole);
    fill(13, 128, single);
    mdp_rope_rotate(MDP_ROPE_HALF, cosine, sine, 64, whole);
    for (int i = 0; i < 64; i++) {
        float two[2] = {single[i], single[i + 64]};
        mdp_rope_rotate(MDP_ROPE_HALF, cosine + i, sine + i, 1, two);
        assert_memory_equal(&whole[i], &two[0], sizeof(float));
        assert_memory_equal(&whole[i + 64], &two[1], sizeof(float));
    }
}

/* The nearest of the two neighbours with 8 bits, the even one at a tie, by arithmetic of libm. */
static float nearest_bf16(float x) {
    int exponent;
    if (!isfinite(x) || x == 0.0F) return x;
    double fraction = frexp((double)x, &exponent);
    int lost = exponent < -125 ? -125 - exponent : 0; /* bits that a number below the normal ones has not */
    return (float)ldexp(nearbyint(ldexp(fraction, 8 - lost)), exponent - 8 + lost);
}

/* All bf16 numbers, those half-way between them, and their neighbours in f32. */
static void rounding_to_bf16_is_to_nearest_even(void **state) {
    (void)state;
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { N = 6 * 65536 };
    float *x = malloc(N * sizeof *x);
    uint16_t *found = malloc((N + 1) * sizeof *found);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t bits = (i / 6) << 16 | lower[i % 6];
        memcpy(&x[i], &bits, sizeof bits);
    }
    found[N] = 4711;
    mdp_round_bf16(x, N, found);
    for (int64_t i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)found[i] << 16;
        float back, expected = nearest_bf16(x[i]);
        memcpy(&back, &bits, sizeof back);
        assert_true(isnan(x[i]) ? isnan(back) : memcmp(&back, &expected, sizeof back) == 0);
    }
    assert_int_equal(found[N], 4711);
    free(found);
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dot_has_one_order_at_every_length_and_alignment),
        cmocka_unit_test(sum_and_largest_of_absolute_values),
        cmocka_unit_test(moments_are_the_sums_of_their_own_loops),
        cmocka_unit_test(rows_are_added_column_by_column_in_order),
        cmocka_unit_test(nan_and_infinity_are_found_wherever_they_are),
        cmocka_unit_test(dot_is_the_sum_of_products),
        cmocka_unit_test(rms_norm_is_the_formula_and_may_work_in_place),
        cmocka_unit_test(rounding_to_bf16_is_to_nearest_even),
        cmocka_unit_test(axpy_and_max),
        cmocka_unit_test(exp_is_within_2e_7_of_double_exp),
        cmocka_unit_test(exp_shift_equals_exp_one_by_one_bit_for_bit),
        cmocka_unit_test(gates_are_their_formulas),
        cmocka_unit_test(a_clamped_gate_is_its_formula),
        cmocka_unit_test(a_layer_norm_has_mean_and_deviation_taken_out),
        cmocka_unit_test(rope_rotates_halves_or_pairs),
        cmocka_unit_test(rotation_has_the_same_bits_at_every_width),
    };
    return cmocka_run_group_tests_name("linalg_rows", tests, NULL, NULL);
}
