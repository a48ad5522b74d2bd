/* Plan -> output and view on hand-built catalogues: names, numbering, segments, order, sizes, and the identity. */
#include "mdp/transform.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A tiny Mixtral: d 8, f 6, 2 layers, 4 heads of 2, 2 kv heads, V 10, E 12 (so that names do not sort by number), k 2.
 */
#define CONFIG                                                                                                         \
    "{\"model_type\": \"mixtral\", \"hidden_size\": 8, \"intermediate_size\": 6, \"num_hidden_layers\": 2, "           \
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 10, \"max_position_embeddings\": 64, "    \
    "\"num_local_experts\": 12, \"num_experts_per_tok\": 2}"

enum { MAX_TENSOR = 120, N_EXPERT = 12, ROUTER_ROW = 8 * 2, MATRIX_BYTE = 6 * 8 * 2 };

typedef struct fixture {
    mdp_catalogue catalogue;
    mdp_tensor tensors[MAX_TENSOR];
    char names[MAX_TENSOR][200];
    mdp_model *model;
    mdp_plan *plan;
} fixture;

static void add(fixture *f, int layer, const char *name, int n_dim, int64_t d0, int64_t d1, int64_t d2) {
    int64_t t = f->catalogue.n_tensor++, n_byte = 2;
    assert_true(t < MAX_TENSOR);
    if (layer < 0)
        (void)snprintf(f->names[t], sizeof f->names[t], "%s", name);
    else
        (void)snprintf(f->names[t], sizeof f->names[t], "model.layers.%d.%s", layer, name);
    f->tensors[t] = (mdp_tensor){.name = f->names[t], .type = MDP_BF16, .n_dim = n_dim, .shape = {d0, d1, d2}};
    for (int i = 0; i < n_dim; i++) n_byte *= f->tensors[t].shape[i];
    f->tensors[t].n_byte = n_byte;
    f->catalogue.tensor_byte += n_byte;
}

static void add_layer(fixture *f, int l) {
    add(f, l, "input_layernorm.weight", 1, 8, 0, 0);
    add(f, l, "post_attention_layernorm.weight", 1, 8, 0, 0);
    add(f, l, "self_attn.q_proj.weight", 2, 8, 8, 0);
    add(f, l, "self_attn.k_proj.weight", 2, 4, 8, 0);
    add(f, l, "self_attn.v_proj.weight", 2, 4, 8, 0);
    add(f, l, "self_attn.o_proj.weight", 2, 8, 8, 0);
}

static void add_experts(fixture *f, int l, bool fused) {
    char name[100];
    add(f, l, fused ? "mlp.gate.weight" : "block_sparse_moe.gate.weight", 2, N_EXPERT, 8, 0);
    if (fused) {
        add(f, l, "mlp.experts.gate_up_proj", 3, N_EXPERT, 12, 8);
        add(f, l, "mlp.experts.down_proj", 3, N_EXPERT, 8, 6);
    }
    for (int e = 0; e < N_EXPERT && !fused; e++) {
        for (int w = 1; w <= 3; w++) {
            (void)snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w%d.weight", e, w);
            add(f, l, name, 2, w == 2 ? 8 : 6, w == 2 ? 6 : 8, 0);
        }
    }
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const mdp_tensor *)a)->name, ((const mdp_tensor *)b)->name);
}

/* Keep `keep` experts of a layer, those with the highest scores: the even ones, then the odd ones. */
static void fill_scores(mdp_plan_layer *layer, int64_t number) {
    layer->layer = number;
    layer->n_expert = N_EXPERT;
    assert_int_equal(MDP_ALLOC(&layer->scores, N_EXPERT, "scores").code, MDP_OK);
    for (int e = 0; e < N_EXPERT; e++) layer->scores[e] = e % 2 == 0 ? 100 + e : e;
}

static fixture *make(bool fused, mdp_budget_options budget) {
    const int32_t top_k[2] = {2, 2};
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    add(f, -1, "model.embed_tokens.weight", 2, 10, 8, 0);
    add(f, -1, "lm_head.weight", 2, 10, 8, 0);
    add(f, -1, "model.norm.weight", 1, 8, 0, 0);
    for (int l = 0; l < 2; l++) {
        add_layer(f, l);
        add_experts(f, l, fused);
    }
    f->catalogue.path = (char *)"tiny";
    f->catalogue.tensors = f->tensors;
    f->catalogue.config_text = (char *)CONFIG;
    f->catalogue.config_byte = (int64_t)strlen(CONFIG);
    qsort(f->tensors, (size_t)f->catalogue.n_tensor, sizeof f->tensors[0], by_name);
    mdp_status status = mdp_model_bind(&f->catalogue, &f->model);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    assert_int_equal(mdp_plan_new(2, &f->plan).code, MDP_OK);
    for (int l = 0; l < 2; l++) fill_scores(&f->plan->layers[l], l);
    if (budget.budget == MDP_BUDGET_GLOBAL) { /* expert 0 of layer 1 goes instead of expert 11 of layer 0 */
        f->plan->layers[1].scores[0] = 0.5;
        f->plan->layers[0].scores[11] = 50;
    }
    assert_int_equal(mdp_plan_choose(f->plan, top_k, &budget).code, MDP_OK);
    return f;
}

static void destroy(fixture *f) {
    mdp_plan_destroy(f->plan);
    mdp_model_destroy(f->model);
    free(f);
}

static mdp_output *transform(const fixture *f, const mdp_plan *plan) {
    mdp_output *output = NULL;
    mdp_status status = mdp_transform_output(f->model, plan, NULL, NULL, plan ? "the plan" : NULL, "the provenance",
                                             MDP_UNEQUAL_STACKED, &output);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    int64_t n_byte = 0;
    for (int64_t t = 0; t < output->n_tensor; t++) {
        const mdp_output_tensor *tensor = &output->tensors[t];
        int64_t sum = 0, product = 2;
        assert_true(t == 0 || strcmp(output->tensors[t - 1].name, tensor->name) < 0);
        for (int64_t s = 0; s < tensor->n_segment; s++) {
            const mdp_segment *segment = &tensor->segments[s];
            assert_true(segment->offset >= 0 && segment->n_byte > 0 &&
                        segment->offset + segment->n_byte <= segment->source->n_byte);
            sum += segment->n_byte;
        }
        for (int i = 0; i < tensor->n_dim; i++) product *= tensor->shape[i];
        assert_int_equal(sum, tensor->n_byte);
        assert_int_equal(product, tensor->n_byte);
        n_byte += tensor->n_byte;
    }
    assert_int_equal(n_byte, output->tensor_byte);
    return output;
}

static const mdp_output_tensor *find(const mdp_output *output, const char *name) {
    for (int64_t t = 0; t < output->n_tensor; t++) {
        if (strcmp(output->tensors[t].name, name) == 0) return &output->tensors[t];
    }
    return NULL;
}

static void kept_experts_are_renumbered_and_the_router_is_sliced(void **state) {
    (void)state;
    fixture *f = make(false, (mdp_budget_options){.keep = 6}); /* 0 2 4 6 8 10 stay */
    mdp_output *output = transform(f, f->plan);
    assert_int_equal(output->n_tensor, f->catalogue.n_tensor - 2 * 3 * 6);
    for (int e = 0; e < 6; e++) {
        char name[100], original[100];
        (void)snprintf(name, sizeof name, "model.layers.1.block_sparse_moe.experts.%d.w2.weight", e);
        (void)snprintf(original, sizeof original, "model.layers.1.block_sparse_moe.experts.%d.w2.weight", 2 * e);
        const mdp_output_tensor *tensor = find(output, name);
        assert_non_null(tensor);
        assert_string_equal(tensor->segments[0].source->name, original);
        assert_int_equal(tensor->n_segment, 1);
        assert_int_equal(tensor->n_byte, MATRIX_BYTE);
        assert_string_equal(tensor->stack, "model.layers.1.block_sparse_moe.experts.{expert}.w2.weight");
        assert_int_equal(tensor->expert, e);
        assert_int_equal(tensor->original_expert, 2 * e);
    }
    assert_null(find(output, "model.layers.1.block_sparse_moe.experts.6.w2.weight"));
    const mdp_output_tensor *router = find(output, "model.layers.0.block_sparse_moe.gate.weight");
    assert_int_equal(router->shape[0], 6);
    assert_int_equal(router->n_segment, 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(router->segments[i].offset, 2 * i * ROUTER_ROW);
        assert_int_equal(router->segments[i].n_byte, ROUTER_ROW);
    }
    assert_null(router->stack);
    assert_true(output->uniform);
    assert_non_null(strstr(output->config_text, "\"num_local_experts\": 6,"));
    assert_string_equal(output->plan_text, "the plan");
    assert_string_equal(output->provenance_text, "the provenance");
    mdp_output_destroy(output);
    destroy(f);
}

static void neighbours_make_one_segment(void **state) {
    (void)state;
    fixture *f = make(false, (mdp_budget_options){.keep = 9}); /* 0 2 4 6 7 8 9 10 11 stay */
    mdp_output *output = transform(f, f->plan);
    const mdp_output_tensor *router = find(output, "model.layers.0.block_sparse_moe.gate.weight");
    assert_int_equal(router->n_segment, 4);
    assert_int_equal(router->segments[3].offset, 6 * ROUTER_ROW);
    assert_int_equal(router->segments[3].n_byte, 6 * ROUTER_ROW);
    mdp_output_destroy(output);
    destroy(f);
}

static void fused_tensors_are_sliced_along_their_experts(void **state) {
    (void)state;
    fixture *f = make(true, (mdp_budget_options){.keep = 6});
    mdp_output *output = transform(f, f->plan);
    assert_int_equal(output->n_tensor, f->catalogue.n_tensor);
    const mdp_output_tensor *tensor = find(output, "model.layers.1.mlp.experts.gate_up_proj");
    assert_int_equal(tensor->n_dim, 3);
    assert_int_equal(tensor->shape[0], 6);
    assert_int_equal(tensor->shape[1], 12);
    assert_int_equal(tensor->segments[5].offset, 10 * 2 * MATRIX_BYTE);
    assert_int_equal(tensor->segments[5].n_byte, 2 * MATRIX_BYTE);
    assert_int_equal(tensor->expert, -1);
    mdp_output_destroy(output);
    destroy(f);
}

static void without_a_plan_everything_stays_as_it_is(void **state) {
    (void)state;
    for (int fused = 0; fused < 2; fused++) {
        fixture *f = make(fused, (mdp_budget_options){.keep = 6});
        mdp_output *output = transform(f, NULL);
        assert_int_equal(output->n_tensor, f->catalogue.n_tensor);
        assert_int_equal(output->tensor_byte, f->catalogue.tensor_byte);
        for (int64_t t = 0; t < output->n_tensor; t++) {
            const mdp_output_tensor *tensor = &output->tensors[t];
            assert_string_equal(tensor->name, f->tensors[t].name);
            assert_int_equal(tensor->n_segment, 1);
            assert_ptr_equal(tensor->segments[0].source, &f->tensors[t]);
            assert_int_equal(tensor->segments[0].n_byte, f->tensors[t].n_byte);
            assert_int_equal(tensor->expert, tensor->original_expert);
        }
        assert_string_equal(output->config_text, CONFIG);
        assert_null(output->plan_text);
        assert_true(output->uniform);
        mdp_output_destroy(output);
        destroy(f);
    }
}

static void unequal_layers_have_their_own_counts_and_the_config_the_largest(void **state) {
    (void)state;
    fixture *f = make(false, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 6});
    assert_int_equal(f->plan->layers[0].n_kept + f->plan->layers[1].n_kept, 12);
    assert_int_equal(f->plan->layers[1].n_kept, 5);
    mdp_output *output = transform(f, f->plan);
    assert_false(output->uniform);
    assert_int_equal(find(output, "model.layers.0.block_sparse_moe.gate.weight")->shape[0], 7);
    assert_int_equal(find(output, "model.layers.1.block_sparse_moe.gate.weight")->shape[0], 5);
    assert_non_null(strstr(output->config_text, "\"num_local_experts\": 7,"));
    mdp_output_destroy(output);
    destroy(f);
}

static void sizes_are_those_of_the_result(void **state) {
    (void)state;
    fixture *f = make(false, (mdp_budget_options){.keep = 6});
    mdp_output *output = transform(f, f->plan);
    mdp_result_size size = mdp_transform_size(f->model, f->plan);
    int64_t expert = 3 * 6 * 8, router_row = 8;
    assert_int_equal(size.n_parameter, f->model->n_parameter - 2 * 6 * (expert + router_row));
    assert_int_equal(size.n_active, f->model->n_active - 2 * 6 * router_row);
    mdp_output_destroy(output);
    destroy(f);
}

static void a_view_names_the_kept_experts(void **state) {
    (void)state;
    fixture *f = make(false, (mdp_budget_options){.budget = MDP_BUDGET_GLOBAL, .keep = 6});
    mdp_view *view = NULL;
    assert_int_equal(mdp_transform_view(f->model, f->plan, NULL, &view).code, MDP_OK);
    assert_int_equal(view->n_layer, 2);
    for (int l = 0; l < 2; l++) {
        const mdp_plan_layer *planned = &f->plan->layers[l];
        assert_int_equal(view->layers[l].n_expert, planned->n_kept);
        assert_int_equal(view->layers[l].top_k, 2);
        for (int i = 0; i < planned->n_kept; i++) assert_int_equal(view->layers[l].source[i], planned->kept[i].from[0]);
    }
    mdp_view_destroy(view);
    destroy(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_experts_are_renumbered_and_the_router_is_sliced),
        cmocka_unit_test(neighbours_make_one_segment),
        cmocka_unit_test(fused_tensors_are_sliced_along_their_experts),
        cmocka_unit_test(without_a_plan_everything_stays_as_it_is),
        cmocka_unit_test(unequal_layers_have_their_own_counts_and_the_config_the_largest),
        cmocka_unit_test(sizes_are_those_of_the_result),
        cmocka_unit_test(a_view_names_the_kept_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
