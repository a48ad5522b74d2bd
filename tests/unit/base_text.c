/* Sizes, counts and times as text, the nearest name, JSON and checksums. */
#include "mdp/base.h"

#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static void sizes_are_read_with_their_units(void **unused) {
    (void)unused;
    const struct {
        const char *text;
        int64_t value;
    } good[] = {{"0", 0},
                {"17", 17},
                {"8GiB", INT64_C(8) << 30},
                {"5GB", 5000000000},
                {"512k", 512000},
                {"512K", 512000},
                {"1.5m", 1500000},
                {"1.5MiB", 3 << 19},
                {"2Ki", 2048},
                {"100B", 100},
                {"1.3GiB", 1395864371},
                {"0.5k", 500},
                {"3t", 3000000000000},
                {"2TiB", INT64_C(2) << 40},
                {"9223372036854775807", INT64_MAX}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t value = -1;
        assert_true(mdp_parse_size(good[i].text, &value));
        assert_int_equal(value, good[i].value);
    }
    const char *const bad[] = {"",
                               "-1",
                               "+1",
                               "k",
                               "1.5",
                               "1.",
                               ".5k",
                               "1e3",
                               "5 GB",
                               "5GX",
                               "5GiBB",
                               "0x10",
                               "5Bk",
                               "1.2345678k",
                               "9223372036854775808",
                               "9223372036854776k",
                               "8388608Ti",
                               "1,000",
                               "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t value = -1;
        if (mdp_parse_size(bad[i], &value)) print_error("accepted: '%s'\n", bad[i]);
        assert_false(mdp_parse_size(bad[i], &value));
        assert_int_equal(value, -1);
    }
    int64_t largest;
    assert_true(mdp_parse_size("8388607.999999TiB", &largest));
    assert_int_equal(largest, INT64_C(9223372036853676296));
}

static void times_are_read_with_their_units(void **state) {
    (void)state;
    double value = -1.0;
    assert_true(mdp_parse_seconds("90", &value) && value == 90.0);
    assert_true(mdp_parse_seconds("0", &value) && value == 0.0);
    assert_true(mdp_parse_seconds("1.5h", &value) && value == 5400.0);
    assert_true(mdp_parse_seconds("10min", &value) && value == 600.0);
    assert_true(mdp_parse_seconds("2s", &value) && value == 2.0);
    static const char *const bad[] = {"", "s", "-1", "nan", "inf", "1e999", "5m", "5 min", "1h30min"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(mdp_parse_seconds(bad[i], &value));
}

static void names_of_a_list_may_hold_what_divides_it(void **state) {
    (void)state;
    static const struct {
        const char *list, *name, *rest, *next; /* rest, next NULL: none */
    } all[] = {
        {"a,b", "a", NULL, "b"},       {"a:2,b", "a", "2", "b"},      {"a\\:b:2", "a:b", "2", NULL},
        {"a\\,b,c", "a,b", NULL, "c"}, {"a\\\\,c", "a\\", NULL, "c"}, {"a\\\\\\,c", "a\\,c", NULL, NULL},
        {"a\\b", "a\\b", NULL, NULL},  {"a\\", "a\\", NULL, NULL},    {"", "", NULL, NULL},
        {",b", "", NULL, "b"},         {":1,", "", "1", ""},          {"a:1:2,b", "a", "1:2", "b"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[16];
        const char *at = all[i].list, *rest, *end;
        mdp_next_name(&at, name, &rest, &end);
        assert_string_equal(name, all[i].name);
        assert_true((rest == NULL) == (all[i].rest == NULL) && (at == NULL) == (all[i].next == NULL));
        if (rest)
            assert_true(strlen(all[i].rest) == (size_t)(end - rest) &&
                        memcmp(rest, all[i].rest, strlen(all[i].rest)) == 0);
        if (at) assert_string_equal(at, all[i].next);
    }
}

static void positive_numbers_are_bounded(void **state) {
    (void)state;
    static const char *const good[] = {"1", "0.5", "1e12", "1e-12", "3."};
    static const char *const bad[] = {"", "0", "-1", "1e13", "1e-13", "1e308", "1e999", "nan", "inf", "1x", "x"};
    double value;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(mdp_parse_positive(good[i], good[i] + strlen(good[i]), &value));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(mdp_parse_positive(bad[i], bad[i] + strlen(bad[i]), &value));
}

static void numbers_are_printed_for_people(void **unused) {
    (void)unused;
    char out[32];
    assert_string_equal(mdp_print_bytes(out, 281234567890), "281.2 GB");
    assert_string_equal(mdp_print_bytes(out, 999), "999 B");
    assert_string_equal(mdp_print_bytes(out, 1000), "1.0 kB");
    assert_string_equal(mdp_print_bytes(out, 999949), "999.9 kB");
    assert_string_equal(mdp_print_bytes(out, 999951), "1.0 MB");
    assert_string_equal(mdp_print_bytes(out, 0), "0 B");
    assert_string_equal(mdp_print_bytes(out, INT64_MAX), "9.2 EB");
    assert_string_equal(mdp_print_count(out, 12345678), "12,345,678");
    assert_string_equal(mdp_print_count(out, 123), "123");
    assert_string_equal(mdp_print_count(out, 1000), "1,000");
    assert_string_equal(mdp_print_count(out, -1234), "-1,234");
    assert_string_equal(mdp_print_count(out, 0), "0");
    assert_string_equal(mdp_print_count(out, INT64_MIN), "-9,223,372,036,854,775,808");
    assert_string_equal(mdp_print_seconds(out, 4.21), "4.2 s");
    assert_string_equal(mdp_print_seconds(out, 190), "3 min 10 s");
    assert_string_equal(mdp_print_seconds(out, 59.97), "1 min 0 s");
    assert_string_equal(mdp_print_seconds(out, 3599.7), "1 h 0 min");
    assert_string_equal(mdp_print_seconds(out, 5040), "1 h 24 min");
    assert_string_equal(mdp_print_seconds(out, -1), "unknown");
    assert_string_equal(mdp_print_seconds(out, 0.0 / (out[0] - out[0])), "unknown");
}

static void a_slip_of_the_finger_finds_its_name(void **unused) {
    (void)unused;
    const char *const names[] = {"frequency", "soft", "ean", "ean-mean", "weighted-ean", "reap", "random"};
    assert_string_equal(mdp_nearest("reep", names, 7), "reap");
    assert_string_equal(mdp_nearest("frequncy", names, 7), "frequency");
    assert_string_equal(mdp_nearest("ean_mean", names, 7), "ean-mean");
    assert_string_equal(mdp_nearest("wieghted-ean", names, 7), "weighted-ean");
    assert_string_equal(mdp_nearest("random", names, 7), "random");
    assert_null(mdp_nearest("wanda", names, 3));
    assert_null(mdp_nearest("xyz", names, 7));
    assert_null(mdp_nearest("anything", names, 0));
    char long_name[200];
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    assert_null(mdp_nearest(long_name, names, 7));
}

static void time_goes_forward(void **unused) {
    (void)unused;
    double before = mdp_seconds();
    assert_true(mdp_seconds() >= before);
}

static void assert_sentence(mdp_status status, const char *part) {
    if (!strstr(status.text, part)) print_error("sentence: %s\n", status.text);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "config.json: "));
    assert_non_null(strstr(status.text, part));
}

static mdp_status parse(const char *text, json_t **out) {
    return mdp_json_parse(text, (int64_t)strlen(text), "config.json", out);
}

static void members_are_read_with_their_type(void **unused) {
    (void)unused;
    json_t *object;
    assert_int_equal(parse("{\"n\": 7, \"x\": 1e-5, \"t\": \"mixtral\", \"a\": [1, 2], \"z\": null}", &object).code, 0);
    int64_t n;
    double x;
    const char *t;
    json_t *a;
    assert_int_equal(mdp_json_int(object, "n", "config.json", &n).code, MDP_OK);
    assert_int_equal(n, 7);
    assert_int_equal(mdp_json_real(object, "x", "config.json", &x).code, MDP_OK);
    assert_true(x == 1e-5);
    assert_int_equal(mdp_json_real(object, "n", "config.json", &x).code, MDP_OK);
    assert_true(x == 7);
    assert_int_equal(mdp_json_text(object, "t", "config.json", &t).code, MDP_OK);
    assert_string_equal(t, "mixtral");
    assert_int_equal(mdp_json_array(object, "a", "config.json", &a).code, MDP_OK);
    assert_int_equal(json_array_size(a), 2);
    assert_sentence(mdp_json_int(object, "x", "config.json", &n),
                    "'x' is a number with a fraction; expected a whole number");
    assert_sentence(mdp_json_int(object, "missing", "config.json", &n), "the key 'missing' is missing");
    assert_sentence(mdp_json_real(object, "t", "config.json", &x), "'t' is a text; expected a number");
    assert_sentence(mdp_json_text(object, "z", "config.json", &t), "'z' is null; expected a text");
    assert_sentence(mdp_json_array(object, "n", "config.json", &a), "'n' is a whole number; expected a list");
    assert_sentence(mdp_json_int(json_object_get(object, "a"), "n", "config.json", &n), "expected an object");
    assert_sentence(mdp_json_int(NULL, "n", "config.json", &n), "found nothing");
    json_decref(object);
}

static void what_is_not_json_is_refused_with_its_place(void **unused) {
    (void)unused;
    const struct {
        const char *text, *part;
    } bad[] = {{"", "line 1"},
               {"{\"a\": 1,\n \"a\": 2}", "line 2"},
               {"{\"a\": 1} x", "not valid JSON"},
               {"{\"a\": NaN}", "not valid JSON"},
               {"{\"a\": 99999999999999999999}", "not valid JSON"},
               {"{\"a\": \"\xff\"}", "not valid JSON"},
               {"{\"a\": [1, 2", "not valid JSON"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *value;
        assert_sentence(parse(bad[i].text, &value), bad[i].part);
        assert_null(value);
    }
    char deep[100001];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    json_t *value;
    assert_sentence(parse(deep, &value), "not valid JSON");
}

static void json_is_printed_in_one_form(void **unused) {
    (void)unused;
    json_t *object = json_object(), *again;
    json_object_set_new(object, "z", json_real(1.0 / 3));
    json_object_set_new(object, "a", json_pack("[i, s, b, n, f]", 7, "text", 1, 2.0));
    char *text;
    assert_int_equal(mdp_json_print(object, &text).code, MDP_OK);
    assert_string_equal(text,
                        "{\n \"z\": 0.333333333,\n \"a\": [\n  7,\n  \"text\",\n  true,\n  null,\n  2.0\n ]\n}\n");
    assert_int_equal(parse(text, &again).code, MDP_OK);
    json_decref(again);
    json_decref(object);
    mdp_free(text);
}

/* Digests that the Python package xxhash gives for the bytes (131 i + 7) mod 256: every branch of XXH3 by length. */
static void checksums_equal_those_of_xxhash_for_python(void **unused) {
    (void)unused;
    const struct {
        int n_byte;
        const char *hex;
    } known[] = {
        {0, "99aa06d3014798d86001c324468d497f"},      {1, "495b62073ef70ca44c5cca45d0f4811f"},
        {3, "390cdc5b4a895dd76e3e2670e61106ac"},      {16, "7f9a218b0425449ae2ce54a7c19c730d"},
        {17, "66fc23f6439dbd778d96ef110fcdebb4"},     {128, "aec730751478556cff361dec1385710a"},
        {129, "98cd36ccbb5579264545b3a09738e31a"},    {240, "5293e17bf553903d3f2c53e72293711f"},
        {241, "b53840fe3fedf161956cae592c67279e"},    {1000, "622239c5c47a6910571d5cbfef44331b"},
        {100000, "e9e46da59b77e42314ce8d6fc2c4868b"},
    };
    unsigned char *data;
    assert_int_equal(MDP_ALLOC(&data, 100000, "data").code, MDP_OK);
    for (int i = 0; i < 100000; i++) data[i] = (unsigned char)(i * 131 + 7);
    mdp_hash *hash;
    assert_int_equal(mdp_hash_new(&hash).code, MDP_OK);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_string_equal(mdp_hash_bytes(data, known[i].n_byte).hex, known[i].hex);
        mdp_hash_reset(hash);
        for (int first = 0, n = 1; first < known[i].n_byte; first += n, n = n * 3 % 1009) {
            if (n > known[i].n_byte - first) n = known[i].n_byte - first;
            mdp_hash_update(hash, data + first, n);
        }
        mdp_hash_update(hash, NULL, 0);
        assert_string_equal(mdp_hash_digest(hash).hex, known[i].hex);
        assert_string_equal(mdp_hash_digest(hash).hex, known[i].hex); /* asking does not change it */
    }
    mdp_hash_destroy(hash);
    mdp_hash_destroy(NULL);
    mdp_free(data);
}

static void what_is_utf8_is_decided_as_jansson_does(void **unused) {
    (void)unused;
    static const unsigned char third[] = {0x41, 0x80, 0x8f, 0xbf, 0xc0}, fourth[] = {0, 0x80, 0xbf};
    for (int i = 0; i < 256 * 256 * 15; i++) {
        char text[6] = {(char)(i % 256), (char)(i / 256 % 256), (char)third[i / 65536 % 5],
                        (char)fourth[i / 65536 / 5]};
        char shown[32];
        if (strstr(text, "\\x") != NULL) continue; /* looks as if it were shown */
        json_t *theirs = json_string(text);
        mdp_text_show(shown, sizeof shown, text);
        assert_int_equal(theirs != NULL, strstr(shown, "\\x") == NULL);
        json_decref(theirs);
        if (mdp_text_is_plain(text)) assert_string_equal(shown, text);
        assert_true(mdp_text_is_plain(shown));
    }
}

static void what_steers_a_terminal_is_shown_by_its_number(void **unused) {
    (void)unused;
    const struct {
        const char *text, *shown;
    } known[] = {{"plain \xc3\xa9 \xf0\x9f\x99\x82", "plain \xc3\xa9 \xf0\x9f\x99\x82"},
                 {"a\x1b[2J\n\x7f", "a\\u001b[2J\\u000a\\u007f"},
                 {"\xc2\x9b\xe2\x80\xae\xe2\x81\xa6\xe2\x80\xa8", "\\u009b\\u202e\\u2066\\u2028"},
                 {"\xc2\xa0\xe2\x80\xa7\xe2\x81\xa5", "\xc2\xa0\xe2\x80\xa7\xe2\x81\xa5"},
                 {"caf\xe9\xff", "caf\\xe9\\xff"}};
    char shown[64];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_string_equal(mdp_text_show(shown, sizeof shown, known[i].text), known[i].shown);
        assert_int_equal(mdp_text_is_plain(known[i].text), strcmp(known[i].text, known[i].shown) == 0);
    }
    assert_string_equal(mdp_text_show(shown, 6, "ab\xc3\xa9\xc3\xa9"), "ab\xc3\xa9"); /* cut between letters */
    mdp_status status = MDP_ERROR(MDP_BAD_INPUT, "'%s' is wrong.", "a\x1b\xff");
    assert_string_equal(status.text, "'a\\u001b\\xff' is wrong.");
}

static void words_are_quoted_where_a_shell_needs_it(void **unused) {
    (void)unused;
    const char *const words[] = {"mdp", "--out", "a b", "it's", "", "x=1", "~", "/p/q-1.h5"};
    char *line = NULL;
    assert_int_equal(mdp_shell_line(8, words, &line).code, MDP_OK);
    assert_string_equal(line, "mdp --out 'a b' 'it'\\''s' '' 'x=1' '~' /p/q-1.h5");
    mdp_free(line);
}

static void what_jansson_refuses_ends_the_whole(void **unused) {
    (void)unused;
    char *text = NULL;
    json_t *list = json_array(), *object = json_object(), *root = json_object();
    mdp_json_add(&list, json_string("caf\xe9"));
    assert_null(list);
    mdp_json_add(&list, json_true());
    assert_null(list);
    mdp_json_put(&object, "caf\xe9", json_true());
    assert_null(object);
    mdp_json_put(&root, "good", json_integer(1));
    assert_non_null(root);
    mdp_json_put(&root, "list", list);
    assert_null(root);
    assert_int_equal(mdp_json_print(root, &text).code, MDP_INTERNAL);
    assert_null(text);
    list = json_array();
    mdp_json_add(&list, mdp_json_number_or_null(1.0 / 0.0));
    mdp_json_add(&list, mdp_json_number_or_null(0.5));
    assert_int_equal(mdp_json_print(list, &text).code, MDP_OK);
    assert_string_equal(text, "[\n null,\n 0.5\n]\n");
    mdp_free(text);
    json_decref(list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_utf8_is_decided_as_jansson_does),
        cmocka_unit_test(what_steers_a_terminal_is_shown_by_its_number),
        cmocka_unit_test(words_are_quoted_where_a_shell_needs_it),
        cmocka_unit_test(what_jansson_refuses_ends_the_whole),
        cmocka_unit_test(sizes_are_read_with_their_units),
        cmocka_unit_test(times_are_read_with_their_units),
        cmocka_unit_test(names_of_a_list_may_hold_what_divides_it),
        cmocka_unit_test(positive_numbers_are_bounded),
        cmocka_unit_test(numbers_are_printed_for_people),
        cmocka_unit_test(a_slip_of_the_finger_finds_its_name),
        cmocka_unit_test(time_goes_forward),
        cmocka_unit_test(members_are_read_with_their_type),
        cmocka_unit_test(what_is_not_json_is_refused_with_its_place),
        cmocka_unit_test(json_is_printed_in_one_form),
        cmocka_unit_test(checksums_equal_those_of_xxhash_for_python),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
