/* Binding hand-built catalogues: every layout and config spelling, and every mistake with its sentence. */
#include "mdp/model.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A tiny Mixtral: H 8, I 6, 2 layers, 4 heads of 2, 2 kv heads, V 10, E 3, k 2. */
#define CONFIG_REST                                                                                                    \
    "\"hidden_size\": 8, \"intermediate_size\": 6, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "             \
    "\"num_key_value_heads\": 2, \"vocab_size\": 10, \"max_position_embeddings\": 64"
#define CONFIG "{\"model_type\": \"mixtral\", " CONFIG_REST ", \"num_local_experts\": 3, \"num_experts_per_tok\": 2}"

enum { MAX_TENSOR = 64 };

typedef struct fixture {
    mdp_catalogue catalogue;
    mdp_tensor tensors[MAX_TENSOR];
    char names[MAX_TENSOR][200];
    char config[2000];
} fixture;

static void add(fixture *f, const char *name, int n_dim, int64_t d0, int64_t d1, int64_t d2) {
    int64_t t = f->catalogue.n_tensor++;
    assert_true(t < MAX_TENSOR);
    (void)snprintf(f->names[t], sizeof f->names[t], "%s", name);
    f->tensors[t] = (mdp_tensor){.name = f->names[t], .type = MDP_BF16, .n_dim = n_dim, .shape = {d0, d1, d2}};
}

static void add_layer(fixture *f, int layer, const char *name, int n_dim, int64_t d0, int64_t d1, int64_t d2) {
    char full[200];
    (void)snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    add(f, full, n_dim, d0, d1, d2);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const mdp_tensor *)a)->name, ((const mdp_tensor *)b)->name);
}

static void finish(fixture *f, const char *config) {
    (void)snprintf(f->config, sizeof f->config, "%s", config);
    f->catalogue.path = (char *)"tiny";
    f->catalogue.tensors = f->tensors;
    f->catalogue.config_text = f->config;
    f->catalogue.config_byte = (int64_t)strlen(f->config);
    qsort(f->tensors, (size_t)f->catalogue.n_tensor, sizeof f->tensors[0], by_name);
}

static void add_common(fixture *f) {
    add(f, "model.embed_tokens.weight", 2, 10, 8, 0);
    add(f, "lm_head.weight", 2, 10, 8, 0);
    add(f, "model.norm.weight", 1, 8, 0, 0);
    for (int l = 0; l < 2; l++) {
        add_layer(f, l, "input_layernorm.weight", 1, 8, 0, 0);
        add_layer(f, l, "post_attention_layernorm.weight", 1, 8, 0, 0);
        add_layer(f, l, "self_attn.q_proj.weight", 2, 8, 8, 0);
        add_layer(f, l, "self_attn.k_proj.weight", 2, 4, 8, 0);
        add_layer(f, l, "self_attn.v_proj.weight", 2, 4, 8, 0);
        add_layer(f, l, "self_attn.o_proj.weight", 2, 8, 8, 0);
    }
}

static void add_experts(fixture *f, int layer, int n_expert) {
    char name[100];
    add_layer(f, layer, "block_sparse_moe.gate.weight", 2, n_expert, 8, 0);
    for (int e = 0; e < n_expert; e++) {
        for (int w = 1; w <= 3; w++) {
            (void)snprintf(name, sizeof name, "block_sparse_moe.experts.%d.w%d.weight", e, w);
            add_layer(f, layer, name, 2, w == 2 ? 8 : 6, w == 2 ? 6 : 8, 0);
        }
    }
}

static fixture *tiny(const char *config) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    add_common(f);
    add_experts(f, 0, 3);
    add_experts(f, 1, 3);
    finish(f, config);
    return f;
}

static mdp_tensor *find(fixture *f, const char *name) {
    for (int64_t t = 0; t < f->catalogue.n_tensor; t++) {
        if (strcmp(f->tensors[t].name, name) == 0) return &f->tensors[t];
    }
    fail_msg("no tensor %s", name);
    return NULL;
}

static void drop(fixture *f, const char *name) {
    mdp_tensor *tensor = find(f, name);
    int64_t at = tensor - f->tensors;
    memmove(tensor, tensor + 1, (size_t)(f->catalogue.n_tensor - at - 1) * sizeof *tensor);
    f->catalogue.n_tensor--;
}

static void rename_to(fixture *f, const char *name, const char *other) {
    mdp_tensor *tensor = find(f, name);
    (void)snprintf((char *)tensor->name, 100, "%s", other);
    qsort(f->tensors, (size_t)f->catalogue.n_tensor, sizeof f->tensors[0], by_name);
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

static void refuse_config(const char *config, const char *sentence) {
    must_refuse(tiny(config), sentence);
}

static void assert_matrix(const mdp_matrix *m, const char *name, int64_t n_row, int64_t n_col, int64_t first) {
    assert_string_equal(m->tensor->name, name);
    assert_int_equal(m->n_row, n_row);
    assert_int_equal(m->n_col, n_col);
    assert_int_equal(m->first, first);
    assert_int_equal(m->row_stride, n_col);
    assert_int_equal(m->col_stride, 1);
}

static void per_expert_layout(void **state) {
    (void)state;
    fixture *f = tiny(CONFIG);
    mdp_model *m = must_bind(f);
    assert_string_equal(m->model_type, "mixtral");
    assert_int_equal(m->n_layer, 2);
    assert_int_equal(m->head_dim, 2);
    assert_int_equal(m->n_kv_head, 2);
    assert_int_equal(m->rope.n_pair, 1);
    assert_true(m->norm_eps == 1e-5 && m->rope.theta == 1e6);
    assert_matrix(&m->embedding, "model.embed_tokens.weight", 10, 8, 0);
    assert_matrix(&m->head, "lm_head.weight", 10, 8, 0);
    assert_matrix(&m->final_norm.weight, "model.norm.weight", 1, 8, 0);
    const mdp_layer *layer = &m->layers[1];
    assert_matrix(&layer->norm1.weight, "model.layers.1.input_layernorm.weight", 1, 8, 0);
    assert_matrix(&layer->norm2.weight, "model.layers.1.post_attention_layernorm.weight", 1, 8, 0);
    assert_matrix(&layer->attention.k, "model.layers.1.self_attn.k_proj.weight", 4, 8, 0);
    assert_matrix(&layer->attention.o, "model.layers.1.self_attn.o_proj.weight", 8, 8, 0);
    assert_true(layer->attention.window == 0 && layer->attention.scale > 0.7071 && layer->attention.scale < 0.7072);
    assert_true(layer->is_moe && layer->moe.rule.score == MDP_SOFTMAX_ALL && layer->moe.rule.normalise);
    assert_int_equal(layer->moe.n_expert, 3);
    assert_int_equal(layer->moe.top_k, 2);
    assert_int_equal(layer->moe.d_ff, 6);
    assert_int_equal(layer->moe.activation.kind, MDP_SILU);
    assert_matrix(&layer->moe.router, "model.layers.1.block_sparse_moe.gate.weight", 3, 8, 0);
    assert_matrix(&layer->moe.experts[2].gate, "model.layers.1.block_sparse_moe.experts.2.w1.weight", 6, 8, 0);
    assert_matrix(&layer->moe.experts[2].up, "model.layers.1.block_sparse_moe.experts.2.w3.weight", 6, 8, 0);
    assert_matrix(&layer->moe.experts[2].down, "model.layers.1.block_sparse_moe.experts.2.w2.weight", 8, 6, 0);
    /* embedding, head, norm; per layer two norms, q and o, k and v, router, experts */
    int64_t outside = 80 + 80 + 8 + 2 * (16 + 128 + 64 + 24), expert = 3 * 48;
    assert_int_equal(m->n_parameter, outside + 2 * 3 * expert);
    assert_int_equal(m->n_active, outside + 2 * 2 * expert);
    mdp_model_destroy(m);
    free(f);
}

static void every_tensor_that_experts_change_is_listed_once(void **state) {
    (void)state;
    fixture *f = tiny(CONFIG);
    mdp_model *m = must_bind(f);
    const mdp_moe *moe = &m->layers[1].moe;
    assert_int_equal(moe->n_expert_tensor, 1 + 3 * 3);
    int n_seen = 0;
    for (int64_t t = 0; t < f->catalogue.n_tensor; t++) {
        const char *name = f->tensors[t].name;
        int n_listed = 0;
        for (int64_t i = 0; i < moe->n_expert_tensor; i++) {
            const mdp_expert_tensor *listed = &moe->expert_tensors[i];
            if (listed->tensor != &f->tensors[t]) continue;
            n_listed++;
            assert_int_equal(listed->axis, 0);
            const char *experts = strstr(name, "experts.");
            if (experts == NULL) {
                assert_int_equal(listed->expert, -1);
                assert_null(listed->stack);
                continue;
            }
            char stack[100];
            (void)snprintf(stack, sizeof stack, "model.layers.1.block_sparse_moe.experts.{expert}.%s", experts + 10);
            assert_string_equal(listed->stack, stack);
            assert_int_equal(listed->expert, atoi(experts + 8));
        }
        assert_int_equal(n_listed, strstr(name, "layers.1.block_sparse_moe") != NULL);
        n_seen += n_listed;
    }
    assert_int_equal(n_seen, 10);
    mdp_model_destroy(m);
    free(f);
}

static fixture *fused(void) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    add_common(f);
    for (int l = 0; l < 2; l++) {
        add_layer(f, l, "mlp.gate.weight", 2, 3, 8, 0);
        add_layer(f, l, "mlp.experts.gate_up_proj", 3, 3, 12, 8);
        add_layer(f, l, "mlp.experts.down_proj", 3, 3, 8, 6);
    }
    finish(f, CONFIG);
    return f;
}

static void fused_layout(void **state) {
    (void)state;
    fixture *f = fused();
    mdp_model *m = must_bind(f);
    const mdp_moe *moe = &m->layers[1].moe;
    assert_matrix(&moe->router, "model.layers.1.mlp.gate.weight", 3, 8, 0);
    assert_matrix(&moe->experts[2].gate, "model.layers.1.mlp.experts.gate_up_proj", 6, 8, 2 * 96);
    assert_matrix(&moe->experts[2].up, "model.layers.1.mlp.experts.gate_up_proj", 6, 8, 2 * 96 + 48);
    assert_matrix(&moe->experts[2].down, "model.layers.1.mlp.experts.down_proj", 8, 6, 2 * 48);
    assert_int_equal(moe->n_expert_tensor, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(moe->expert_tensors[i].expert, -1);
        assert_int_equal(moe->expert_tensors[i].axis, 0);
        assert_null(moe->expert_tensors[i].stack);
    }
    fixture *same = tiny(CONFIG);
    mdp_model *separate = must_bind(same);
    assert_int_equal(m->n_parameter, separate->n_parameter);
    assert_int_equal(m->n_active, separate->n_active);
    mdp_model_destroy(separate);
    mdp_model_destroy(m);
    free(same);
    find(f, "model.layers.0.mlp.experts.gate_up_proj")->shape[1] = 6;
    must_refuse(f,
                "has shape [3, 6, 8], config.json says [3, 12, 8] (num_local_experts, 2 x intermediate_size, hidden");
}

static void tied_embeddings(void **state) {
    (void)state;
    const char *tied = "{\"model_type\": \"mixtral\", " CONFIG_REST ", \"num_local_experts\": 3, "
                       "\"tie_word_embeddings\": true}";
    fixture *f = tiny(tied);
    mdp_model *m = must_bind(f); /* both on disk: both are used */
    assert_string_equal(m->head.tensor->name, "lm_head.weight");
    assert_string_equal(m->embedding.tensor->name, "model.embed_tokens.weight");
    int64_t with_both = m->n_parameter;
    mdp_model_destroy(m);
    drop(f, "lm_head.weight");
    m = must_bind(f);
    assert_string_equal(m->head.tensor->name, "model.embed_tokens.weight");
    assert_int_equal(m->n_parameter, with_both - 80);
    mdp_model_destroy(m);
    rename_to(f, "model.embed_tokens.weight", "lm_head.weight");
    m = must_bind(f);
    assert_string_equal(m->embedding.tensor->name, "lm_head.weight");
    mdp_model_destroy(m);
    drop(f, "lm_head.weight");
    must_refuse(f, "the embedding is missing ('model.embed_tokens.weight' is not in the checkpoint)");
    f = tiny(CONFIG);
    drop(f, "lm_head.weight");
    must_refuse(f, "tiny: the output head is missing ('lm_head.weight' is not in the checkpoint)");
}

static mdp_model *bind_config(fixture **f, const char *config) {
    *f = tiny(config);
    return must_bind(*f);
}

static void config_spellings_and_nulls(void **state) {
    (void)state;
    fixture *f;
    mdp_model *m = bind_config(&f, "{\"model_type\": \"mixtral\", " CONFIG_REST
                                   ", \"num_experts\": 3, \"head_dim\": null, \"sliding_window\": null, "
                                   "\"rope_scaling\": null, \"quantization_config\": null, \"hidden_act\": \"gelu\"}");
    assert_int_equal(m->layers[0].moe.n_expert, 3);
    assert_int_equal(m->layers[0].moe.top_k, 2); /* class default */
    assert_int_equal(m->layers[0].moe.activation.kind, MDP_GELU);
    mdp_model_destroy(m);
    free(f);
    m = bind_config(&f, "{\"model_type\": \"mixtral\", " CONFIG_REST
                        ", \"num_experts\": 3, \"num_local_experts\": 3, \"head_dim\": 2, \"sliding_window\": 20, "
                        "\"rms_norm_eps\": 1e-6, \"rope_theta\": 5000, \"hidden_act\": \"gelu_pytorch_tanh\"}");
    assert_int_equal(m->layers[1].attention.window, 20);
    assert_true(m->norm_eps == 1e-6 && m->rope.theta == 5000.0);
    assert_int_equal(m->layers[0].moe.activation.kind, MDP_GELU_TANH);
    mdp_model_destroy(m);
    free(f);
}

/* num_key_value_heads null means as many as heads; head_dim need not be hidden_size / heads. */
static void heads_of_their_own_size(void **state) {
    (void)state;
    fixture *f = tiny("{\"model_type\": \"mixtral\", \"hidden_size\": 8, \"intermediate_size\": 6, "
                      "\"num_hidden_layers\": 2, \"num_attention_heads\": 3, \"num_key_value_heads\": null, "
                      "\"head_dim\": 6, \"vocab_size\": 10, \"num_local_experts\": 3}");
    for (int l = 0; l < 2; l++) {
        const char *const names[] = {"q", "k", "v", "o"};
        for (int i = 0; i < 4; i++) {
            char name[100];
            (void)snprintf(name, sizeof name, "model.layers.%d.self_attn.%s_proj.weight", l, names[i]);
            mdp_tensor *tensor = find(f, name);
            tensor->shape[i == 3] = 18;
        }
        find(f, l == 0 ? "model.layers.0.self_attn.o_proj.weight" : "model.layers.1.self_attn.o_proj.weight")
            ->shape[0] = 8;
    }
    mdp_model *m = must_bind(f);
    assert_int_equal(m->n_kv_head, 3);
    assert_int_equal(m->head_dim, 6);
    assert_int_equal(m->layers[0].attention.o.n_col, 18);
    mdp_model_destroy(m);
    free(f);
}

static void bad_configs_are_named(void **state) {
    (void)state;
#define MIXTRAL(rest) "{\"model_type\": \"mixtral\", " CONFIG_REST ", \"num_local_experts\": 3" rest "}"
    refuse_config("not json", "tiny/config.json");
    refuse_config("[1]", "tiny/config.json: expected a JSON object, found a list");
    refuse_config("{}", "tiny/config.json: 'model_type' is missing");
    refuse_config("{\"model_type\": 3}", "'model_type' is a whole number");
    refuse_config("{\"model_type\": \"mixtrale\"}",
                  "model_type 'mixtrale' is not supported (did you mean 'mixtral'?); supported: mixtral");
    refuse_config("{\"model_type\": \"gemma\"}", "model_type 'gemma' is not supported; supported: mixtral");
    refuse_config("{\"model_type\": \"mixtral\", \"num_attention_heads\": 0}",
                  "'num_attention_heads' is 0; expected a number from 1");
    refuse_config("{\"model_type\": \"mixtral\", \"hidden_size\": -8}", "'hidden_size' is -8");
    refuse_config("{\"model_type\": \"mixtral\", \"hidden_size\": null}", "'hidden_size' is null");
    refuse_config("{\"model_type\": \"mixtral\", \"hidden_size\": 8.5}", "'hidden_size' is a number with a fraction");
    refuse_config("{\"model_type\": \"mixtral\", \"vocab_size\": \"10\"}", "'vocab_size' is a text");
    refuse_config("{\"model_type\": \"mixtral\", \"vocab_size\": 99999999999}", "'vocab_size' is 99999999999");
    refuse_config("{\"model_type\": \"mixtral\", \"hidden_size\": 10, \"num_attention_heads\": 4}",
                  "'hidden_size' 10 is not a multiple of 'num_attention_heads' 4 and there is no 'head_dim'");
    refuse_config("{\"model_type\": \"mixtral\", \"num_attention_heads\": 4, \"num_key_value_heads\": 3}",
                  "'num_attention_heads' is 4, which is not a multiple of 'num_key_value_heads' 3");
    refuse_config("{\"model_type\": \"mixtral\", \"head_dim\": 5}", "heads have 5 values ('head_dim')");
    refuse_config(MIXTRAL(", \"num_experts_per_tok\": 4"),
                  "'num_experts_per_tok' is 4, but there are only 3 experts ('num_local_experts')");
    refuse_config(MIXTRAL(", \"num_experts_per_tok\": 0"), "'num_experts_per_tok' is 0");
    refuse_config(MIXTRAL(", \"num_experts\": 4"), "'num_local_experts' is 3 and 'num_experts' is 4");
    refuse_config(MIXTRAL(", \"sliding_window\": 0"), "'sliding_window' is 0");
    refuse_config(MIXTRAL(", \"tie_word_embeddings\": 1"), "'tie_word_embeddings' is a whole number; expected true or");
    refuse_config(MIXTRAL(", \"rms_norm_eps\": -1"), "'rms_norm_eps' is -1");
    refuse_config(MIXTRAL(", \"rms_norm_eps\": \"1\""), "'rms_norm_eps' is a text");
    refuse_config(MIXTRAL(", \"hidden_act\": \"relu\""), "'hidden_act' is 'relu'; supported are silu");
    refuse_config(MIXTRAL(", \"hidden_act\": 1"), "'hidden_act' is a whole number; supported are silu");
    refuse_config(MIXTRAL(", \"rope_scaling\": {\"type\": \"su\"}"), "rope type 'su' (rope_scaling) is not supported");
    refuse_config(MIXTRAL(", \"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}"),
                  "the weights are quantised (quantization_config, quant_method gptq)");
    refuse_config(MIXTRAL(", \"quantization_config\": {}"), "quant_method not named");
    refuse_config("{\"model_type\": \"mixtral\", \"num_hidden_layers\": 2000000000}",
                  "'num_hidden_layers' is 2000000000, but the checkpoint has only");
}

static void missing_tensors_are_named(void **state) {
    (void)state;
    fixture *f = tiny(CONFIG);
    drop(f, "model.layers.1.block_sparse_moe.experts.2.w2.weight");
    must_refuse(f, "tiny: layer 1: expert 2 has no w2 ('model.layers.1.block_sparse_moe.experts.2.w2.weight' is not in "
                   "the checkpoint)");
    f = tiny(CONFIG);
    drop(f, "model.layers.0.block_sparse_moe.gate.weight");
    must_refuse(f, "layer 0: the router is missing ('model.layers.0.block_sparse_moe.gate.weight' is not in the");
    f = tiny(CONFIG);
    drop(f, "model.layers.1.self_attn.v_proj.weight");
    must_refuse(f, "layer 1: the value projection is missing ('model.layers.1.self_attn.v_proj.weight'");
    f = tiny(CONFIG);
    drop(f, "model.norm.weight");
    must_refuse(f, "the final norm is missing ('model.norm.weight'");
    f = fused();
    drop(f, "model.layers.1.mlp.experts.down_proj");
    must_refuse(f, "layer 1: the stack of down projections is missing ('model.layers.1.mlp.experts.down_proj'");
}

static void shapes_and_types_are_checked(void **state) {
    (void)state;
    fixture *f = tiny(CONFIG);
    find(f, "model.layers.1.block_sparse_moe.gate.weight")->shape[0] = 2;
    must_refuse(f, "layer 1: router 'model.layers.1.block_sparse_moe.gate.weight' has shape [2, 8], config.json says "
                   "[3, 8] (num_local_experts, hidden_size); the checkpoint and its config do not belong together");
    f = tiny(CONFIG);
    find(f, "model.embed_tokens.weight")->shape[0] = 11;
    must_refuse(f, "tiny: embedding 'model.embed_tokens.weight' has shape [11, 8], config.json says [10, 8] (vocab_");
    f = tiny(CONFIG);
    find(f, "model.norm.weight")->n_dim = 0;
    must_refuse(f, "final norm 'model.norm.weight' has shape [], config.json says [8] (hidden_size)");
    f = tiny(CONFIG);
    find(f, "model.layers.0.block_sparse_moe.experts.1.w3.weight")->shape[1] = 6;
    must_refuse(f,
                "w3 'model.layers.0.block_sparse_moe.experts.1.w3.weight' has shape [6, 6], config.json says [6, 8]");
    f = tiny(CONFIG);
    find(f, "model.layers.0.block_sparse_moe.experts.1.w3.weight")->type = MDP_F8_E5M2;
    must_refuse(f, "'model.layers.0.block_sparse_moe.experts.1.w3.weight' is stored as F8_E5M2; supported are F32");
    f = tiny(CONFIG);
    find(f, "model.layers.0.input_layernorm.weight")->type = MDP_F8_E4M3;
    must_refuse(f, "'model.layers.0.input_layernorm.weight' is stored as F8_E4M3; supported are F32");
}

static void strange_tensors(void **state) {
    (void)state;
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    add_common(f);
    add_experts(f, 0, 3);
    add_experts(f, 1, 4);
    finish(f, CONFIG);
    find(f, "model.layers.1.block_sparse_moe.gate.weight")->shape[0] = 3;
    must_refuse(f, "layer 1: 'model.layers.1.block_sparse_moe.experts.3.w1.weight' belongs to expert 3, but the layer "
                   "has 3 experts (num_local_experts)");
    f = tiny(CONFIG);
    add(f, "model.layers.2.block_sparse_moe.experts.0.w1.weight", 2, 6, 8, 0);
    finish(f, CONFIG);
    must_refuse(f, "belongs to an expert of layer 2, but config.json says 2 layers (num_hidden_layers)");
    f = tiny(CONFIG);
    add(f, "model.layers.1.block_sparse_moe.experts.0.w1.bias", 1, 6, 0, 0);
    finish(f, CONFIG);
    must_refuse(f, "'model.layers.1.block_sparse_moe.experts.0.w1.bias' lies among the experts, but is no tensor that");
    f = tiny(CONFIG); /* anything else travels along */
    add(f, "model.layers.0.self_attn.rotary_emb.inv_freq", 1, 1, 0, 0);
    add(f, "something.else", 0, 0, 0, 0);
    finish(f, CONFIG);
    mdp_model *m = must_bind(f);
    fixture *plain = tiny(CONFIG);
    mdp_model *same = must_bind(plain);
    assert_int_equal(m->n_parameter, same->n_parameter);
    mdp_model_destroy(m);
    mdp_model_destroy(same);
    free(f);
    free(plain);
}

static void layers_differ_only_in_our_own_files(void **state) {
    (void)state;
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    add_common(f);
    add_experts(f, 0, 3);
    add_experts(f, 1, 2);
    finish(f, CONFIG);
    f->catalogue.container = MDP_NATIVE;
    mdp_model *m = must_bind(f);
    assert_int_equal(m->layers[0].moe.n_expert, 3);
    assert_int_equal(m->layers[1].moe.n_expert, 2);
    assert_int_equal(m->n_parameter - m->n_active, 3 * 48);
    mdp_model_destroy(m);
    find(f, "model.layers.1.block_sparse_moe.gate.weight")->shape[0] = 3;
    mdp_model *none = NULL;
    mdp_status status = mdp_model_bind(&f->catalogue, &none);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "layer 1: router"));
    find(f, "model.layers.1.block_sparse_moe.gate.weight")->shape[0] = 2;
    f->catalogue.container = MDP_HF_FOLDER;
    must_refuse(f,
                "layer 1: router 'model.layers.1.block_sparse_moe.gate.weight' has shape [2, 8], config.json says [3");
    f = calloc(1, sizeof *f);
    assert_non_null(f);
    add_common(f);
    add_experts(f, 0, 3);
    add_experts(f, 1, 1);
    finish(f, CONFIG);
    f->catalogue.container = MDP_NATIVE;
    must_refuse(f, "layer 1: 1 experts are stored, but each token chooses 2 (num_experts_per_tok)");
}

/* Every allocation of a bind fails once: an error each time, nothing left behind (the sanitizer build looks). */
static void every_failing_step_is_an_error(void **state) {
    (void)state;
    fixture *f = tiny(CONFIG);
    int n_error = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        mdp_model *model = NULL;
        mdp_fault_configure(60, seed);
        mdp_status status = mdp_model_bind(&f->catalogue, &model);
        mdp_fault_configure(0, 0);
        assert_true((status.code == MDP_OK) == (model != NULL));
        n_error += status.code != MDP_OK;
        mdp_model_destroy(model);
    }
#ifdef MDP_DEBUG_HOOKS
    assert_true(n_error > 10);
#endif
    free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(per_expert_layout),
        cmocka_unit_test(every_tensor_that_experts_change_is_listed_once),
        cmocka_unit_test(fused_layout),
        cmocka_unit_test(tied_embeddings),
        cmocka_unit_test(config_spellings_and_nulls),
        cmocka_unit_test(heads_of_their_own_size),
        cmocka_unit_test(bad_configs_are_named),
        cmocka_unit_test(missing_tensors_are_named),
        cmocka_unit_test(shapes_and_types_are_checked),
        cmocka_unit_test(strange_tensors),
        cmocka_unit_test(layers_differ_only_in_our_own_files),
        cmocka_unit_test(every_failing_step_is_an_error),
    };
    return cmocka_run_group_tests_name("model_bind", tests, NULL, NULL);
}
