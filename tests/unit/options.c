/* Options from a table: both spellings, ranges, nearest names, exclusive groups, configuration files and their record.
 */
#include "mdp/options.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MODEL, METHOD, KEEP, RATIO, PLANS, QUIET, SIZE, SPEED, ELSEWHERE, N_OPTION };
enum { PRUNE = 1, LOOK = 2 };

static const char *method(int i) {
    static const char *const names[] = {"reap", "frequency", NULL};
    return names[i];
}

static const mdp_option table[N_OPTION] = {
    [MODEL] = {.name = "model",
               .type = MDP_OPTION_TEXT,
               .value = "PATH",
               .help = "a model",
               .commands = PRUNE | LOOK,
               .required = PRUNE},
    [METHOD] = {.name = "method",
                .type = MDP_OPTION_CHOICE,
                .fallback = "frequency",
                .help = "a method",
                .choice = method,
                .commands = PRUNE},
    [KEEP] = {.name = "keep",
              .type = MDP_OPTION_INTEGER,
              .value = "N",
              .help = "keep",
              .minimum = 1,
              .maximum = 100,
              .commands = PRUNE,
              .group = 1},
    [RATIO] =
        {.name = "keep-ratio", .type = MDP_OPTION_RATIO, .value = "R", .help = "ratio", .commands = PRUNE, .group = 1},
    [PLANS] = {.name = "plan", .type = MDP_OPTION_TEXT_LIST, .value = "FILE", .help = "plans", .commands = PRUNE},
    [QUIET] = {.name = "quiet", .type = MDP_OPTION_FLAG, .help = "silence", .commands = PRUNE | LOOK},
    [SIZE] = {.name = "memory",
              .type = MDP_OPTION_SIZE,
              .value = "BYTES",
              .fallback = "5GB",
              .help = "bytes",
              .minimum = 1,
              .commands = PRUNE},
    [SPEED] = {.name = "speed", .type = MDP_OPTION_REAL, .value = "X", .help = "speed", .commands = PRUNE},
    [ELSEWHERE] = {.name = "depth", .type = MDP_OPTION_INTEGER, .value = "N", .help = "depth", .commands = LOOK},
};

static mdp_status parse_words(const char *const *words, mdp_options **out) {
    int n = 0;
    while (words[n]) n++;
    return mdp_options_parse(table, N_OPTION, "prune", PRUNE, n, (char *const *)words, out);
}

#define PARSE(out, ...) parse_words((const char *const[]){__VA_ARGS__, NULL}, (out))

/* The words must be refused with a sentence that contains both parts. */
static void refuse(const char *const *words, const char *part, const char *other) {
    mdp_options *options = NULL;
    mdp_status status = parse_words(words, &options);
    assert_int_equal(status.code, MDP_USAGE);
    assert_null(options);
    if (!strstr(status.text, part) || !strstr(status.text, other))
        fail_msg("'%s' lacks '%s' or '%s'", status.text, part, other);
}

#define REFUSE(part, other, ...) refuse((const char *const[]){__VA_ARGS__, NULL}, (part), (other))

static void both_spellings_give_the_same_values(void **state) {
    (void)state;
    mdp_options *one = NULL, *two = NULL;
    assert_int_equal(PARSE(&one, "--model", "m", "--keep", "4", "--quiet", "--speed", "2.5").code, MDP_OK);
    assert_int_equal(PARSE(&two, "--model=m", "--keep=4", "--quiet=true", "--speed=2.5").code, MDP_OK);
    for (int i = 0; i < 2; i++) {
        const mdp_options *options = i ? two : one;
        assert_string_equal(options->values[MODEL].text, "m");
        assert_int_equal(options->values[KEEP].integer, 4);
        assert_true(options->values[QUIET].flag);
        assert_true(options->values[SPEED].real == 2.5);
        assert_false(options->values[RATIO].present);
    }
    mdp_options_destroy(one);
    mdp_options_destroy(two);
}

static void defaults_are_present_but_not_given(void **state) {
    (void)state;
    mdp_options *options = NULL;
    assert_int_equal(PARSE(&options, "--model", "m").code, MDP_OK);
    assert_true(options->values[METHOD].present && !options->values[METHOD].given);
    assert_int_equal(options->values[METHOD].integer, 1);
    assert_int_equal(options->values[SIZE].integer, 5000000000ll);
    mdp_options_destroy(options);
}

static void lists_keep_their_order_and_words_are_arguments(void **state) {
    (void)state;
    mdp_options *options = NULL;
    assert_int_equal(PARSE(&options, "x", "--plan", "b", "--plan=a", "-1").code, MDP_OK);
    assert_int_equal(options->values[PLANS].n_text, 2);
    assert_string_equal(options->values[PLANS].texts[0], "b");
    assert_string_equal(options->values[PLANS].texts[1], "a");
    assert_int_equal(options->n_argument, 2);
    assert_string_equal(options->arguments[1], "-1");
    mdp_options_destroy(options);
}

static void wrong_words_are_refused_with_the_remedy(void **state) {
    (void)state;
    REFUSE("unknown method 'reep'. Did you mean 'reap'?", "See moe-dist-prune prune --help.", "--method", "reep");
    REFUSE("unknown option '--modle'", "'--model'", "--modle", "m");
    REFUSE("unknown option '--depth'", "of prune", "--depth", "3");
    REFUSE("--keep", "needs a value", "--keep");
    REFUSE("--keep", "needs a value", "--keep", "--quiet");
    REFUSE("--keep", "twice", "--keep", "3", "--keep=3");
    REFUSE("--keep", "--keep-ratio", "--keep", "3", "--keep-ratio", "0.5");
    REFUSE("--model", "empty", "--model=");
    REFUSE("--quiet", "'yes'", "--quiet=yes");
    REFUSE("UTF-8", "", "--model", "caf\xe9");
    REFUSE("UTF-8", "", "caf\xe9");
}

static void numbers_are_whole_and_in_range(void **state) {
    (void)state;
    REFUSE("--keep", "'4x'", "--keep", "4x");
    REFUSE("--keep", "'99999999999999999999'", "--keep", "99999999999999999999");
    REFUSE("--keep", "less than 1", "--keep", "0");
    REFUSE("--keep", "more than 100", "--keep", "101");
    REFUSE("--memory", "'lots'", "--memory", "lots");
    REFUSE("--keep-ratio", "'1'", "--keep-ratio", "1");
    REFUSE("--keep-ratio", "'0'", "--keep-ratio", "0");
    REFUSE("--keep-ratio", "'nan'", "--keep-ratio", "nan");
    REFUSE("--speed", "'-2'", "--speed", "-2");
    REFUSE("--speed", "'inf'", "--speed", "inf");
}

static void required_options_are_asked_for_only_by_their_command(void **state) {
    (void)state;
    mdp_options *options = NULL;
    assert_int_equal(PARSE(&options, "--keep", "3").code, MDP_OK);
    mdp_status status = mdp_options_complete(options);
    assert_int_equal(status.code, MDP_USAGE);
    assert_non_null(strstr(status.text, "--model PATH"));
    mdp_options_destroy(options);
    assert_int_equal(mdp_options_parse(table, N_OPTION, "look", LOOK, 0, NULL, &options).code, MDP_OK);
    assert_int_equal(mdp_options_complete(options).code, MDP_OK);
    mdp_options_destroy(options);
}

static void help_asks_for_nothing_else_and_shows_the_commands_options(void **state) {
    (void)state;
    mdp_options *options = NULL;
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(PARSE(&options, "--nonsense", "--help").code, MDP_OK);
    assert_true(options->help);
    FILE *file = open_memstream(&text, &n);
    mdp_options_help(options, file);
    fclose(file);
    assert_non_null(strstr(text, "--keep N"));
    assert_non_null(strstr(text, "reap|frequency"));
    assert_non_null(strstr(text, "(default 5GB)"));
    assert_null(strstr(text, "--depth"));
    free(text);
    mdp_options_destroy(options);
}

static mdp_status configure(mdp_options *options, const char *text) {
    return mdp_options_configure(options, text, (int64_t)strlen(text), "c.json");
}

static void the_record_read_back_gives_the_same_record(void **state) {
    (void)state;
    mdp_options *one = NULL, *two = NULL;
    char *first = NULL, *second = NULL;
    assert_int_equal(
        PARSE(&one, "--model", "m", "--keep-ratio", "0.3", "--plan", "p", "--plan", "q", "--quiet", "--memory", "2GiB")
            .code,
        MDP_OK);
    assert_int_equal(mdp_options_print(one, &first).code, MDP_OK);
    assert_int_equal(mdp_options_parse(table, N_OPTION, "prune", PRUNE, 0, NULL, &two).code, MDP_OK);
    assert_int_equal(configure(two, first).code, MDP_OK);
    assert_int_equal(mdp_options_print(two, &second).code, MDP_OK);
    assert_string_equal(first, second);
    assert_true(two->values[RATIO].real == 0.3);
    assert_int_equal(two->values[SIZE].integer, 2ll << 30);
    assert_int_equal(two->values[PLANS].n_text, 2);
    mdp_free(first);
    mdp_free(second);
    mdp_options_destroy(one);
    mdp_options_destroy(two);
}

static void the_command_line_wins_over_the_configuration(void **state) {
    (void)state;
    mdp_options *options = NULL;
    assert_int_equal(PARSE(&options, "--keep", "3", "--method", "reap").code, MDP_OK);
    assert_int_equal(configure(options,
                               "{\"command\": \"prune\", \"options\": {\"keep-ratio\": 0.5, \"method\": \"frequency\", "
                               "\"model\": \"m\", \"memory\": 7}}")
                         .code,
                     MDP_OK);
    assert_int_equal(options->values[KEEP].integer, 3);
    assert_false(options->values[RATIO].present);
    assert_string_equal(options->values[METHOD].text, "reap");
    assert_string_equal(options->values[MODEL].text, "m");
    assert_int_equal(options->values[SIZE].integer, 7);
    mdp_options_destroy(options);
}

static void refuse_configuration(const char *text, const char *part) {
    mdp_options *options = NULL;
    assert_int_equal(PARSE(&options, "--quiet").code, MDP_OK);
    mdp_status status = configure(options, text);
    assert_int_not_equal(status.code, MDP_OK);
    if (!strstr(status.text, part)) fail_msg("'%s' lacks '%s'", status.text, part);
    mdp_options_destroy(options);
}

static void configurations_pass_the_same_checks(void **state) {
    (void)state;
    refuse_configuration("{}", "c.json");
    refuse_configuration("{\"options\": {\"method\": \"reep\"}}", "'reap'");
    refuse_configuration("{\"options\": {\"keep\": 0}}", "--keep");
    refuse_configuration("{\"options\": {\"keep\": 2, \"keep-ratio\": 0.5}}", "exclude");
    refuse_configuration("{\"options\": {\"keep\": [2]}}", "list");
    refuse_configuration("{\"options\": {\"kept\": 2}}", "'kept'");
    refuse_configuration("{\"command\": \"prune\", \"options\": {\"depth\": 2}}", "'depth'");
}

static void options_of_another_command_are_skipped_in_its_configuration(void **state) {
    (void)state;
    mdp_options *options = NULL;
    assert_int_equal(PARSE(&options, "--quiet").code, MDP_OK);
    assert_int_equal(configure(options, "{\"command\": \"look\", \"options\": {\"depth\": 2, \"model\": \"m\"}}").code,
                     MDP_OK);
    assert_string_equal(options->values[MODEL].text, "m");
    mdp_options_destroy(options);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_spellings_give_the_same_values),
        cmocka_unit_test(defaults_are_present_but_not_given),
        cmocka_unit_test(lists_keep_their_order_and_words_are_arguments),
        cmocka_unit_test(wrong_words_are_refused_with_the_remedy),
        cmocka_unit_test(numbers_are_whole_and_in_range),
        cmocka_unit_test(required_options_are_asked_for_only_by_their_command),
        cmocka_unit_test(help_asks_for_nothing_else_and_shows_the_commands_options),
        cmocka_unit_test(the_record_read_back_gives_the_same_record),
        cmocka_unit_test(the_command_line_wins_over_the_configuration),
        cmocka_unit_test(configurations_pass_the_same_checks),
        cmocka_unit_test(options_of_another_command_are_skipped_in_its_configuration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
