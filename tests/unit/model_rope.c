/* Rope against vectors that HF transformers made (tests/golden/make-rope-vectors) and published values. */
#include "model/config.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static float from_bits(const json_t *value) {
    uint32_t bits = (uint32_t)json_integer_value(value);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Distance in units of the last place. */
static int64_t ulps(float a, float b) {
    int32_t x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    int64_t wide_x = x < 0 ? (int64_t)INT32_MIN - x : x, wide_y = y < 0 ? (int64_t)INT32_MIN - y : y;
    return wide_x > wide_y ? wide_x - wide_y : wide_y - wide_x;
}

static mdp_status read_rope(const json_t *json, mdp_rope *rope) {
    const mdp_family *family;
    mdp_config config;
    MDP_TRY(mdp_family_find("mixtral", "config.json", &family));
    MDP_TRY(mdp_config_read(json, family, "config.json", &config));
    return mdp_rope_read(json, family, &config, "config.json", rope);
}

/* The library's f32 pow is good to 1 unit in the last place, ours is rounded right; almost all values are equal. An
 * angle then differs by position times that, and so do cos and sin. */
static void check_case(const json_t *test, int64_t *n_value, int64_t *n_other) {
    mdp_rope rope = {0};
    mdp_status status = read_rope(json_object_get(test, "config"), &rope);
    const char *name = json_string_value(json_object_get(test, "name"));
    if (status.code != MDP_OK) fail_msg("%s: %s", name, status.text);
    const json_t *expected = json_object_get(test, "inv_freq");
    assert_int_equal(rope.n_pair, json_array_size(expected));
    for (int64_t i = 0; i < rope.n_pair; i++) {
        float theirs = from_bits(json_array_get(expected, (size_t)i)), ours = (float)rope.frequency[i];
        if (ulps(ours, theirs) > 2) fail_msg("%s: frequency %d is %.9g, expected %.9g", name, (int)i, ours, theirs);
        *n_value += 1;
        *n_other += ours != theirs;
    }
    assert_true(fabs(rope.attention_factor - json_real_value(json_object_get(test, "attention_factor"))) < 1e-12);
    size_t at;
    json_t *angle;
    json_array_foreach(json_object_get(test, "angles"), at, angle) {
        static float cosine[256], sine[256];
        int64_t position = json_integer_value(json_object_get(angle, "position"));
        mdp_rope_angles(&rope, json_integer_value(json_object_get(angle, "length")), position, cosine, sine);
        for (int64_t i = 0; i < rope.n_pair; i++) {
            float theirs = from_bits(json_array_get(json_object_get(angle, "cos"), (size_t)i));
            float theirs_sine = from_bits(json_array_get(json_object_get(angle, "sin"), (size_t)i));
            double allowed = 2e-7 + 2.4e-7 * (double)position * rope.frequency[i];
            if (fabs((double)cosine[i] - (double)theirs) > allowed ||
                fabs((double)sine[i] - (double)theirs_sine) > allowed) {
                fail_msg("%s: position %d, pair %d: cos %.9g sin %.9g, expected %.9g %.9g", name, (int)position, (int)i,
                         cosine[i], sine[i], theirs, theirs_sine);
            }
        }
    }
    mdp_free(rope.frequency);
}

static void every_type_equals_the_library(void **state) {
    (void)state;
    json_error_t error;
    json_t *cases = json_load_file(MDP_TEST_FIXTURES "/rope.json", 0, &error);
    assert_non_null(cases);
    int64_t n_value = 0, n_other = 0;
    size_t at;
    json_t *test;
    json_array_foreach(cases, at, test) check_case(test, &n_value, &n_other);
    assert_true(json_array_size(cases) >= 20);
    print_message("rope: %d of %d frequencies differ in the last bits\n", (int)n_other, (int)n_value);
    assert_true(20 * n_other < n_value);
    json_decref(cases);
}

static json_t *config_with(const char *rope) {
    char text[1000];
    (void)snprintf(text, sizeof text,
                   "{\"hidden_size\": 256, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 64, "
                   "\"max_position_embeddings\": 163840, \"vocab_size\": 9, %s}",
                   rope);
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    return json;
}

typedef struct published {
    const char *rope;
    double attention_factor;
    int n, pair[8];
    double frequency[8];
} published;

static void published_yarn_values(void **state) {
    (void)state;
    const published all[] = {
        {"\"rope_theta\": 10000, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, "
         "\"original_max_position_embeddings\": 4096, \"beta_fast\": 32, \"beta_slow\": 1, \"mscale\": 1.0, "
         "\"mscale_all_dim\": 1.0}",
         1.0,
         8,
         {0, 1, 8, 11, 16, 20, 24, 31},
         {1, 0.749894209, 0.1, 0.0390069266, 0.0055, 0.000790569415, 2.5e-05, 3.33380358e-06}},
        {"\"rope_theta\": 150000, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 32, \"truncate\": false, "
         "\"original_max_position_embeddings\": 4096}",
         1.3465735902799727,
         8,
         {0, 1, 8, 9, 12, 16, 24, 31},
         {1, 0.689044306, 0.0508132748, 0.0317056962, 0.00679495949, 0.000456483919, 4.09997848e-06, 3.02351143e-07}},
    };
    for (size_t c = 0; c < sizeof all / sizeof all[0]; c++) {
        json_t *json = config_with(all[c].rope);
        mdp_rope rope = {0};
        if (read_rope(json, &rope).code != MDP_OK || rope.frequency == NULL) {
            fail_msg("case %zu was refused", c);
            return;
        }
        assert_true(fabs(rope.attention_factor - all[c].attention_factor) < 1e-12);
        for (int i = 0; i < all[c].n; i++) {
            double expected = all[c].frequency[i];
            assert_true(fabs(rope.frequency[all[c].pair[i]] - expected) < 3e-7 * expected);
        }
        mdp_free(rope.frequency);
        json_decref(json);
    }
}

static void bad_settings_are_named(void **state) {
    (void)state;
    const struct {
        const char *rope, *sentence;
    } all[] = {
        {"\"rope_scaling\": {\"type\": \"lengthrope\", \"factor\": 2}",
         "rope type 'lengthrope' (rope_scaling) is not supp"},
        {"\"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2}",
         "'short_factor' of rope_scaling is missing; expected a list of"},
        {"\"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2, \"short_factor\": [1, 2, 3]}",
         "'short_factor' of rope_scaling has 3 entries; expected one for each of"},
        {"\"rope_scaling\": {\"type\": \"linear\"}", "'factor' of rope_scaling is missing"},
        {"\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": \"2\"}",
         "'factor' of rope_parameters is a text"},
        {"\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": -1}", "'factor' of rope_scaling is a whole number"},
        {"\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 1}", "'high_freq_factor'"},
        {"\"rope_scaling\": {\"type\": 3}", "'rope_type' of rope_scaling is a whole number"},
        {"\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"truncate\": 1}", "'truncate'"},
        {"\"rope_scaling\": 7", "'rope_scaling' is a whole number"},
        {"\"rope_theta\": 0", "'rope_theta' is a whole number (0)"},
        {"\"rope_theta\": \"10000\"", "'rope_theta' is a text"},
        {"\"partial_rotary_factor\": 0.5, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}", "whole heads"},
    };
    for (size_t c = 0; c < sizeof all / sizeof all[0]; c++) {
        json_t *json = config_with(all[c].rope);
        mdp_rope rope = {0};
        mdp_status status = read_rope(json, &rope);
        assert_int_equal(status.code, MDP_BAD_INPUT);
        if (strstr(status.text, all[c].sentence) == NULL) fail_msg("%s does not name %s", status.text, all[c].sentence);
        json_decref(json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_equals_the_library),
        cmocka_unit_test(published_yarn_values),
        cmocka_unit_test(bad_settings_are_named),
    };
    return cmocka_run_group_tests_name("model_rope", tests, NULL, NULL);
}
