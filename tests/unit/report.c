/* The closing table and report.json tell the same numbers, counted from the described result. */
#include "mdp/report.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One layer of 4 experts, top-1, d 2, f 3: an expert has 18 values; 2 of 4 stay. Loss ln 2 before, ln 4 after, in both
 * categories; the second has no predicted token. */
typedef struct fixture {
    mdp_catalogue catalogue;
    mdp_tensor weight;
    mdp_expert experts[4];
    mdp_layer layer;
    mdp_model model;
    mdp_plan *plan;
    mdp_expert_tensor stack; /* all experts as one tensor */
    int64_t n_value[1];
    mdp_output output;
    mdp_evaluation evaluation;
    mdp_eval_stream streams[2];
    mdp_exact nll[2][2], kl[2][2], layer_square[2][1];
    int64_t n_predicted[2], n_sequence[2], n_agree[2][2], n_exact[2][2];
    char *category[2];
    mdp_tokens tokens;
    char *words[2];
    mdp_report report;
} fixture;

static void make_model(fixture *f) {
    f->catalogue =
        (mdp_catalogue){.path = (char *)"big-model", .tensors = &f->weight, .n_tensor = 1, .tensor_byte = 2000};
    strcpy(f->catalogue.fingerprint, "0123456789abcdef0123456789abcdef");
    f->weight = (mdp_tensor){.name = "w", .n_dim = 1, .shape = {6}};
    for (int e = 0; e < 4; e++) {
        mdp_matrix matrix = {.tensor = &f->weight, .n_row = 3, .n_col = 2};
        f->experts[e] = (mdp_expert){.gate = matrix, .up = matrix, .down = matrix};
    }
    f->layer.is_moe = true;
    f->layer.moe =
        (mdp_moe){.n_expert = 4, .top_k = 1, .experts = f->experts, .n_expert_tensor = 1, .expert_tensors = &f->stack};
    f->stack = (mdp_expert_tensor){.tensor = &f->weight, .expert = -1};
    f->n_value[0] = 4 * 18;
    f->model = (mdp_model){.catalogue = &f->catalogue,
                           .n_layer = 1,
                           .layers = &f->layer,
                           .n_value = f->n_value,
                           .n_parameter = 100,
                           .n_active = 46};
    strcpy(f->model.model_type, "mixtral");
}

static void make_plan(fixture *f) {
    const int32_t top_k = 1;
    assert_int_equal(mdp_plan_new(1, &f->plan).code, MDP_OK);
    f->plan->layers[0].n_expert = 4;
    assert_int_equal(MDP_ALLOC(&f->plan->layers[0].scores, 4, "scores").code, MDP_OK);
    for (int e = 0; e < 4; e++) f->plan->layers[0].scores[e] = e;
    assert_int_equal(mdp_plan_choose(f->plan, &top_k, &(mdp_budget_options){.keep = 2}).code, MDP_OK);
    f->output = (mdp_output){.tensor_byte = 1000, .uniform = true};
}

static void make_evaluation(fixture *f) {
    f->category[0] = (char *)"math";
    f->category[1] = (char *)"nothing";
    f->n_predicted[0] = 10;
    f->n_sequence[0] = 4;
    f->n_agree[1][0] = 9;
    f->n_exact[1][0] = 1;
    for (int s = 0; s < 2; s++)
        f->streams[s] = (mdp_eval_stream){.name = (char *)(s == 0 ? "original" : "pruned"),
                                          .plan = (char *)(s == 0 ? NULL : "p"),
                                          .nll = f->nll[s],
                                          .kl = f->kl[s],
                                          .layer_square = f->layer_square[s],
                                          .n_agree = f->n_agree[s],
                                          .n_exact = f->n_exact[s]};
    assert_true(mdp_exact_add(&f->nll[0][0], 10 * 0.69314718055994531));
    assert_true(mdp_exact_add(&f->nll[1][0], 10 * 1.38629436111989062));
    assert_true(mdp_exact_add(&f->kl[1][0], 10 * 0.25));
    assert_true(mdp_exact_add(&f->layer_square[0][0], 16.0));
    assert_true(mdp_exact_add(&f->layer_square[1][0], 1.0));
    f->evaluation = (mdp_evaluation){.n_category = 2,
                                     .category = f->category,
                                     .n_predicted = f->n_predicted,
                                     .n_sequence = f->n_sequence,
                                     .n_layer = 1,
                                     .n_stream = 2,
                                     .streams = f->streams};
}

static fixture *make(void) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    make_model(f);
    make_plan(f);
    make_evaluation(f);
    f->tokens = (mdp_tokens){.path = (char *)"calib.h5", .n_token = 50, .n_sequence = 5};
    f->words[0] = (char *)"moe-dist-prune";
    f->words[1] = (char *)"--keep=2";
    f->report = (mdp_report){.model = &f->model,
                             .plan = f->plan,
                             .output = &f->output,
                             .evaluation = &f->evaluation,
                             .tokens = &f->tokens,
                             .n_rank = 3,
                             .n_node = 1,
                             .n_thread = 2,
                             .blas = "some BLAS",
                             .seconds = 12.5,
                             .memory_largest = 4000000,
                             .memory_smallest = 3000000,
                             .n_word = 2,
                             .words = f->words,
                             .n_written = 1,
                             .written = {"out/model.h5"},
                             .next = "go on"};
    return f;
}

static void destroy(fixture *f) {
    mdp_plan_destroy(f->plan);
    free(f);
}

static void contains(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("'%s' is not in:\n%s", part, text);
}

static void the_table_tells_before_and_after(void **state) {
    (void)state;
    fixture *f = make();
    char *text = NULL;
    assert_int_equal(mdp_report_table(&f->report, &text).code, MDP_OK);
    contains(text, "4 x 1");
    contains(text, "2 x 1");
    contains(text, "(2 of 4 stay)");
    contains(text, "(active 46 -> 46)"); /* 64 values less one expert of 18 that a token does not choose */
    contains(text, "(-50.0%)");
    contains(text, "perplexity                    2            4   (+100.0%)");
    contains(text, "keeps     2 3");
    contains(text, "out/model.h5");
    contains(text, "go on");
    assert_null(strstr(text, "nothing"));
    mdp_free(text);
    destroy(f);
}

static void the_table_does_without_an_evaluation(void **state) {
    (void)state;
    fixture *f = make();
    char *text = NULL;
    f->report.evaluation = NULL;
    f->report.next = NULL;
    assert_int_equal(mdp_report_table(&f->report, &text).code, MDP_OK);
    assert_null(strstr(text, "perplexity"));
    assert_null(strstr(text, "next"));
    mdp_free(text);
    destroy(f);
}

static int64_t integer_at(const json_t *root, const char *object, const char *key) {
    return json_integer_value(json_object_get(json_object_get(root, object), key));
}

static void the_document_has_the_same_numbers_and_null_for_what_is_not(void **state) {
    (void)state;
    fixture *f = make();
    char *text = NULL;
    json_t *root = NULL;
    assert_int_equal(mdp_report_print(&f->report, &text).code, MDP_OK);
    assert_int_equal(mdp_json_parse(text, (int64_t)strlen(text), "report.json", &root).code, MDP_OK);
    assert_int_equal(integer_at(root, "before", "experts"), 4);
    assert_int_equal(integer_at(root, "after", "experts"), 2);
    assert_int_equal(integer_at(root, "after", "parameters"), 64);
    assert_int_equal(integer_at(root, "after", "active_parameters"), 46);
    assert_int_equal(integer_at(root, "after", "bytes"), 1000);
    assert_int_equal(integer_at(root, "run", "memory_peak_largest"), 4000000);
    const json_t *perplexity = json_object_get(root, "perplexity");
    assert_true(json_real_value(json_object_get(json_object_get(perplexity, "total"), "after")) > 3.999);
    const json_t *none = json_object_get(json_object_get(perplexity, "categories"), "nothing");
    assert_true(json_is_null(json_object_get(none, "before")));
    const json_t *layer = json_array_get(json_object_get(root, "layers"), 0);
    assert_true(json_real_value(json_object_get(layer, "error")) == 0.25);
    json_decref(root);
    mdp_free(text);
    destroy(f);
}

static void large_numbers_have_four_digits(void **state) {
    (void)state;
    char out[32];
    assert_string_equal(mdp_print_large(out, 140630000000.0), "140.6 B");
    assert_string_equal(mdp_print_large(out, 12345678.0), "12.35 M");
    assert_string_equal(mdp_print_large(out, 2006656.0), "2.007 M");
    assert_string_equal(mdp_print_large(out, 999960.0), "1.000 M");
    assert_string_equal(mdp_print_large(out, 999.0), "999");
    assert_string_equal(mdp_print_large(out, 1e12), "1.000 T");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_tells_before_and_after),
        cmocka_unit_test(the_table_does_without_an_evaluation),
        cmocka_unit_test(the_document_has_the_same_numbers_and_null_for_what_is_not),
        cmocka_unit_test(large_numbers_have_four_digits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
