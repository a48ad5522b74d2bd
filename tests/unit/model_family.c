/* What the families differ in, on hand-built catalogues: dense layers, shared experts, biases, norms of queries and
 * keys, windows by layer, packed weights; and every mistake with its sentence. */
#include "mdp/model.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* H 8, 3 layers, 4 heads of 2, 2 kv heads, V 10, E 3, k 2, experts 6, dense 12, shared 5. */
#define SIZES                                                                                                          \
    "\"hidden_size\": 8, \"moe_intermediate_size\": 6, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, "         \
    "\"num_key_value_heads\": 2, \"vocab_size\": 10, \"num_experts\": 3, \"num_experts_per_tok\": 2, "                 \
    "\"shared_expert_intermediate_size\": 5"
#define QWEN2(rest) "{\"model_type\": \"qwen2_moe\", \"intermediate_size\": 12, " SIZES rest "}"
#define QWEN3(rest) "{\"model_type\": \"qwen3_moe\", \"intermediate_size\": 12, " SIZES rest "}"
#define OLMOE(rest) "{\"model_type\": \"olmoe\", \"intermediate_size\": 6, " SIZES rest "}"

enum { MAX_TENSOR = 128, N_LAYER = 3 };

typedef struct fixture {
    mdp_catalogue catalogue;
    mdp_tensor tensors[MAX_TENSOR];
    char names[MAX_TENSOR][100];
    char config[2000];
} fixture;

static int by_name(const void *a, const void *b) {
    return strcmp(((const mdp_tensor *)a)->name, ((const mdp_tensor *)b)->name);
}

/* n_col 0: a vector. */
static void add(fixture *f, int layer, const char *name, int64_t n_row, int64_t n_col) {
    int64_t t = f->catalogue.n_tensor++;
    assert_true(t < MAX_TENSOR);
    char prefix[32] = "";
    if (layer >= 0) (void)snprintf(prefix, sizeof prefix, "model.layers.%d.", layer);
    (void)snprintf(f->names[t], sizeof f->names[t], "%s%s", prefix, name);
    f->tensors[t] =
        (mdp_tensor){.name = f->names[t], .type = MDP_F32, .n_dim = n_col == 0 ? 1 : 2, .shape = {n_row, n_col}};
}

static void finish(fixture *f, const char *config) {
    (void)snprintf(f->config, sizeof f->config, "%s", config);
    f->catalogue.path = (char *)"tiny";
    f->catalogue.tensors = f->tensors;
    f->catalogue.config_text = f->config;
    f->catalogue.config_byte = (int64_t)strlen(f->config);
    qsort(f->tensors, (size_t)f->catalogue.n_tensor, sizeof f->tensors[0], by_name);
}

static void add_mlp(fixture *f, int layer, const char *prefix, int64_t ff) {
    static const char *const parts[] = {"gate", "up", "down"};
    for (int p = 0; p < 3; p++) {
        char name[80];
        (void)snprintf(name, sizeof name, "%s%s_proj.weight", prefix, parts[p]);
        add(f, layer, name, p == 2 ? 8 : ff, p == 2 ? ff : 8);
    }
}

static void add_attention(fixture *f, int layer) {
    add(f, layer, "input_layernorm.weight", 8, 0);
    add(f, layer, "post_attention_layernorm.weight", 8, 0);
    add(f, layer, "self_attn.q_proj.weight", 8, 8);
    add(f, layer, "self_attn.k_proj.weight", 4, 8);
    add(f, layer, "self_attn.v_proj.weight", 4, 8);
    add(f, layer, "self_attn.o_proj.weight", 8, 8);
}

static void add_experts(fixture *f, int layer) {
    add(f, layer, "mlp.gate.weight", 3, 8);
    for (int e = 0; e < 3; e++) {
        char name[80];
        (void)snprintf(name, sizeof name, "mlp.experts.%d.", e);
        add_mlp(f, layer, name, 6);
    }
}

/* Attention and experts in every layer but `dense` (-1: in all), as all three families have them. */
static fixture *common(int dense) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    add(f, -1, "model.embed_tokens.weight", 10, 8);
    add(f, -1, "lm_head.weight", 10, 8);
    add(f, -1, "model.norm.weight", 8, 0);
    for (int l = 0; l < N_LAYER; l++) {
        add_attention(f, l);
        if (l == dense) {
            add_mlp(f, l, "mlp.", 12);
        } else {
            add_experts(f, l);
        }
    }
    return f;
}

static fixture *qwen2(int dense, const char *config) {
    fixture *f = common(dense);
    for (int l = 0; l < N_LAYER; l++) {
        add(f, l, "self_attn.q_proj.bias", 8, 0);
        add(f, l, "self_attn.k_proj.bias", 4, 0);
        add(f, l, "self_attn.v_proj.bias", 4, 0);
        if (l == dense) continue;
        add_mlp(f, l, "mlp.shared_expert.", 5);
        add(f, l, "mlp.shared_expert_gate.weight", 1, 8);
    }
    finish(f, config);
    return f;
}

/* With norms of n_q and n_k values, and with biases of all four projections when asked for. */
static fixture *normed(int64_t n_q, int64_t n_k, bool bias, const char *config) {
    fixture *f = common(-1);
    for (int l = 0; l < N_LAYER; l++) {
        add(f, l, "self_attn.q_norm.weight", n_q, 0);
        add(f, l, "self_attn.k_norm.weight", n_k, 0);
        if (!bias) continue;
        add(f, l, "self_attn.q_proj.bias", 8, 0);
        add(f, l, "self_attn.k_proj.bias", 4, 0);
        add(f, l, "self_attn.v_proj.bias", 4, 0);
        add(f, l, "self_attn.o_proj.bias", 8, 0);
    }
    finish(f, config);
    return f;
}

static void drop(fixture *f, const char *name) {
    for (int64_t t = 0; t < f->catalogue.n_tensor; t++) {
        if (strcmp(f->tensors[t].name, name) != 0) continue;
        f->tensors[t] = f->tensors[--f->catalogue.n_tensor];
        qsort(f->tensors, (size_t)f->catalogue.n_tensor, sizeof f->tensors[0], by_name);
        return;
    }
    fail_msg("no tensor %s", name);
}

static mdp_model *must_bind(fixture *f) {
    mdp_model *model = NULL;
    mdp_status status = mdp_model_bind(&f->catalogue, &model);
    if (status.code != MDP_OK) fail_msg("%s", status.text);
    return model;
}

static void must_refuse(fixture *f, const char *sentence) {
    mdp_model *model = NULL;
    mdp_status status = mdp_model_bind(&f->catalogue, &model);
    assert_null(model);
    if (status.code != MDP_BAD_INPUT) fail_msg("code %d instead of: %s", status.code, sentence);
    if (strstr(status.text, sentence) == NULL) fail_msg("'%s' does not say '%s'", status.text, sentence);
    free(f);
}

static void assert_matrix(const mdp_matrix *m, const char *name, int64_t n_row, int64_t n_col) {
    assert_non_null(m->tensor);
    assert_string_equal(m->tensor->name, name);
    assert_int_equal(m->n_row, n_row);
    assert_int_equal(m->n_col, n_col);
}

static void every_family_has_a_row(void **state) {
    (void)state;
    for (const char *const *name = mdp_family_names(); *name != NULL; name++) {
        char config[100];
        (void)snprintf(config, sizeof config, "{\"model_type\": \"%s\", \"hidden_size\": 0, \"d_model\": 0}", *name);
        must_refuse(qwen2(0, config), "' is 0; expected a number");
    }
}

static void qwen2_has_a_dense_layer_biases_and_a_gated_shared_expert(void **state) {
    (void)state;
    fixture *f = qwen2(0, QWEN2(", \"mlp_only_layers\": [0]"));
    mdp_model *m = must_bind(f);
    const mdp_layer *dense = &m->layers[0], *layer = &m->layers[2];
    assert_false(dense->is_moe);
    assert_int_equal(dense->dense_ff, 12);
    assert_int_equal(dense->activation.kind, MDP_SILU);
    assert_int_equal(dense->moe.n_expert, 0);
    assert_matrix(&dense->dense.gate, "model.layers.0.mlp.gate_proj.weight", 12, 8);
    assert_matrix(&dense->dense.up, "model.layers.0.mlp.up_proj.weight", 12, 8);
    assert_matrix(&dense->dense.down, "model.layers.0.mlp.down_proj.weight", 8, 12);
    assert_matrix(&dense->attention.q_bias, "model.layers.0.self_attn.q_proj.bias", 1, 8);
    assert_true(layer->is_moe && layer->dense.gate.tensor == NULL);
    assert_false(layer->moe.rule.normalise);
    assert_int_equal(layer->moe.shared_ff, 5);
    assert_matrix(&layer->moe.shared.gate, "model.layers.2.mlp.shared_expert.gate_proj.weight", 5, 8);
    assert_matrix(&layer->moe.shared.up, "model.layers.2.mlp.shared_expert.up_proj.weight", 5, 8);
    assert_matrix(&layer->moe.shared.down, "model.layers.2.mlp.shared_expert.down_proj.weight", 8, 5);
    assert_matrix(&layer->moe.shared_gate, "model.layers.2.mlp.shared_expert_gate.weight", 1, 8);
    assert_matrix(&layer->moe.experts[1].up, "model.layers.2.mlp.experts.1.up_proj.weight", 6, 8);
    assert_matrix(&layer->attention.k_bias, "model.layers.2.self_attn.k_proj.bias", 1, 4);
    assert_matrix(&layer->attention.v_bias, "model.layers.2.self_attn.v_proj.bias", 1, 4);
    assert_null(layer->attention.o_bias.tensor);
    assert_true(layer->attention.qk_norm == MDP_QK_NORM_NONE && layer->attention.clip == 0.0);
    assert_int_equal(layer->moe.n_expert_tensor, 1 + 3 * 3); /* the shared expert stays when experts go */
    /* ends; attention and norms with biases; dense MLP; twice router, shared expert with its gate */
    int64_t outside = 168 + 3 * (16 + 192 + 16) + 3 * 96 + 2 * (24 + 3 * 40 + 8), expert = 3 * 48;
    assert_int_equal(m->n_parameter, outside + 2 * 3 * expert);
    assert_int_equal(m->n_active, outside + 2 * 2 * expert);
    mdp_model_destroy(m);
    free(f);
}

static void every_second_layer_may_be_dense(void **state) {
    (void)state;
    const char *config = QWEN2(", \"decoder_sparse_step\": 2, \"mlp_only_layers\": null");
    fixture *f = qwen2(0, config);
    add_mlp(f, 2, "mlp.", 12);
    finish(f, config);
    must_refuse(
        f, "belongs to an expert of layer 2, which is dense by config.json (decoder_sparse_step, mlp_only_layers)");
    must_refuse(qwen2(0, QWEN2("")), "layer 0: the router is missing ('model.layers.0.mlp.gate.weight'");
    must_refuse(qwen2(-1, QWEN2(", \"mlp_only_layers\": [1]")),
                "layer 1: the dense MLP's gate projection is missing ('model.layers.1.mlp.gate_proj.weight'");
}

static void norms_of_queries_and_keys(void **state) {
    (void)state;
    fixture *f = normed(2, 2, true, QWEN3(", \"attention_bias\": true, \"norm_topk_prob\": true"));
    mdp_model *m = must_bind(f);
    const mdp_attention *a = &m->layers[1].attention;
    assert_int_equal(a->qk_norm, MDP_QK_NORM_HEAD);
    assert_matrix(&a->q_norm, "model.layers.1.self_attn.q_norm.weight", 1, 2);
    assert_matrix(&a->k_norm, "model.layers.1.self_attn.k_norm.weight", 1, 2);
    assert_matrix(&a->o_bias, "model.layers.1.self_attn.o_proj.bias", 1, 8);
    assert_true(m->layers[1].moe.rule.normalise && m->layers[1].moe.shared.gate.tensor == NULL);
    mdp_model_destroy(m);
    free(f);
    f = normed(8, 4, false, OLMOE(", \"clip_qkv\": 2.5"));
    m = must_bind(f);
    a = &m->layers[1].attention;
    assert_int_equal(a->qk_norm, MDP_QK_NORM_WHOLE);
    assert_matrix(&a->q_norm, "model.layers.1.self_attn.q_norm.weight", 1, 8);
    assert_matrix(&a->k_norm, "model.layers.1.self_attn.k_norm.weight", 1, 4);
    assert_true(a->clip == 2.5 && a->q_bias.tensor == NULL && a->o_bias.tensor == NULL);
    assert_int_equal(m->layers[1].moe.d_ff, 6);
    mdp_model_destroy(m);
    free(f);
    must_refuse(normed(2, 2, false, OLMOE("")), "query norm 'model.layers.0.self_attn.q_norm.weight' has shape [2], "
                                                "config.json says [8] (all heads)");
    must_refuse(normed(8, 4, false, QWEN3("")), "has shape [8], config.json says [2] (head size)");
}

/* Windows of the three layers. */
static void assert_windows(fixture *f, int64_t w0, int64_t w1, int64_t w2) {
    mdp_model *m = must_bind(f);
    assert_int_equal(m->layers[0].attention.window, w0);
    assert_int_equal(m->layers[1].attention.window, w1);
    assert_int_equal(m->layers[2].attention.window, w2);
    mdp_model_destroy(m);
    free(f);
}

static void windows_by_layer(void **state) {
    (void)state;
#define ON ", \"use_sliding_window\": true, \"sliding_window\": 7"
    assert_windows(qwen2(-1, QWEN2(", \"sliding_window\": 7")), 0, 0, 0);
    assert_windows(qwen2(-1, QWEN2(", \"use_sliding_window\": false, \"sliding_window\": 0")), 0, 0, 0);
    assert_windows(qwen2(-1, QWEN2(", \"use_sliding_window\": true")), 4096, 0, 4096);
    assert_windows(qwen2(-1, QWEN2(", \"use_sliding_window\": true, \"sliding_window\": null")), 0, 0, 0);
    assert_windows(qwen2(-1, QWEN2(ON)), 7, 0, 7);
    assert_windows(qwen2(-1, QWEN2(ON ", \"max_window_layers\": 2")), 7, 0, 0);
    assert_windows(qwen2(-1, QWEN2(ON ", \"max_window_layers\": 0")), 0, 0, 0);
    assert_windows(qwen2(-1, QWEN2(ON ", \"layer_types\": [\"full_attention\", \"sliding_attention\", "
                                      "\"full_attention\"]")),
                   0, 7, 0);
    assert_windows(normed(2, 2, false, QWEN3(ON ", \"max_window_layers\": 1")), 7, 7, 7);
    assert_windows(normed(2, 2, false, QWEN3(", \"sliding_window\": 7")), 0, 0, 0);
    assert_windows(normed(8, 4, false, OLMOE(ON)), 0, 0, 0);
}

static void settings_that_cannot_be_are_named(void **state) {
    (void)state;
    must_refuse(qwen2(-1, QWEN2(", \"mlp_only_layers\": 1")), "'mlp_only_layers' is a whole number; expected a list");
    must_refuse(qwen2(-1, QWEN2(", \"mlp_only_layers\": [\"1\"]")), "'mlp_only_layers' holds a text; expected a list");
    must_refuse(qwen2(-1, QWEN2(", \"mlp_only_layers\": [0, 1, 2]")), "none of the 3 layers has experts");
    must_refuse(qwen2(-1, QWEN2(", \"decoder_sparse_step\": 4")), "none of the 3 layers has experts (decoder_sparse");
    must_refuse(qwen2(-1, QWEN2(", \"decoder_sparse_step\": 0")),
                "'decoder_sparse_step' is 0; expected a number from 1");
    must_refuse(qwen2(-1, QWEN2(ON ", \"max_window_layers\": -1")),
                "'max_window_layers' is -1; expected a number from 0");
    must_refuse(qwen2(-1, QWEN2(", \"layer_types\": {}")), "'layer_types' is an object; expected a list of types");
    must_refuse(qwen2(-1, QWEN2(ON ", \"layer_types\": [\"full_attention\"]")),
                "'layer_types' names 1 layers, 'num_hidden_layers' is 3");
    must_refuse(
        qwen2(-1, QWEN2(ON ", \"layer_types\": [\"full_attention\", \"chunked_attention\", \"full_attention\"]")),
        "layer 1 is 'chunked_attention' ('layer_types'); supported are full_attention and sliding_attention");
    must_refuse(qwen2(-1, QWEN2(", \"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\"]")),
                "layer 1 is 'sliding_attention' ('layer_types'), but there is no window ('sliding_window')");
    must_refuse(normed(8, 4, false, OLMOE(", \"clip_qkv\": 0")), "'clip_qkv' is 0; expected a number above 0");
    must_refuse(normed(8, 4, false, OLMOE(", \"clip_qkv\": \"8\"")), "'clip_qkv' is a text; expected a number");
    must_refuse(qwen2(-1, QWEN2(", \"num_local_experts\": 4")), "'num_experts' is 3 and 'num_local_experts' is 4");
}

static void missing_parts_are_named(void **state) {
    (void)state;
    fixture *f = qwen2(-1, QWEN2(""));
    drop(f, "model.layers.1.self_attn.k_proj.bias");
    must_refuse(f,
                "layer 1: the key bias is missing ('model.layers.1.self_attn.k_proj.bias' is not in the checkpoint)");
    f = qwen2(-1, QWEN2(""));
    drop(f, "model.layers.2.mlp.shared_expert.down_proj.weight");
    must_refuse(f, "layer 2: the shared expert's down projection is missing");
    f = qwen2(-1, QWEN2(""));
    drop(f, "model.layers.2.mlp.shared_expert_gate.weight");
    must_refuse(f, "layer 2: the gate of the shared expert is missing");
}

static void packed_weights_are_named(void **state) {
    (void)state;
    static const struct {
        const char *tensor, *sentence;
    } signs[] = {
        {"mlp.experts.0.up_proj.g_idx", "quantised (GPTQ: 'model.layers.0.mlp.experts.0.up_proj.g_idx')"},
        {"mlp.experts.0.up_proj.qweight", "quantised (GPTQ or AWQ: "},
        {"self_attn.q_proj.SCB", "quantised (bitsandbytes, 8 bits: "},
        {"self_attn.q_proj.weight.absmax", "quantised (bitsandbytes, 4 bits: "},
        {"self_attn.q_proj.weight_packed", "quantised (compressed-tensors: "},
    };
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        fixture *f = qwen2(-1, QWEN2(""));
        add(f, 0, signs[i].tensor, 8, 8);
        finish(f, QWEN2(""));
        must_refuse(f, signs[i].sentence);
    }
    static const char *const methods[] = {"gptq", "awq", "bitsandbytes"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        char config[1000], sentence[100];
        (void)snprintf(config, sizeof config, QWEN2(", \"quantization_config\": {\"quant_method\": \"%s\"}"),
                       methods[i]);
        (void)snprintf(sentence, sizeof sentence, "quantised (quantization_config, quant_method %s)", methods[i]);
        must_refuse(qwen2(-1, config), sentence);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_has_a_row),
        cmocka_unit_test(qwen2_has_a_dense_layer_biases_and_a_gated_shared_expert),
        cmocka_unit_test(every_second_layer_may_be_dense),
        cmocka_unit_test(norms_of_queries_and_keys),
        cmocka_unit_test(windows_by_layer),
        cmocka_unit_test(settings_that_cannot_be_are_named),
        cmocka_unit_test(missing_parts_are_named),
        cmocka_unit_test(packed_weights_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
