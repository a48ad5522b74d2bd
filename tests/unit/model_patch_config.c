/* Patching config.json: only the count changes, in whatever form the file is written. */
#include "mdp/model.h"
#include "model/family.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *patched(const char *text, int64_t n_expert, int64_t *n_byte) {
    mdp_catalogue catalogue = {.path = (char *)"m", .config_text = (char *)text, .config_byte = (int64_t)strlen(text)};
    mdp_model model = {.catalogue = &catalogue};
    char *out = NULL;
    assert_int_equal(mdp_family_find("mixtral", "m", &model.family).code, MDP_OK);
    assert_int_equal(mdp_model_patch_config(&model, &(mdp_config_change){.n_expert = n_expert}, &out, n_byte).code,
                     MDP_OK);
    return out;
}

static void only_the_count_changes(void **state) {
    (void)state;
    static const struct {
        const char *before, *after;
    } all[] = {
        {"{\"num_local_experts\": 8}", "{\"num_local_experts\": 4}"},
        {"{\"a\":1,\"num_local_experts\":128,\"b\":2}", "{\"a\":1,\"num_local_experts\":4,\"b\":2}"},
        {"{\"num_local_experts\" \t:\r\n 8 \n}", "{\"num_local_experts\" \t:\r\n 4 \n}"},
        {" \n{\n  \"a\": [1, {\"num_local_experts\": 8}, \"}\"],\n  \"num_local_experts\": 8,\n  \"z\": 1e-05\n}\n",
         " \n{\n  \"a\": [1, {\"num_local_experts\": 8}, \"}\"],\n  \"num_local_experts\": 4,\n  \"z\": 1e-05\n}\n"},
        /* texts that look like the key, quotes and braces inside texts */
        {"{\"a\": \"num_local_experts\", \"num_local_experts\": 8}",
         "{\"a\": \"num_local_experts\", \"num_local_experts\": 4}"},
        {"{\"a\": \"\\\"num_local_experts\\\": 9, {[\", \"num_local_experts\": 8}",
         "{\"a\": \"\\\"num_local_experts\\\": 9, {[\", \"num_local_experts\": 4}"},
        {"{\"a\\\\\": \"\\\\\", \"num_local_experts\": 8}", "{\"a\\\\\": \"\\\\\", \"num_local_experts\": 4}"},
        {"{\"text_config\": {\"num_local_experts\": 8}, \"num_local_experts\": 8}",
         "{\"text_config\": {\"num_local_experts\": 8}, \"num_local_experts\": 4}"},
        {"{\"a\": [[], {}, [{}]], \"b\": {}, \"num_local_experts\": 8}",
         "{\"a\": [[], {}, [{}]], \"b\": {}, \"num_local_experts\": 4}"},
        /* keys that only begin alike */
        {"{\"num_local_experts_x\": 8, \"num_local_experts\": 8, \"x_num_local_experts\": 8}",
         "{\"num_local_experts_x\": 8, \"num_local_experts\": 4, \"x_num_local_experts\": 8}"},
        /* a key spelled with escapes, text beyond ASCII */
        {"{\"num\\u005flocal_experts\": 8}", "{\"num\\u005flocal_experts\": 4}"},
        {"{\"name\": \"\xc3\xa9\xe2\x82\xac\", \"num_local_experts\": 8}",
         "{\"name\": \"\xc3\xa9\xe2\x82\xac\", \"num_local_experts\": 4}"},
        /* every spelling that is there, in either order */
        {"{\"num_experts\": 8, \"num_local_experts\": 8}", "{\"num_experts\": 4, \"num_local_experts\": 4}"},
        {"{\"num_local_experts\": 8, \"b\": null, \"num_experts\": 8}",
         "{\"num_local_experts\": 4, \"b\": null, \"num_experts\": 4}"},
        {"{\"num_experts\": 8}", "{\"num_experts\": 4}"},
        /* absent: inserted, spaced as the first member */
        {"{}", "{\"num_local_experts\": 4}"},
        {"{ }", "{ \"num_local_experts\": 4 }"},
        {"{\"a\": {\"num_local_experts\": 8}}", "{\"num_local_experts\": 4,\"a\": {\"num_local_experts\": 8}}"},
        {"\n{\n  \"a\": 1\n}\n", "\n{\n  \"num_local_experts\": 4,\n  \"a\": 1\n}\n"},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        int64_t n_byte;
        char *out = patched(all[i].before, 4, &n_byte);
        assert_string_equal(out, all[i].after);
        assert_int_equal(n_byte, strlen(all[i].after));
        mdp_free(out);
    }
}

static void longer_and_shorter_numbers_fit(void **state) {
    (void)state;
    int64_t n_byte;
    char *out = patched("{\"num_local_experts\": 8, \"b\": 1}", 123456789, &n_byte);
    assert_string_equal(out, "{\"num_local_experts\": 123456789, \"b\": 1}");
    char *back = patched(out, 8, &n_byte);
    assert_string_equal(back, "{\"num_local_experts\": 8, \"b\": 1}");
    assert_int_equal(n_byte, strlen(back));
    mdp_free(out);
    mdp_free(back);
}

/* Layers that predict further tokens are gone, or were never there: under no spelling does the text count any. */
static void what_is_left_out_is_not_counted(void **state) {
    (void)state;
    static const struct {
        int64_t n_extra; /* tensors */
        const char *before, *after;
    } all[] = {
        {0, "{\"n_routed_experts\": 8, \"num_nextn_predict_layers\": 1}",
         "{\"n_routed_experts\": 4, \"num_nextn_predict_layers\": 0}"},
        {0, "{\"n_routed_experts\": 8, \"num_mtp_layers\": 2}", "{\"n_routed_experts\": 4, \"num_mtp_layers\": 0}"},
        {0, "{\"n_routed_experts\": 8}", "{\"n_routed_experts\": 4}"},
        {5, "{\"n_routed_experts\": 8}", "{\"num_nextn_predict_layers\": 0,\"n_routed_experts\": 4}"},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        mdp_catalogue catalogue = {
            .path = (char *)"m", .config_text = (char *)all[i].before, .config_byte = (int64_t)strlen(all[i].before)};
        mdp_model model = {.catalogue = &catalogue, .n_extra = all[i].n_extra};
        mdp_config_change change = {.n_expert = 4, .without_extra = true};
        char *out = NULL;
        int64_t n_byte = 0;
        assert_int_equal(mdp_family_find("glm4_moe", "m", &model.family).code, MDP_OK);
        assert_int_equal(mdp_model_patch_config(&model, &change, &out, &n_byte).code, MDP_OK);
        assert_string_equal(out, all[i].after);
        mdp_free(out);
    }
}

/* What jansson reads from a patched text is what it reads from the text before, but for the count; in many styles. */
static void the_result_parses_to_the_same_but_for_the_count(void **state) {
    (void)state;
    const size_t styles[] = {0, JSON_COMPACT, JSON_INDENT(2), JSON_INDENT(4) | JSON_SORT_KEYS, JSON_ENSURE_ASCII};
    json_t *before = json_loads("{\"architectures\": [\"M\"], \"q\": \"a\\\"}{][,:\\\\\", \"n\": null, \"t\": true, "
                                "\"o\": {\"num_local_experts\": [8]}, \"num_local_experts\": 8, \"e\": -1.5e-7, "
                                "\"u\": \"\xe2\x82\xac\"}",
                                0, NULL);
    assert_non_null(before);
    for (size_t s = 0; s < sizeof styles / sizeof styles[0]; s++) {
        char *text = json_dumps(before, styles[s]);
        int64_t n_byte;
        char *out = patched(text, 31, &n_byte);
        json_t *after = json_loads(out, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(after);
        assert_int_equal(json_integer_value(json_object_get(after, "num_local_experts")), 31);
        json_object_set_new(after, "num_local_experts", json_integer(8));
        assert_true(json_equal(before, after));
        json_decref(after);
        mdp_free(out);
        free(text);
    }
    json_decref(before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_count_changes),
        cmocka_unit_test(longer_and_shorter_numbers_fit),
        cmocka_unit_test(what_is_left_out_is_not_counted),
        cmocka_unit_test(the_result_parses_to_the_same_but_for_the_count),
    };
    return cmocka_run_group_tests_name("model_patch_config", tests, NULL, NULL);
}
