/* family.c - the table of supported families. Adding one is adding a row (and, for a rule that no row has yet, the
 * rule). Class defaults are those of the configuration classes of HF transformers, because config.json may omit any
 * key. */
#include "model/family.h"

#include <string.h>

static const mdp_family FAMILIES[] = {
    {
        .model_type = "mixtral",
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "intermediate_size", .absent = 14336},
        .n_layer = {.name = "num_hidden_layers", .absent = 32},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8, .null_is_absent = true},
        .head_dim = {.name = "head_dim", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 32000},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .n_expert = {.name = "num_local_experts", .other = "num_experts", .absent = 8},
        .top_k = {.name = "num_experts_per_tok", .absent = 2},
        .window = {.name = "sliding_window", .null_is_absent = true},
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .tied = {.name = "tie_word_embeddings", .absent = false},
        .activation_key = "hidden_act",
        .activation = "silu",
        .rope_theta = 1e6,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_ALWAYS,
        .rope_layout = MDP_ROPE_HALF,
        .embedding = "model.embed_tokens.weight",
        .final_norm = "model.norm.weight",
        .head = "lm_head.weight",
        .norm1 = "model.layers.{layer}.input_layernorm.weight",
        .norm2 = "model.layers.{layer}.post_attention_layernorm.weight",
        .q = "model.layers.{layer}.self_attn.q_proj.weight",
        .k = "model.layers.{layer}.self_attn.k_proj.weight",
        .v = "model.layers.{layer}.self_attn.v_proj.weight",
        .o = "model.layers.{layer}.self_attn.o_proj.weight",
        .layouts =
            {
                {
                    .router = "model.layers.{layer}.block_sparse_moe.gate.weight",
                    .experts = "model.layers.{layer}.block_sparse_moe.experts.",
                    .gate = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
                    .up = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
                    .down = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
                },
                {
                    /* as transformers 5 holds it in memory and some tools save it */
                    .router = "model.layers.{layer}.mlp.gate.weight",
                    .experts = "model.layers.{layer}.mlp.experts.",
                    .fused_gate_up = "model.layers.{layer}.mlp.experts.gate_up_proj",
                    .fused_down = "model.layers.{layer}.mlp.experts.down_proj",
                },
            },
    },
};

enum { N_FAMILY = sizeof FAMILIES / sizeof FAMILIES[0] };

static const char *const NAMES[N_FAMILY + 1] = {"mixtral", NULL};

const char *const *mdp_family_names(void) {
    return NAMES;
}

mdp_status mdp_family_find(const char *model_type, const char *path, const mdp_family **out) {
    char supported[512] = "";
    size_t used = 0;
    for (int i = 0; i < N_FAMILY; i++) {
        *out = &FAMILIES[i];
        if (strcmp(FAMILIES[i].model_type, model_type) == 0) return mdp_ok();
        int n = snprintf(supported + used, sizeof supported - used, "%s%s", i == 0 ? "" : ", ", FAMILIES[i].model_type);
        if (n > 0 && used + (size_t)n < sizeof supported) used += (size_t)n;
    }
    const char *near = mdp_nearest(model_type, NAMES, N_FAMILY);
    return MDP_ERROR(MDP_BAD_INPUT, "%s: model_type '%s' is not supported%s%s%s; supported: %s.", path, model_type,
                     near == NULL ? "" : " (did you mean '", near == NULL ? "" : near, near == NULL ? "" : "'?)",
                     supported);
}
