/* Values to stored types: against numpy and ml_dtypes on random numbers, ties and limits; block scales by their rules.
 */
#include "mdp/narrow.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static unsigned char *fixture = NULL;
static int64_t n_value = 0;

static int load(void **state) {
    (void)state;
    int64_t n_byte;
    char *text = NULL;
    if (mdp_file_read_all(MDP_TEST_FIXTURES "/base/narrow.bin", 1 << 20, &text, &n_byte).code != MDP_OK) return 1;
    fixture = (unsigned char *)text;
    memcpy(&n_value, fixture, sizeof n_value);
    return n_byte == 8 + n_value * (8 + 2 + 2 + 1 + 1) ? 0 : 1;
}

static int unload(void **state) {
    (void)state;
    mdp_free(fixture);
    return 0;
}

static void codes_are(mdp_dtype type, int64_t first, int n_byte, bool clipped) {
    for (int64_t i = 0; i < n_value; i++) {
        double value;
        unsigned char code[2] = {0};
        memcpy(&value, fixture + 8 + 8 * i, sizeof value);
        mdp_narrow(type, &value, 1, code);
        if (memcmp(code, fixture + first + n_byte * i, (size_t)n_byte) != 0)
            fail_msg("%s of %.17g (number %lld, %s) is %02x%02x", mdp_dtype_name(type), value, (long long)i,
                     clipped ? "clipped" : "as it is", code[1], code[0]);
    }
}

static void values_are_rounded_once_to_nearest_even(void **state) {
    (void)state;
    int64_t first = 8 + 8 * n_value;
    codes_are(MDP_F16, first, 2, false);
    codes_are(MDP_BF16, first + 2 * n_value, 2, false);
    codes_are(MDP_F8_E4M3, first + 4 * n_value, 1, true);
    codes_are(MDP_F4, first + 5 * n_value, 1, true);
}

/* Every value of a type becomes its own code again. */
static void what_widens_narrows_back(void **state) {
    (void)state;
    static const mdp_dtype types[] = {MDP_BF16, MDP_F16};
    for (int t = 0; t < 2; t++) {
        for (unsigned code = 0; code < 65536; code++) {
            unsigned char stored[2] = {(unsigned char)(code & 255), (unsigned char)(code >> 8)}, back[2];
            float wide;
            mdp_widen(types[t], stored, 1, &wide);
            double value = (double)wide;
            mdp_narrow(types[t], &value, 1, back);
            if (!isnan(wide)) assert_memory_equal(back, stored, 2);
        }
    }
    for (unsigned code = 0; code < 256; code++) {
        unsigned char stored = (unsigned char)code, back;
        float wide;
        mdp_widen(MDP_F8_E4M3, &stored, 1, &wide);
        double value = (double)wide;
        mdp_narrow(MDP_F8_E4M3, &value, 1, &back);
        assert_int_equal(back, stored);
    }
}

static void two_small_codes_share_a_byte(void **state) {
    (void)state;
    const double values[3] = {1.0, -6.0, 0.5};
    unsigned char stored[2];
    mdp_narrow(MDP_F4, values, 3, stored);
    assert_int_equal(stored[0], 0x2 | 0xf << 4);
    assert_int_equal(stored[1], 0x1);
}

static void scales_follow_their_rules(void **state) {
    (void)state;
    unsigned char stored[4];
    float wide;
    assert_true(mdp_block_scale(MDP_F8_E4M3, MDP_F32, 3.5F, stored) == 3.5F / 448.0F);
    memcpy(&wide, stored, sizeof wide);
    assert_true(wide == 3.5F / 448.0F);
    assert_true(mdp_block_scale(MDP_F8_E4M3, MDP_F32, 0.0F, stored) == 1.0F);
    assert_true(mdp_block_scale(MDP_F8_E4M3, MDP_F8_E8M0, 448.0F, stored) == 1.0F);
    assert_int_equal(stored[0], 127);
    assert_true(mdp_block_scale(MDP_F8_E4M3, MDP_F8_E8M0, 449.0F, stored) == 2.0F);
    assert_true(mdp_block_scale(MDP_F4, MDP_U8, 6.0F, stored) == 1.0F);
    assert_true(mdp_block_scale(MDP_F4, MDP_U8, 7.9F, stored) == 1.0F); /* cut off at 6 */
    assert_true(mdp_block_scale(MDP_F4, MDP_U8, 8.0F, stored) == 2.0F);
    assert_true(mdp_block_scale(MDP_F4, MDP_U8, 1e-45F, stored) == ldexpf(1.0F, -127));
    assert_int_equal(stored[0], 0);
    const double values[2][3] = {{1.0, -9.0, 100.0}, {2.0, 3.0, 100.0}};
    float largest = 0.0F;
    mdp_block_largest(&values[0][0], 2, 2, 3, &largest);
    assert_true(largest == 9.0F);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_rounded_once_to_nearest_even), cmocka_unit_test(what_widens_narrows_back),
        cmocka_unit_test(two_small_codes_share_a_byte), cmocka_unit_test(scales_follow_their_rules)};
    return cmocka_run_group_tests(tests, load, unload);
}
