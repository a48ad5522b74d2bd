/* plan.json: what is printed parses to the same plan and the same bytes; hand-edited plans are refused by name. */
#include "mdp/plan.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HEAD                                                                                                           \
    "{\"format\": \"moe-dist-prune plan\", \"version\": \"1.0\", \"model\": {\"fingerprint\": "                        \
    "\"0123456789abcdef0123456789abcdef\", \"model_type\": \"mixtral\"}, \"recipe\": {\"method\": \"reap\", "          \
    "\"note\": "                                                                                                       \
    "\"kept as it is\"}, \"uniform\": true, \"layers\": ["
#define KEEP(e) "{\"from\": [" #e "], \"action\": \"keep\"}"
#define DROP(e) "{\"expert\": " #e ", \"action\": \"drop\"}"
#define LAYER(l, kept, dropped)                                                                                        \
    "{\"layer\": " #l ", \"experts\": [" kept "], \"dropped\": [" dropped "], \"router\": \"slice\"}"
#define SECOND LAYER(4, KEEP(1) ", " KEEP(2), DROP(0))

static mdp_status parse(const char *text, mdp_plan **out) {
    return mdp_plan_parse(text, (int64_t)strlen(text), "p.json", out);
}

/* The text must be refused with a sentence that names the file and contains both parts. */
static void refuse(const char *text, const char *part, const char *other) {
    mdp_plan *plan = NULL;
    mdp_status status = parse(text, &plan);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_null(plan);
    if (!strstr(status.text, "p.json") || !strstr(status.text, part) || !strstr(status.text, other))
        fail_msg("'%s' lacks '%s' or '%s'", status.text, part, other);
}

static void a_hand_written_plan_is_understood(void **state) {
    (void)state;
    mdp_plan *plan = NULL;
    mdp_status status = parse(HEAD LAYER(0, KEEP(0) ", " KEEP(3), DROP(2) ", " DROP(1)) ", " SECOND "]}", &plan);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    assert_int_equal(plan->n_layer, 2);
    assert_true(plan->uniform);
    assert_string_equal(plan->path, "p.json");
    assert_string_equal(plan->model_type, "mixtral");
    assert_int_equal(plan->layers[0].n_expert, 4);
    assert_int_equal(plan->layers[0].kept[1].from[0], 3);
    assert_int_equal(plan->layers[0].dropped[0], 1); /* ascending, whatever order was written */
    assert_int_equal(plan->layers[0].dropped[1], 2);
    assert_null(plan->layers[0].scores);
    assert_int_equal(plan->layers[1].layer, 4);
    mdp_plan_destroy(plan);
}

static mdp_plan *scored_plan(void) {
    mdp_plan *plan = NULL;
    const int32_t top_k[2] = {1, 1};
    const double scores[2][3] = {{0.1, 1e-30, 123456789.125}, {3, 0, 7e20}};
    assert_int_equal(mdp_plan_new(2, &plan).code, MDP_OK);
    strcpy(plan->fingerprint, "0123456789abcdef0123456789abcdef");
    strcpy(plan->model_type, "mixtral");
    for (int i = 0; i < 2; i++) {
        plan->layers[i].layer = 2 * i + 1;
        plan->layers[i].n_expert = 3;
        assert_int_equal(MDP_ALLOC(&plan->layers[i].scores, 3, "scores").code, MDP_OK);
        memcpy(plan->layers[i].scores, scores[i], sizeof scores[i]);
    }
    json_object_set_new(plan->recipe, "method", json_string("reap"));
    assert_int_equal(mdp_plan_choose(plan, top_k, &(mdp_budget_options){.keep = 2}).code, MDP_OK);
    return plan;
}

static void printing_and_parsing_are_inverse(void **state) {
    (void)state;
    mdp_plan *plan = scored_plan(), *again = NULL;
    char *first = NULL, *second = NULL;
    assert_int_equal(mdp_plan_print(plan, &first).code, MDP_OK);
    mdp_status status = parse(first, &again);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    assert_int_equal(mdp_plan_print(again, &second).code, MDP_OK);
    assert_string_equal(first, second);
    assert_int_equal(again->layers[1].n_dropped, 1);
    assert_int_equal(again->layers[1].dropped[0], 1);
    assert_true(again->layers[0].scores[0] == 0.1);
    assert_non_null(strstr(first, "123456789")); /* nine significant digits */
    assert_null(strstr(first, "123456789.125"));
    mdp_free(first);
    mdp_free(second);
    mdp_plan_destroy(plan);
    mdp_plan_destroy(again);
}

static void every_expert_is_named_once(void **state) {
    (void)state;
    refuse(HEAD LAYER(3, KEEP(0) ", " KEEP(1), DROP(1)) "]}", "layer 3", "expert 1 is both");
    refuse(HEAD LAYER(3, KEEP(0) ", " KEEP(2), "") "]}", "layer 3", "expert 1");
    refuse(HEAD LAYER(3, KEEP(0) ", " KEEP(0), DROP(1)) "]}", "layer 3", "expert 0");
    refuse(HEAD LAYER(3, KEEP(1) ", " KEEP(0), DROP(2)) "]}", "layer 3", "ascending");
    refuse(HEAD LAYER(3, KEEP(0), DROP(1) ", " DROP(1)) "]}", "layer 3", "expert 1 is dropped twice");
    refuse(HEAD LAYER(3, "", DROP(0)) "]}", "layer 3", "kept");
    refuse(HEAD LAYER(3, KEEP(-1), DROP(0)) "]}", "layer 3", "0");
    refuse(HEAD LAYER(3, KEEP(1.5), DROP(0)) "]}", "layer 3", "integer");
    refuse(HEAD LAYER(3, KEEP(99999999999), DROP(0)) "]}", "layer 3", "999999");
}

static void what_this_version_does_not_know_is_refused(void **state) {
    (void)state;
    refuse(HEAD LAYER(3, "{\"from\": [0, 1], \"action\": \"merge\"}", DROP(2)) "]}", "layer 3", "merge");
    refuse(HEAD LAYER(3, "{\"from\": [0, 1], \"action\": \"keep\"}", DROP(2)) "]}", "layer 3", "one expert");
    refuse(HEAD LAYER(3, "{\"from\": [0], \"action\": \"keep\", \"weights\": [1]}", "") "]}", "layer 3", "weights");
    refuse(HEAD LAYER(3, KEEP(0), "{\"expert\": 1, \"action\": \"zero\"}") "]}", "layer 3", "zero");
    refuse(HEAD "{\"layer\": 3, \"k\": 2, \"experts\": [" KEEP(0) "], \"dropped\": [], \"router\": \"slice\"}]}",
           "layer 3", "'k'");
    refuse(HEAD "{\"layer\": 3, \"experts\": [" KEEP(0) "], \"dropped\": [], \"router\": \"zero\"}]}", "layer 3",
           "zero");
    refuse(HEAD
           "{\"layer\": 3, \"scores\": [1, 2], \"experts\": [" KEEP(0) "], \"dropped\": [], \"router\": \"slice\"}]}",
           "layer 3", "scores");
    refuse(HEAD SECOND ", " SECOND "]}", "layer 4", "ascend");
    refuse(HEAD "]}", "no layers", "");
    refuse(HEAD "3]}", "not an object", "");
}

/* The head with one text in it replaced. */
static void refuse_head(const char *old, const char *new, const char *part) {
    const char *text = HEAD SECOND "]}";
    char changed[2000];
    const char *at = strstr(text, old);
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
    refuse(changed, part, "");
}

static void other_files_and_newer_versions_are_refused(void **state) {
    (void)state;
    refuse("[]", "not a plan", "");
    refuse("{", "", "");
    refuse_head("moe-dist-prune plan", "moe-dist-prune eval", "format");
    refuse_head("\"1.0\"", "\"2.0\"", "2.0");
    refuse_head("\"1.0\"", "1", "version");
    refuse_head("\"uniform\": true", "\"uniform\": 1", "uniform");
    refuse_head("0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef0", "fingerprint");
    refuse_head("\"recipe\": {", "\"recipes\": {", "recipe");
}

/* ---- against a model ----------------------------------------------------------------------------------------- */

/* Five layers; 1 and 3 have three experts, two of which each token uses. */
typedef struct tiny {
    mdp_catalogue catalogue;
    mdp_model model;
    mdp_layer layers[5];
} tiny;

static void make_tiny(tiny *t) {
    *t = (tiny){.catalogue = {.path = (char *)"tiny"}};
    strcpy(t->catalogue.fingerprint, "0123456789abcdef0123456789abcdef");
    strcpy(t->model.model_type, "mixtral");
    t->model.catalogue = &t->catalogue;
    t->model.n_layer = 5;
    t->model.layers = t->layers;
    for (int l = 1; l < 5; l += 2) {
        t->layers[l].is_moe = true;
        t->layers[l].moe.n_expert = 3;
        t->layers[l].moe.top_k = 2;
    }
}

static void check_refused(const mdp_plan *plan, const tiny *t, const char *part, const char *other) {
    mdp_status status = mdp_plan_check(plan, &t->model);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    if (!strstr(status.text, part) || !strstr(status.text, other))
        fail_msg("'%s' lacks '%s' or '%s'", status.text, part, other);
}

static void groups_keep_equally_many(void **state) {
    (void)state;
    mdp_plan *plan = NULL;
    assert_int_equal(mdp_plan_new(1, &plan).code, MDP_OK);
    tiny t;
    make_tiny(&t);
    t.layers[3].is_moe = false;
    t.layers[1].moe = (mdp_moe){.n_expert = 8, .top_k = 4, .rule = {.n_group = 2, .n_open = 1, .group_size = 4}};
    strcpy(plan->fingerprint, t.catalogue.fingerprint);
    strcpy(plan->model_type, "mixtral");
    plan->uniform = true;
    plan->layers[0] = (mdp_plan_layer){.layer = 1, .n_expert = 8, .n_kept = 6};
    assert_int_equal(MDP_ALLOC(&plan->layers[0].kept, 8, "kept").code, MDP_OK);
    static const mdp_expert_t uneven[6] = {0, 1, 2, 3, 5, 6}, even[6] = {0, 1, 3, 4, 6, 7},
                              all[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    mdp_expert_t own[8];
    for (int i = 0; i < 8; i++) plan->layers[0].kept[i] = (mdp_plan_expert){.n_from = 1, .from = &own[i]};
    memcpy(own, uneven, sizeof uneven);
    check_refused(plan, &t, "layer 1: group 0 keeps 4 of its 4 experts", "every group must keep the same number");
    memcpy(own, even, sizeof even);
    check_refused(plan, &t, "layer 1: a token sees 1 groups", "of 3 kept experts, fewer than the 4");
    plan->layers[0].n_kept = 8;
    memcpy(own, all, sizeof all);
    mdp_status status = mdp_plan_check(plan, &t.model);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    plan->layers[0].n_kept = 0;
    mdp_plan_destroy(plan);
}

static void a_plan_is_checked_against_its_model(void **state) {
    (void)state;
    mdp_plan *plan = scored_plan();
    tiny t;
    make_tiny(&t);
    mdp_status status = mdp_plan_check(plan, &t.model);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    t.catalogue.fingerprint[5] = 'f';
    check_refused(plan, &t, "another model", "tiny");
    make_tiny(&t);
    t.layers[3].moe.n_expert = 4;
    check_refused(plan, &t, "layer 3", "4");
    make_tiny(&t);
    t.layers[1].moe.top_k = 3;
    check_refused(plan, &t, "layer 1", "3");
    make_tiny(&t);
    t.layers[4] = t.layers[3];
    check_refused(plan, &t, "layer 4", "missing");
    make_tiny(&t);
    t.layers[3].is_moe = false;
    check_refused(plan, &t, "layer 3", "tiny");
    make_tiny(&t);
    plan->uniform = false;
    check_refused(plan, &t, "uniform", "2");
    mdp_plan_destroy(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hand_written_plan_is_understood),
        cmocka_unit_test(printing_and_parsing_are_inverse),
        cmocka_unit_test(every_expert_is_named_once),
        cmocka_unit_test(what_this_version_does_not_know_is_refused),
        cmocka_unit_test(other_files_and_newer_versions_are_refused),
        cmocka_unit_test(a_plan_is_checked_against_its_model),
        cmocka_unit_test(groups_keep_equally_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
