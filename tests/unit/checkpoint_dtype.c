/* Number formats: every f16 and bf16 code against the definition of the formats, codes of fewer bits against ml_dtypes,
 * and safetensors' table of names. */
#include "mdp/checkpoint.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#define N_CODE 65536

/* The value of a 16-bit float by its definition: sign, biased exponent, mantissa. */
static double value_of(unsigned code, int n_exponent, int n_mantissa) {
    int bias = (1 << (n_exponent - 1)) - 1, largest = (1 << n_exponent) - 1;
    double sign = code >> 15 ? -1.0 : 1.0;
    int exponent = (int)(code >> n_mantissa) & largest;
    double mantissa = (double)(code & ((1u << n_mantissa) - 1));
    if (exponent == largest) return mantissa > 0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - n_mantissa);
    return sign * ldexp(mantissa + (double)(1 << n_mantissa), exponent - bias - n_mantissa);
}

static void every_code_widens(mdp_dtype type, int n_exponent, int n_mantissa) {
    static unsigned char stored[2 * N_CODE + 1]; /* from byte 1 on: sources need not be aligned */
    static float out[N_CODE];
    for (unsigned code = 0; code < N_CODE; code++) {
        stored[1 + 2 * code] = (unsigned char)(code & 255);
        stored[2 + 2 * code] = (unsigned char)(code >> 8);
    }
    mdp_widen(type, stored + 1, N_CODE, out);
    for (unsigned code = 0; code < N_CODE; code++) {
        double expected = value_of(code, n_exponent, n_mantissa);
        if (isnan(expected)) {
            assert_true(isnan(out[code]));
        } else {
            assert_true((double)out[code] == expected);
        }
        assert_int_equal(signbit(out[code]) != 0, code >> 15);
    }
}

static void every_f16_code_widens_exactly(void **state) {
    (void)state;
    every_code_widens(MDP_F16, 5, 10);
}

static void every_bf16_code_widens_exactly(void **state) {
    (void)state;
    every_code_widens(MDP_BF16, 8, 7);
}

/* Codes of few bits against the table that ml_dtypes made (fixtures/base/make-codes). */
static void every_code_of_few_bits_has_the_value_of_ml_dtypes(void **state) {
    (void)state;
    static const struct {
        mdp_dtype type;
        int n;
    } tables[] = {{MDP_F8_E4M3, 256}, {MDP_F8_E8M0, 256}, {MDP_F4, 16}};
    FILE *file = fopen(MDP_TEST_FIXTURES "/base/codes.f32", "rb");
    assert_non_null(file);
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        unsigned char stored[257];
        float expected[256], out[256];
        int n = tables[t].n;
        bool pairs = tables[t].type == MDP_F4; /* two codes in a byte, the lower half first */
        for (int i = 0; i < n; i++) stored[1 + i] = (unsigned char)(pairs ? (2 * i & 15) | (2 * i + 1) << 4 : i);
        assert_int_equal(fread(expected, sizeof *expected, (size_t)n, file), n);
        mdp_widen(tables[t].type, stored + 1, n, out);
        for (int i = 0; i < n; i++) {
            if (isnan(expected[i]))
                assert_true(isnan(out[i]));
            else
                assert_memory_equal(&out[i], &expected[i], sizeof out[i]);
        }
    }
    fclose(file);
}

static void f32_is_copied_from_any_address(void **state) {
    (void)state;
    const float values[3] = {1.5f, -0.0f, 0x1p-149f};
    unsigned char stored[1 + sizeof values];
    float out[3];
    memcpy(stored + 1, values, sizeof values);
    mdp_widen(MDP_F32, stored + 1, 3, out);
    assert_memory_equal(out, values, sizeof values);
}

/* Vector code has a head and a tail: nothing beyond n values may be written for any length. */
static void widening_writes_n_values(void **state) {
    (void)state;
    const mdp_dtype types[5] = {MDP_F32, MDP_F16, MDP_BF16, MDP_F8_E4M3, MDP_F4};
    unsigned char stored[4 * 67] = {0};
    for (int t = 0; t < 5; t++) {
        for (int n = 0; n < 67; n++) {
            float out[67];
            for (int i = 0; i < 67; i++) out[i] = 7.0f;
            mdp_widen(types[t], stored, n, out);
            for (int i = 0; i < 67; i++) assert_true(out[i] == (i < n ? 0.0f : 7.0f));
        }
    }
}

/* Names, sizes and order of safetensors' own enumeration. */
static void formats_are_those_of_safetensors(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int bits;
    } expected[] = {{"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
                    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
                    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
                    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
    assert_int_equal(MDP_N_DTYPE, (int)(sizeof expected / sizeof *expected));
    for (int i = 0; i < MDP_N_DTYPE; i++) {
        mdp_dtype found;
        assert_string_equal(mdp_dtype_name((mdp_dtype)i), expected[i].name);
        assert_int_equal(mdp_dtype_bits((mdp_dtype)i), expected[i].bits);
        assert_true(mdp_dtype_find(expected[i].name, &found));
        assert_int_equal(found, i);
        assert_int_equal(mdp_dtype_widens((mdp_dtype)i), i == MDP_F16 || i == MDP_BF16 || i == MDP_F32);
    }
    mdp_dtype unknown;
    assert_false(mdp_dtype_find("f32", &unknown));
    assert_false(mdp_dtype_find("", &unknown));
}

static void sizes_are_whole_bytes_within_64_bits(void **state) {
    (void)state;
    int64_t n_byte;
    assert_true(mdp_dtype_bytes(MDP_F32, 0, NULL, &n_byte));
    assert_int_equal(n_byte, 4);
    assert_true(mdp_dtype_bytes(MDP_F4, 2, (const int64_t[]){3, 2}, &n_byte));
    assert_int_equal(n_byte, 3);
    assert_false(mdp_dtype_bytes(MDP_F4, 1, (const int64_t[]){3}, &n_byte));
    assert_true(mdp_dtype_bytes(MDP_BF16, 2, (const int64_t[]){0, 5}, &n_byte));
    assert_int_equal(n_byte, 0);
    assert_false(mdp_dtype_bytes(MDP_U8, 2, (const int64_t[]){INT64_C(1) << 40, INT64_C(1) << 40}, &n_byte));
    assert_false(mdp_dtype_bytes(MDP_F64, 1, (const int64_t[]){INT64_C(1) << 60}, &n_byte));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_code_widens_exactly),
        cmocka_unit_test(every_bf16_code_widens_exactly),
        cmocka_unit_test(every_code_of_few_bits_has_the_value_of_ml_dtypes),
        cmocka_unit_test(f32_is_copied_from_any_address),
        cmocka_unit_test(widening_writes_n_values),
        cmocka_unit_test(formats_are_those_of_safetensors),
        cmocka_unit_test(sizes_are_whole_bytes_within_64_bits),
    };
    return cmocka_run_group_tests_name("checkpoint_dtype", tests, NULL, NULL);
}
