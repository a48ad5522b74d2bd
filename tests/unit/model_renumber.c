/* Experts that config.json names by number: renumbered, gone with theirs, or refused; every other byte stays. */
#include "mdp/model.h"
#include "model/family.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Of 16 experts "l.experts.E", "l.experts.E.w1" and so on, odd ones go and the others close up. */
static bool halve(const void *context, const char *name, mdp_expert_t number, mdp_expert_t *out) {
    char begin[32];
    (void)context;
    size_t n = (size_t)snprintf(begin, sizeof begin, "l.experts.%d", (int)number);
    if (strncmp(name, begin, n) != 0 || number > 15 || (name[n] != '\0' && strncmp(name + n, ".w", 2) != 0))
        return false;
    *out = number % 2 ? -1 : number / 2;
    return true;
}

static mdp_status renumber(const char *text, char **out, int64_t *n_byte) {
    const mdp_numbering numbering = {.find = halve};
    mdp_catalogue catalogue = {.path = (char *)"m", .config_text = (char *)text, .config_byte = (int64_t)strlen(text)};
    mdp_model model = {.catalogue = &catalogue};
    assert_int_equal(mdp_family_find("mixtral", "m", &model.family).code, MDP_OK);
    const mdp_config_change change = {.n_expert = 8, .numbering = &numbering};
    return mdp_model_patch_config(&model, &change, out, n_byte);
}

#define COUNT "\"num_local_experts\": 8"

static void names_follow_their_experts(void **state) {
    (void)state;
    static const struct {
        const char *before, *after;
    } all[] = {
        {"[\"a\", \"l.experts.4.w1\", \"b\"]", "[\"a\", \"l.experts.2.w1\", \"b\"]"},
        {"[ \"l.experts.0\" ,\n\"l.experts.14.w2\"]", "[ \"l.experts.0\" ,\n\"l.experts.7.w2\"]"},
        /* what goes takes one comma along, wherever it stands */
        {"[\"l.experts.1\", \"a\", \"b\"]", "[\"a\", \"b\"]"},
        {"[\"a\", \"l.experts.1\", \"b\"]", "[\"a\", \"b\"]"},
        {"[\"a\", \"b\", \"l.experts.1\"]", "[\"a\", \"b\"]"},
        {"[\"l.experts.1\", \"l.experts.3\", \"a\", \"l.experts.5.w1\" , \"l.experts.7\"]", "[\"a\"]"},
        {"[\n  \"l.experts.1\",\n  \"l.experts.2\",\n  \"l.experts.3\"\n]", "[\n  \"l.experts.1\"\n]"},
        {"[\"l.experts.1\", \"l.experts.3\"]", "[]"},
        {"[ \"l.experts.1\" ]", "[  ]"},
        /* keys, and members that go */
        {"{\"l.experts.2.w1\": 1, \"l.experts.3.w1\": {\"x\": [1, \"}\"]}, \"z\": 2}",
         "{\"l.experts.1.w1\": 1, \"z\": 2}"},
        {"{\"l.experts.3\": 0}", "{}"},
        {"{\"x\": {\"y\": [[\"l.experts.8.w3\"], [\"l.experts.9.w3\", 5]]}}",
         "{\"x\": {\"y\": [[\"l.experts.4.w3\"], [5]]}}"},
        {"\"l.experts.8\"", "\"l.experts.4\""},
        {"[\"l.e\\u0078perts.8\", \"\\u00e9\\\"\"]", "[\"l.experts.4\", \"\\u00e9\\\"\"]"},
        /* no numbers of experts */
        {"[\"re:.*experts.*w1\", \"experts\", \"l.experts.w1\", \"experts3\", \"num_experts_4\", \"layers.3\", "
         "\"experts\\\\.\\\\d\"]",
         NULL},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        char before[400], after[400], *out = NULL;
        int64_t n_byte = 0;
        snprintf(before, sizeof before, "{ \"q\": %s,\n " COUNT ", \"end\": 1e-05}\n", all[i].before);
        snprintf(after, sizeof after, "{ \"q\": %s,\n " COUNT ", \"end\": 1e-05}\n",
                 all[i].after ? all[i].after : all[i].before);
        mdp_status status = renumber(before, &out, &n_byte);
        if (status.code != MDP_OK) print_error("%s\n", status.text);
        assert_int_equal(status.code, MDP_OK);
        assert_string_equal(out, after);
        assert_int_equal(n_byte, strlen(after));
        json_t *parsed = json_loads(out, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(parsed);
        json_decref(parsed);
        mdp_free(out);
    }
}

static void what_cannot_follow_is_refused_with_its_key(void **state) {
    (void)state;
    static const char *const all[] = {"\"re:.*\\\\.experts\\\\.3\\\\..*\"",
                                      "\"*.experts.3*\"",
                                      "\"l.experts.16\"",
                                      "\"m.experts.4\"",
                                      "\"l.experts.[0-3]\"",
                                      "\"l.experts.3-5\"",
                                      "\"l.experts.4x\"",
                                      "\"l.experts.99999999999\"",
                                      "\"l.experts.4 l.experts.2\"",
                                      "\"l.experts[4].w1\"",
                                      "\"l/experts/4/w1\"",
                                      "\"l.experts.4.\\\"\""};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        char text[200], *out = NULL;
        int64_t n_byte = 0;
        snprintf(text, sizeof text, "{" COUNT ", \"q\": {\"list\": [\"a\", %s]}}", all[i]);
        mdp_status status = renumber(text, &out, &n_byte);
        if (status.code == MDP_OK) print_error("accepted: %s\n", text);
        assert_int_equal(status.code, MDP_BAD_INPUT);
        assert_null(out);
        assert_non_null(strstr(status.text, "m: config.json: 'q.list' names experts by number ('"));
    }
    char *out = NULL; /* a member that would be left without its value */
    int64_t n_byte = 0;
    mdp_status status = renumber("{" COUNT ", \"a\": {\"last\": \"l.experts.1\"}}", &out, &n_byte);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "'a.last'"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_follow_their_experts),
        cmocka_unit_test(what_cannot_follow_is_refused_with_its_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
