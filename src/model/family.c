/* family.c - the table of supported families. Adding one is adding a row and its name (and, for a rule that no row has
 * yet, the rule). Class defaults are those of the configuration classes of HF transformers, because config.json may
 * omit any key. What several rows spell alike has one name below; a row may say otherwise after it. */
#include "model/family.h"

#include <string.h>

#define LAYER "model.layers.{layer}."

/* Keys that all rows call the same, and the same absent value in each of their classes. */
#define SILU_KEY .activation_key = "hidden_act", .activation = "silu"
#define COMMON_KEYS .head_dim = {.name = "head_dim", .null_is_absent = true}, KEYS_BESIDE_HEADS
#define KEYS_BESIDE_HEADS                                                                                              \
    .tied = {.name = "tie_word_embeddings", .absent = false}, SILU_KEY, .rope_layout = MDP_ROPE_HALF

/* Tensors of a decoder under `root`, those of a layer under `layer`. */
#define ROOTED_TENSORS(root, layer) .head = "lm_head.weight", ROOTED_TENSORS_BUT_HEAD(root, layer)
#define ROOTED_TENSORS_BUT_HEAD(root, layer)                                                                           \
    .embedding = root "embed_tokens.weight", .final_norm = root "norm.weight",                                         \
    .norm1 = layer "input_layernorm.weight", .norm2 = layer "post_attention_layernorm.weight",                         \
    .q = layer "self_attn.q_proj.weight", .k = layer "self_attn.k_proj.weight", .v = layer "self_attn.v_proj.weight",  \
    .o = layer "self_attn.o_proj.weight"
#define ROOTED_QKV_BIASES(layer)                                                                                       \
    .q_bias = layer "self_attn.q_proj.bias", .k_bias = layer "self_attn.k_proj.bias",                                  \
    .v_bias = layer "self_attn.v_proj.bias"
#define ROOTED_QK_NORMS(layer) .q_norm = layer "self_attn.q_norm.weight", .k_norm = layer "self_attn.k_norm.weight"
#define ROOTED_MLP(layer, part)                                                                                        \
    {                                                                                                                  \
        .gate = layer "mlp." part "gate_proj.weight", .up = layer "mlp." part "up_proj.weight",                        \
        .down = layer "mlp." part "down_proj.weight",                                                                  \
    }

#define COMMON_TENSORS ROOTED_TENSORS("model.", LAYER)
#define QKV_BIASES ROOTED_QKV_BIASES(LAYER)
#define QKVO_BIASES QKV_BIASES, .o_bias = LAYER "self_attn.o_proj.bias"

#define LATENT_TENSORS                                                                                                 \
    .embedding = "model.embed_tokens.weight", .final_norm = "model.norm.weight", .head = "lm_head.weight",             \
    .norm1 = LAYER "input_layernorm.weight", .norm2 = LAYER "post_attention_layernorm.weight",                         \
    .q_a = LAYER "self_attn.q_a_proj.weight", .q_a_bias = LAYER "self_attn.q_a_proj.bias",                             \
    .q_a_norm = LAYER "self_attn.q_a_layernorm.weight", .q = LAYER "self_attn.q_b_proj.weight",                        \
    .whole_q = LAYER "self_attn.q_proj.weight", .kv_a = LAYER "self_attn.kv_a_proj_with_mqa.weight",                   \
    .kv_a_bias = LAYER "self_attn.kv_a_proj_with_mqa.bias", .kv_a_norm = LAYER "self_attn.kv_a_layernorm.weight",      \
    .kv_b = LAYER "self_attn.kv_b_proj.weight", .o = LAYER "self_attn.o_proj.weight",                                  \
    .o_bias = LAYER "self_attn.o_proj.bias"

#define QK_NORMS ROOTED_QK_NORMS(LAYER)

/* "mlp." of a layer with something before the projections ("", "shared_expert."). */
#define GATED_MLP(part) ROOTED_MLP(LAYER, part)

/* One tensor per matrix of an expert: as the public checkpoints have it. */
#define SEPARATE_EXPERT_NAMES SEPARATE_EXPERT_NAMES_OF(LAYER)
#define SEPARATE_EXPERT_NAMES_OF(layer)                                                                                \
    .router = layer "mlp.gate.weight", .experts = layer "mlp.experts.",                                                \
    .gate = layer "mlp.experts.{expert}.gate_proj.weight", .up = layer "mlp.experts.{expert}.up_proj.weight",          \
    .down = layer "mlp.experts.{expert}.down_proj.weight"

/* As transformers 5 holds the experts in memory and some tools save them. */
#define FUSED_EXPERT_NAMES FUSED_EXPERT_NAMES_OF(LAYER)
#define FUSED_EXPERT_NAMES_OF(layer)                                                                                   \
    .router = layer "mlp.gate.weight", .experts = layer "mlp.experts.",                                                \
    .fused_gate_up = layer "mlp.experts.gate_up_proj", .fused_down = layer "mlp.experts.down_proj"

#define SEPARATE_EXPERTS                                                                                               \
    { SEPARATE_EXPERT_NAMES }
#define FUSED_EXPERTS                                                                                                  \
    { FUSED_EXPERT_NAMES }
/* The same with a bias for choosing. */
#define BIASED_SEPARATE_EXPERTS(bias)                                                                                  \
    { SEPARATE_EXPERT_NAMES, .choice_bias = (bias) }
#define BIASED_FUSED_EXPERTS(bias)                                                                                     \
    { FUSED_EXPERT_NAMES, .choice_bias = (bias) }
#define BIAS_OF_GATE LAYER "mlp.gate.e_score_correction_bias"
#define BIAS_OF_BLOCK LAYER "mlp.e_score_correction_bias"
#define BIAS_OF_STATICS LAYER "mlp.moe_statics.e_score_correction_bias"
#define BIAS_OF_GATE_STATICS LAYER "mlp.gate.moe_statics.e_score_correction_bias"

/* Of layers that predict further tokens in ERNIE; published ones have no experts. */
#define ERNIE_EXTRA_LAYER "model.mtp_block.{layer}."
#define ERNIE_EXTRA_EXPERTS                                                                                            \
    {                                                                                                                  \
        SEPARATE_EXPERT_NAMES_OF(ERNIE_EXTRA_LAYER),                                                                   \
            .choice_bias = ERNIE_EXTRA_LAYER "mlp.moe_statics.e_score_correction_bias",                                \
    }

/* A router of sigmoids with a correction bias, as DeepSeek-V3 introduced it, with its keys. */
#define SIGMOID_ROUTER                                                                                                 \
    .score = MDP_SIGMOID, .normalise = MDP_NORMALISE_BY_FLAG, .normalise_added = 1e-20,                                \
    .group_score = MDP_GROUP_BEST_TWO

static const mdp_fixed_key SIGMOID_ONLY[] = {{"scoring_func", "\"sigmoid\""}, {NULL, NULL}};
static const mdp_fixed_key NO_MLP_BIAS_ONLY[] = {{"mlp_bias", "false"}, {NULL, NULL}};
static const mdp_fixed_key NO_BIAS_ONLY[] = {{"use_bias", "false"}, {NULL, NULL}};
static const mdp_fixed_key HUNYUAN_ONLY[] = {{"use_qk_norm", "true"}, {"use_cla", "false"}, {NULL, NULL}};
static const mdp_fixed_key MINIMAX_M2_ONLY[] = {{"scoring_func", "\"sigmoid\""},   {"qk_norm_type", "\"per_layer\""},
                                                {"use_qk_norm", "true"},           {"use_routing_bias", "true"},
                                                {"shared_intermediate_size", "0"}, {NULL, NULL}};

/* The same of families that call the router by its name. */
#define FUSED_EXPERTS_OF_ROUTER                                                                                        \
    {                                                                                                                  \
        .router = LAYER "mlp.router.weight", .experts = LAYER "mlp.experts.",                                          \
        .fused_gate_up = LAYER "mlp.experts.gate_up_proj", .fused_down = LAYER "mlp.experts.down_proj",                \
    }

#define MIXTRAL_EXPERT_NAMES                                                                                           \
    .router = LAYER "block_sparse_moe.gate.weight", .experts = LAYER "block_sparse_moe.experts.",                      \
    .gate = LAYER "block_sparse_moe.experts.{expert}.w1.weight",                                                       \
    .up = LAYER "block_sparse_moe.experts.{expert}.w3.weight",                                                         \
    .down = LAYER "block_sparse_moe.experts.{expert}.w2.weight"
#define MIXTRAL_EXPERTS                                                                                                \
    { MIXTRAL_EXPERT_NAMES }
#define BIASED_MIXTRAL_EXPERTS                                                                                         \
    { MIXTRAL_EXPERT_NAMES, .choice_bias = LAYER "block_sparse_moe.e_score_correction_bias" }

/* Columns (MXFP4: rows) of gate and up alternate. */
#define GPT_OSS_LAYOUT                                                                                                 \
    .router = LAYER "mlp.router.weight", .router_bias = LAYER "mlp.router.bias", .experts = LAYER "mlp.experts.",      \
    .fused_gate_up_bias = LAYER "mlp.experts.gate_up_proj_bias",                                                       \
    .fused_down_bias = LAYER "mlp.experts.down_proj_bias", .interleaved = true

/* As it is published. */
#define GPT_OSS_MXFP4_EXPERTS                                                                                          \
    {                                                                                                                  \
        GPT_OSS_LAYOUT, .fused_gate_up = LAYER "mlp.experts.gate_up_proj_blocks",                                      \
                        .fused_gate_up_scales = LAYER "mlp.experts.gate_up_proj_scales",                               \
                        .fused_down = LAYER "mlp.experts.down_proj_blocks",                                            \
                        .fused_down_scales = LAYER "mlp.experts.down_proj_scales",                                     \
    }

/* Widened from MXFP4, as transformers saves it. */
#define GPT_OSS_EXPERTS                                                                                                \
    {                                                                                                                  \
        GPT_OSS_LAYOUT, .fused_gate_up = LAYER "mlp.experts.gate_up_proj",                                             \
                        .fused_down = LAYER "mlp.experts.down_proj", .transposed = true,                               \
    }

#define GRANITE_EXPERTS                                                                                                \
    {                                                                                                                  \
        .router = LAYER "block_sparse_moe.router.layer.weight", .experts = LAYER "block_sparse_moe.",                  \
        .fused_gate_up = LAYER "block_sparse_moe.input_linear.weight",                                                 \
        .fused_down = LAYER "block_sparse_moe.output_linear.weight",                                                   \
    }

#define HUNYUAN_EXPERTS                                                                                                \
    {                                                                                                                  \
        .router = LAYER "mlp.gate.wg.weight", .experts = LAYER "mlp.experts.",                                         \
        .gate = LAYER "mlp.experts.{expert}.gate_proj.weight", .up = LAYER "mlp.experts.{expert}.up_proj.weight",      \
        .down = LAYER "mlp.experts.{expert}.down_proj.weight",                                                         \
    }
#define HUNYUAN_FUSED_EXPERTS                                                                                          \
    {                                                                                                                  \
        .router = LAYER "mlp.gate.wg.weight", .experts = LAYER "mlp.experts.",                                         \
        .fused_gate_up = LAYER "mlp.experts.gate_up_proj", .fused_down = LAYER "mlp.experts.down_proj",                \
    }

/* The text part of Llama 4, by itself or within a model of text and images ("language_model."). */
#define LLAMA4_KEYS                                                                                                    \
    .tied = {.name = "tie_word_embeddings", .absent = false}, SILU_KEY,                                                \
    .d_model = {.name = "hidden_size", .absent = 5120}, .d_ff = {.name = "intermediate_size", .absent = 8192},         \
    .n_layer = {.name = "num_hidden_layers", .absent = 48}, .n_head = {.name = "num_attention_heads", .absent = 40},   \
    .n_kv_head = {.name = "num_key_value_heads", .absent = 8, .null_is_absent = true},                                 \
    .head_dim = {.name = "head_dim", .absent = 128, .null_is_absent = true},                                           \
    .vocab_size = {.name = "vocab_size", .absent = 202048},                                                            \
    .max_position = {.name = "max_position_embeddings", .absent = 131072},                                             \
    .n_expert = {.name = "num_local_experts", .absent = 16}, .top_k = {.name = "num_experts_per_tok", .absent = 1},    \
    .sparse_step = {.name = "interleave_moe_layer_step", .absent = 1}, .sparse_layers = "moe_layers",                  \
    .dense_ff = {.name = "intermediate_size_mlp", .absent = 16384},                                                    \
    .shared_ff = {.name = "intermediate_size", .absent = 8192}, .layer_types = "layer_types",                          \
    .plain_layers = "no_rope_layers", .plain_step = {.name = "no_rope_layer_interval", .absent = 4},                   \
    .chunk = {.name = "attention_chunk_size", .absent = 8192},                                                         \
    .temper_flag = {.name = "attn_temperature_tuning", .absent = true},                                                \
    .temper_scale = {.name = "attn_scale", .absent = 0.1}, .temper_floor = {.name = "floor_scale", .absent = 8192},    \
    .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5}, .bias = {.name = "attention_bias", .absent = false},         \
    .qk_norm_flag = {.name = "use_qk_norm", .absent = true}, .rope_theta = 500000.0, .rope_layout = MDP_ROPE_PAIR,     \
    .score = MDP_SIGMOID, .weigh_input = true, .qk_norm = MDP_QK_NORM_HEAD, .qk_norm_last = true
#define LLAMA4_TENSORS(root)                                                                                           \
    .embedding = root "model.embed_tokens.weight", .final_norm = root "model.norm.weight",                             \
    .head = root "lm_head.weight", .norm1 = root LAYER "input_layernorm.weight",                                       \
    .norm2 = root LAYER "post_attention_layernorm.weight", .q = root LAYER "self_attn.q_proj.weight",                  \
    .k = root LAYER "self_attn.k_proj.weight", .v = root LAYER "self_attn.v_proj.weight",                              \
    .o = root LAYER "self_attn.o_proj.weight", .q_bias = root LAYER "self_attn.q_proj.bias",                           \
    .k_bias = root LAYER "self_attn.k_proj.bias", .v_bias = root LAYER "self_attn.v_proj.bias",                        \
    .o_bias = root LAYER "self_attn.o_proj.bias", .dense = LLAMA4_MLP(root, ""),                                       \
    .shared = LLAMA4_MLP(root, "shared_expert.")
#define LLAMA4_MLP(root, part)                                                                                         \
    {                                                                                                                  \
        .gate = root LAYER "feed_forward." part "gate_proj.weight",                                                    \
        .up = root LAYER "feed_forward." part "up_proj.weight",                                                        \
        .down = root LAYER "feed_forward." part "down_proj.weight",                                                    \
    }
#define LLAMA4_EXPERTS(root)                                                                                           \
    {                                                                                                                  \
        .router = root LAYER "feed_forward.router.weight", .experts = root LAYER "feed_forward.experts.",              \
        .fused_gate_up = root LAYER "feed_forward.experts.gate_up_proj",                                               \
        .fused_down = root LAYER "feed_forward.experts.down_proj", .transposed = true,                                 \
    }

#define BLOCK "transformer.blocks.{layer}."
#define DBRX_EXPERTS                                                                                                   \
    {                                                                                                                  \
        .router = BLOCK "ffn.router.layer.weight", .experts = BLOCK "ffn.experts.",                                    \
        .fused_gate_up = BLOCK "ffn.experts.mlp.w1", .fused_up = BLOCK "ffn.experts.mlp.v1",                           \
        .fused_down = BLOCK "ffn.experts.mlp.w2",                                                                      \
    }

static const mdp_fixed_key SOFTMAX_ONLY[] = {{"scoring_func", "\"softmax\""}, {"mlp_bias", "false"}, {NULL, NULL}};

/* What DeepSeek-V3 has in common with those made after it. */
#define DEEPSEEK_V3_KEYS                                                                                               \
    SILU_KEY, SIGMOID_ROUTER, LATENT_TENSORS,                                                                          \
        .d_ff = {.name = "moe_intermediate_size", .absent = 2048},                                                     \
        .tied = {.name = "tie_word_embeddings", .absent = false}, .kv_rank = {.name = "kv_lora_rank", .absent = 512},  \
        .n_rope = {.name = "qk_rope_head_dim", .absent = 64},                                                          \
        .n_expert = {.name = "n_routed_experts", .other = "num_local_experts", .absent = 256},                         \
        .top_k = {.name = "num_experts_per_tok", .absent = 8},                                                         \
        .first_sparse = {.name = "first_k_dense_replace", .absent = 3, .may_be_zero = true},                           \
        .n_shared = {.name = "n_shared_experts", .absent = 1, .null_is_absent = true, .may_be_zero = true},            \
        .weight_scale = {.name = "routed_scaling_factor", .absent = 2.5},                                              \
        .normalise_flag = {.name = "norm_topk_prob", .absent = true}, .fixed = SIGMOID_ONLY,                           \
        .bias = {.name = "attention_bias", .absent = false},                                                           \
        .n_extra = {.name = "num_nextn_predict_layers",                                                                \
                    .other = "num_mtp_layers",                                                                         \
                    .absent = 1,                                                                                       \
                    .may_be_zero = true,                                                                               \
                    .null_is_absent = true},                                                                           \
        .rope_theta = 1e4, .dense = GATED_MLP(""), .shared = GATED_MLP("shared_experts."),                             \
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_GATE), BIASED_FUSED_EXPERTS(BIAS_OF_GATE)}
/* Its own sizes. */
#define DEEPSEEK_V3_SIZES                                                                                              \
    .d_model = {.name = "hidden_size", .absent = 7168}, .n_layer = {.name = "num_hidden_layers", .absent = 61},        \
    .n_head = {.name = "num_attention_heads", .absent = 128},                                                          \
    .q_rank = {.name = "q_lora_rank", .absent = 1536, .null_is_absent = true},                                         \
    .n_own = {.name = "qk_nope_head_dim", .absent = 128}, .n_value = {.name = "v_head_dim", .absent = 128},            \
    .vocab_size = {.name = "vocab_size", .absent = 129280},                                                            \
    .dense_ff = {.name = "intermediate_size", .absent = 18432},                                                        \
    .n_group = {.name = "n_group", .absent = 8, .null_is_absent = true},                                               \
    .n_open = {.name = "topk_group", .absent = 4, .null_is_absent = true},                                             \
    .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6}

/* DeepSeek-V3 and what calls itself otherwise but is the same. */
#define DEEPSEEK_V3_ROW                                                                                                \
    DEEPSEEK_V3_KEYS, DEEPSEEK_V3_SIZES, .rope_pairs = {.name = "rope_interleave", .absent = true},                    \
                                         .max_position = {.name = "max_position_embeddings", .absent = 4096},          \
                                         .sparse_every = {.name = "moe_layer_freq", .absent = 1}

/* With an indexer, which beyond index_topk tokens chooses what a query sees; its tensors travel along. */
#define INDEXED_KEYS                                                                                                   \
    DEEPSEEK_V3_KEYS, .mlp_types = "mlp_layer_types", .most_tokens = {.name = "index_topk", .absent = 2048},           \
                      .rope_layout = MDP_ROPE_PAIR

/* The text part of a model of text and images. Text has the same place in all dimensions of an image's positions, so
 * the sections that rope is dealt out in (mrope_section) do not show. */
#define NESTED "model.language_model."
#define NESTED_LAYER NESTED "layers.{layer}."
#define THINKER "thinker." /* of a model that also hears and speaks */

/* Qwen3-Next and Qwen3.5: most layers have linear attention. The latter's text part may stand within a model of text
 * and images ("language_model."). Layers that predict further tokens are under "mtp.". */
#define QWEN_LINEAR_KEYS                                                                                               \
    .tied = {.name = "tie_word_embeddings", .absent = false}, SILU_KEY, .rope_layout = MDP_ROPE_HALF,                  \
    .d_model = {.name = "hidden_size", .absent = 2048}, .d_ff = {.name = "moe_intermediate_size", .absent = 512},      \
    .n_head = {.name = "num_attention_heads", .absent = 16},                                                           \
    .n_kv_head = {.name = "num_key_value_heads", .absent = 2, .null_is_absent = true},                                 \
    .head_dim = {.name = "head_dim", .absent = 256, .null_is_absent = true},                                           \
    .max_position = {.name = "max_position_embeddings", .absent = 32768},                                              \
    .linear_step = {.name = "full_attention_interval", .absent = 4}, .layer_types = "layer_types",                     \
    .n_delta_key = {.name = "linear_num_key_heads", .absent = 16},                                                     \
    .d_delta_key = {.name = "linear_key_head_dim", .absent = 128},                                                     \
    .n_delta_value = {.name = "linear_num_value_heads", .absent = 32},                                                 \
    .d_delta_value = {.name = "linear_value_head_dim", .absent = 128},                                                 \
    .n_delta_kernel = {.name = "linear_conv_kernel_dim", .absent = 4},                                                 \
    .shared_ff = {.name = "shared_expert_intermediate_size", .absent = 512},                                           \
    .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6}, .bias = {.name = "attention_bias", .absent = false},         \
    .rope_theta = 1e4, .partial_rotary = 0.25, .score = MDP_SOFTMAX_ALL, .qk_norm = MDP_QK_NORM_HEAD,                  \
    .gated_queries = true, .norm_kind = MDP_RMS_NORM_OF_ONE_PLUS, .extra = "mtp.",                                     \
    .extra_layouts = {{SEPARATE_EXPERT_NAMES_OF("mtp.layers.{layer}.")},                                               \
                      {FUSED_EXPERT_NAMES_OF("mtp.layers.{layer}.")}}
#define QWEN35_KEYS                                                                                                    \
    QWEN_LINEAR_KEYS,                                                                                                  \
        .n_layer = {.name = "num_hidden_layers", .absent = 40},                                                        \
        .vocab_size = {.name = "vocab_size", .absent = 248320},                                                        \
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 256},                              \
        .top_k = {.name = "num_experts_per_tok", .absent = 8}, .sparse_step = {.absent = 1},                           \
        .n_extra = {.name = "mtp_num_hidden_layers", .absent = 1, .may_be_zero = true, .null_is_absent = true},        \
        .normalise = MDP_NORMALISE_ALWAYS
#define QWEN35_TENSORS(root, layer)                                                                                    \
    ROOTED_TENSORS(root, layer), ROOTED_QKV_BIASES(layer),                                                             \
        .o_bias = layer "self_attn.o_proj.bias", ROOTED_QK_NORMS(layer),                                               \
        .delta = {.in = layer "linear_attn.in_proj_qkv.weight",                                                        \
                  .z = layer "linear_attn.in_proj_z.weight",                                                           \
                  .b = layer "linear_attn.in_proj_b.weight",                                                           \
                  .a = layer "linear_attn.in_proj_a.weight",                                                           \
                  DELTA_NAMES(layer)},                                                                                 \
        .shared = ROOTED_MLP(layer, "shared_expert."), .shared_gate = layer "mlp.shared_expert_gate.weight",           \
        .layouts = {{SEPARATE_EXPERT_NAMES_OF(layer)}, {FUSED_EXPERT_NAMES_OF(layer)}}
#define DELTA_NAMES(layer)                                                                                             \
    .kernel = layer "linear_attn.conv1d.weight", .rate = layer "linear_attn.A_log",                                    \
    .shift = layer "linear_attn.dt_bias", .norm = layer "linear_attn.norm.weight",                                     \
    .o = layer "linear_attn.out_proj.weight"

#define GLM4_MOE_KEYS                                                                                                  \
    COMMON_KEYS, SIGMOID_ROUTER,                                                                                       \
        .d_model = {.name = "hidden_size", .absent = 4096}, .d_ff = {.name = "moe_intermediate_size", .absent = 1408}, \
        .n_layer = {.name = "num_hidden_layers", .absent = 46},                                                        \
        .n_head = {.name = "num_attention_heads", .absent = 96},                                                       \
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8},                                                     \
        .n_expert = {.name = "n_routed_experts", .other = "num_local_experts", .absent = 128},                         \
        .top_k = {.name = "num_experts_per_tok", .absent = 8},                                                         \
        .first_sparse = {.name = "first_k_dense_replace", .absent = 1, .may_be_zero = true},                           \
        .dense_ff = {.name = "intermediate_size", .absent = 10944},                                                    \
        .n_shared = {.name = "n_shared_experts", .absent = 1, .null_is_absent = true, .may_be_zero = true},            \
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},                                           \
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},                                         \
        .weight_scale = {.name = "routed_scaling_factor", .absent = 1.0},                                              \
        .normalise_flag = {.name = "norm_topk_prob", .absent = true}, .fixed = SIGMOID_ONLY,                           \
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5}, .rope_theta = 1e4, .partial_rotary = 0.5
#define NESTED_BIAS .choice_bias = NESTED_LAYER "mlp.gate.e_score_correction_bias"

#define HY_V3_EXPERTS                                                                                                  \
    {                                                                                                                  \
        .router = LAYER "mlp.router.gate.weight", .choice_bias = LAYER "mlp.expert_bias",                              \
        .experts = LAYER "mlp.experts.", .gate = LAYER "mlp.experts.{expert}.gate_proj.weight",                        \
        .up = LAYER "mlp.experts.{expert}.up_proj.weight", .down = LAYER "mlp.experts.{expert}.down_proj.weight",      \
    }

/* Granite with and without a shared expert. */
#define GRANITE_KEYS                                                                                                   \
    COMMON_KEYS,                                                                                                       \
        .d_model = {.name = "hidden_size", .absent = 4096}, .d_ff = {.name = "intermediate_size", .absent = 11008},    \
        .n_layer = {.name = "num_hidden_layers", .absent = 32},                                                        \
        .n_head = {.name = "num_attention_heads", .absent = 32},                                                       \
        .n_kv_head = {.name = "num_key_value_heads", .null_is_absent = true},                                          \
        .vocab_size = {.name = "vocab_size", .absent = 32000},                                                         \
        .max_position = {.name = "max_position_embeddings", .absent = 2048},                                           \
        .n_expert = {.name = "num_local_experts", .absent = 8}, .top_k = {.name = "num_experts_per_tok", .absent = 2}, \
        .sparse_step = {.absent = 1}, .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},                            \
        .bias = {.name = "attention_bias", .absent = false},                                                           \
        .embedding_scale = {.name = "embedding_multiplier", .absent = 1.0},                                            \
        .residual_scale = {.name = "residual_multiplier", .absent = 1.0},                                              \
        .logit_divisor = {.name = "logits_scaling", .absent = 1.0},                                                    \
        .attention_scale = {.name = "attention_multiplier", .absent = 1.0}, .rope_theta = 1e4,                         \
        .score = MDP_SOFTMAX_CHOSEN

static const mdp_family FAMILIES[] = {
    {
        .model_type = "mixtral",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "intermediate_size", .absent = 14336},
        .n_layer = {.name = "num_hidden_layers", .absent = 32},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 32000},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .n_expert = {.name = "num_local_experts", .other = "num_experts", .absent = 8},
        .top_k = {.name = "num_experts_per_tok", .absent = 2},
        .sparse_step = {.absent = 1},
        .window = {.name = "sliding_window", .null_is_absent = true},
        .window_flag = {.absent = true},
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .rope_theta = 1e6,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_ALWAYS,
        COMMON_TENSORS,
        .layouts = {MIXTRAL_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "qwen2_moe",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 2048},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1408},
        .n_layer = {.name = "num_hidden_layers", .absent = 24},
        .n_head = {.name = "num_attention_heads", .absent = 16},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 16, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 151936},
        .max_position = {.name = "max_position_embeddings", .absent = 32768},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 60},
        .top_k = {.name = "num_experts_per_tok", .absent = 4},
        .sparse_step = {.name = "decoder_sparse_step", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 5632},
        .dense_layers = "mlp_only_layers",
        .shared_ff = {.name = "shared_expert_intermediate_size", .absent = 5632},
        .window = {.name = "sliding_window", .absent = 4096, .null_is_absent = true},
        .window_end = {.name = "max_window_layers", .absent = 28, .may_be_zero = true},
        .window_flag = {.name = "use_sliding_window", .absent = false},
        .window_rule = MDP_WINDOW_EVEN,
        .layer_types = "layer_types",
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "qkv_bias", .absent = true},
        .normalise_flag = {.name = "norm_topk_prob", .absent = false},
        .rope_theta = 1e4,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_BY_FLAG,
        COMMON_TENSORS,
        QKV_BIASES,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_expert."),
        .shared_gate = LAYER "mlp.shared_expert_gate.weight",
        .layouts = {SEPARATE_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "qwen3_moe",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 2048},
        .d_ff = {.name = "moe_intermediate_size", .absent = 768},
        .n_layer = {.name = "num_hidden_layers", .absent = 24},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 4, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 151936},
        .max_position = {.name = "max_position_embeddings", .absent = 32768},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 128},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .sparse_step = {.name = "decoder_sparse_step", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 6144},
        .dense_layers = "mlp_only_layers",
        .window = {.name = "sliding_window", .absent = 4096, .null_is_absent = true},
        .window_flag = {.name = "use_sliding_window", .absent = false},
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "attention_bias", .absent = false},
        .normalise_flag = {.name = "norm_topk_prob", .absent = false},
        .rope_theta = 1e4,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_BY_FLAG,
        .qk_norm = MDP_QK_NORM_HEAD,
        COMMON_TENSORS,
        QKVO_BIASES,
        QK_NORMS,
        .dense = GATED_MLP(""),
        .layouts = {SEPARATE_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "qwen3_vl_moe",
        .scope = "text_config",
        .tied = {.name = "tie_word_embeddings", .absent = true},
        SILU_KEY,
        .rope_layout = MDP_ROPE_HALF,
        .d_model = {.name = "hidden_size", .absent = 2048},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1408},
        .n_layer = {.name = "num_hidden_layers", .absent = 24},
        .n_head = {.name = "num_attention_heads", .absent = 16},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 16, .null_is_absent = true},
        .head_dim = {.name = "head_dim", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 151936},
        .max_position = {.name = "max_position_embeddings", .absent = 128000},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 60},
        .top_k = {.name = "num_experts_per_tok", .absent = 4},
        .sparse_step = {.name = "decoder_sparse_step", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 5632},
        .dense_layers = "mlp_only_layers",
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 5e5,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_ALWAYS,
        .qk_norm = MDP_QK_NORM_HEAD,
        ROOTED_TENSORS(NESTED, NESTED_LAYER),
        ROOTED_QKV_BIASES(NESTED_LAYER),
        .o_bias = NESTED_LAYER "self_attn.o_proj.bias",
        ROOTED_QK_NORMS(NESTED_LAYER),
        .dense = ROOTED_MLP(NESTED_LAYER, ""),
        .layouts = {{FUSED_EXPERT_NAMES_OF(NESTED_LAYER), .transposed = true}, {FUSED_EXPERT_NAMES_OF(NESTED_LAYER)}},
    },
    {
        .model_type = "qwen3_omni_moe",
        .scope = "thinker_config.text_config",
        .tied = {.name = "tie_word_embeddings", .absent = false},
        SILU_KEY,
        .rope_layout = MDP_ROPE_HALF,
        .d_model = {.name = "hidden_size", .absent = 2048},
        .d_ff = {.name = "moe_intermediate_size", .absent = 768},
        .n_layer = {.name = "num_hidden_layers", .absent = 28},
        .n_head = {.name = "num_attention_heads", .absent = 28},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 4},
        .head_dim = {.name = "head_dim", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 3584},
        .max_position = {.name = "max_position_embeddings", .absent = 32768},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 128},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .sparse_step = {.name = "decoder_sparse_step", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 18944},
        .dense_layers = "mlp_only_layers",
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "attention_bias", .absent = false},
        .normalise_flag = {.name = "norm_topk_prob", .absent = true},
        .rope_theta = 1e6,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_BY_FLAG,
        .qk_norm = MDP_QK_NORM_HEAD,
        .head = THINKER "lm_head.weight",
        ROOTED_TENSORS_BUT_HEAD(THINKER "model.", THINKER LAYER),
        ROOTED_QKV_BIASES(THINKER LAYER),
        .o_bias = THINKER LAYER "self_attn.o_proj.bias",
        ROOTED_QK_NORMS(THINKER LAYER),
        .dense = ROOTED_MLP(THINKER LAYER, ""),
        .layouts = {{SEPARATE_EXPERT_NAMES_OF(THINKER LAYER)}, {FUSED_EXPERT_NAMES_OF(THINKER LAYER)}},
    },
    {
        .model_type = "qwen3_next",
        QWEN_LINEAR_KEYS,
        .n_layer = {.name = "num_hidden_layers", .absent = 48},
        .vocab_size = {.name = "vocab_size", .absent = 151936},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 512},
        .top_k = {.name = "num_experts_per_tok", .absent = 10},
        .sparse_step = {.name = "decoder_sparse_step", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 5632},
        .dense_layers = "mlp_only_layers",
        .n_extra = {.name = "num_nextn_predict_layers", .absent = 1, .may_be_zero = true, .null_is_absent = true},
        .normalise_flag = {.name = "norm_topk_prob", .absent = true},
        .normalise = MDP_NORMALISE_BY_FLAG,
        COMMON_TENSORS,
        QKVO_BIASES,
        QK_NORMS,
        .delta = {.in = LAYER "linear_attn.in_proj_qkvz.weight",
                  .b = LAYER "linear_attn.in_proj_ba.weight",
                  DELTA_NAMES(LAYER)},
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_expert."),
        .shared_gate = LAYER "mlp.shared_expert_gate.weight",
        .layouts = {SEPARATE_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "qwen3_5_moe_text",
        QWEN35_KEYS,
        QWEN35_TENSORS("model.", LAYER),
    },
    {
        .model_type = "qwen3_5_moe",
        .scope = "text_config",
        QWEN35_KEYS,
        QWEN35_TENSORS(NESTED, NESTED_LAYER),
    },
    {
        .model_type = "olmoe",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 2048},
        .d_ff = {.name = "intermediate_size", .absent = 2048},
        .n_layer = {.name = "num_hidden_layers", .absent = 16},
        .n_head = {.name = "num_attention_heads", .absent = 16},
        .n_kv_head = {.name = "num_key_value_heads", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 50304},
        .max_position = {.name = "max_position_embeddings", .absent = 4096},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 64},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .sparse_step = {.absent = 1},
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .clip = {.name = "clip_qkv"},
        .bias = {.name = "attention_bias", .absent = false},
        .normalise_flag = {.name = "norm_topk_prob", .absent = false},
        .rope_theta = 1e4,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_BY_FLAG,
        .qk_norm = MDP_QK_NORM_WHOLE,
        COMMON_TENSORS,
        QKVO_BIASES,
        QK_NORMS,
        .layouts = {SEPARATE_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "deepseek",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1407},
        .n_layer = {.name = "num_hidden_layers", .absent = 30},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 102400},
        .max_position = {.name = "max_position_embeddings", .absent = 2048},
        .n_expert = {.name = "n_routed_experts"},
        .top_k = {.name = "num_experts_per_tok"},
        .first_sparse = {.name = "first_k_dense_replace", .may_be_zero = true},
        .sparse_every = {.name = "moe_layer_freq", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 11008},
        .n_shared = {.name = "n_shared_experts", .null_is_absent = true, .may_be_zero = true},
        .normalise_flag = {.name = "norm_topk_prob", .absent = false},
        .fixed = SOFTMAX_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 1e4,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_BY_FLAG,
        .normalise_added = 1e-20,
        COMMON_TENSORS,
        QKVO_BIASES,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {SEPARATE_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "deepseek_v2",
        SILU_KEY,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1407},
        .n_layer = {.name = "num_hidden_layers", .absent = 32},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .tied = {.name = "tie_word_embeddings", .absent = false},
        .q_rank = {.name = "q_lora_rank", .absent = 1536, .null_is_absent = true},
        .kv_rank = {.name = "kv_lora_rank", .absent = 512},
        .n_own = {.name = "qk_nope_head_dim", .absent = 128},
        .n_rope = {.name = "qk_rope_head_dim", .absent = 64},
        .n_value = {.name = "v_head_dim", .absent = 128},
        .rope_layout = MDP_ROPE_PAIR,
        .vocab_size = {.name = "vocab_size", .absent = 32000},
        .max_position = {.name = "max_position_embeddings", .absent = 2048},
        .n_expert = {.name = "n_routed_experts", .other = "num_experts", .absent = 64},
        .top_k = {.name = "num_experts_per_tok"},
        .first_sparse = {.name = "first_k_dense_replace", .may_be_zero = true},
        .sparse_every = {.name = "moe_layer_freq", .absent = 1},
        .dense_ff = {.name = "intermediate_size", .absent = 11008},
        .n_shared = {.name = "n_shared_experts", .absent = 2, .null_is_absent = true, .may_be_zero = true},
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},
        .group_method_key = "topk_method",
        .group_method = "group_limited_greedy",
        .group_score = MDP_GROUP_BEST,
        .weight_scale = {.name = "routed_scaling_factor", .absent = 1.0},
        .fixed = SOFTMAX_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 1e4,
        .score = MDP_SOFTMAX_ALL,
        LATENT_TENSORS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {SEPARATE_EXPERTS, FUSED_EXPERTS},
    },
    {
        .model_type = "deepseek_v3",
        DEEPSEEK_V3_ROW,
    },
    {
        .model_type = "kimi_k2",
        DEEPSEEK_V3_ROW,
    },
    {
        .model_type = "deepseek_v32",
        INDEXED_KEYS,
        DEEPSEEK_V3_SIZES,
        .max_position = {.name = "max_position_embeddings", .absent = 163840},
    },
    {
        .model_type = "glm_moe_dsa",
        INDEXED_KEYS,
        .d_model = {.name = "hidden_size", .absent = 6144},
        .n_layer = {.name = "num_hidden_layers", .absent = 78},
        .n_head = {.name = "num_attention_heads", .absent = 64},
        .q_rank = {.name = "q_lora_rank", .absent = 2048},
        .n_own = {.name = "qk_nope_head_dim", .absent = 192},
        .n_value = {.name = "v_head_dim", .absent = 256},
        .vocab_size = {.name = "vocab_size", .absent = 154880},
        .max_position = {.name = "max_position_embeddings", .absent = 202752},
        .dense_ff = {.name = "intermediate_size", .absent = 12288},
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
    },
    {
        .model_type = "glm4_moe_lite",
        SILU_KEY,
        SIGMOID_ROUTER,
        .d_model = {.name = "hidden_size", .absent = 2048},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1536},
        .n_layer = {.name = "num_hidden_layers", .absent = 47},
        .n_head = {.name = "num_attention_heads", .absent = 20},
        .tied = {.name = "tie_word_embeddings", .absent = false},
        .q_rank = {.name = "q_lora_rank", .absent = 768, .null_is_absent = true},
        .kv_rank = {.name = "kv_lora_rank", .absent = 512},
        .n_own = {.name = "qk_nope_head_dim", .absent = 192},
        .n_rope = {.name = "qk_rope_head_dim", .absent = 64},
        .n_value = {.name = "v_head_dim", .absent = 256},
        .rope_pairs = {.name = "rope_interleave", .absent = true},
        .partial_rotary = 1.0,
        .vocab_size = {.name = "vocab_size", .absent = 154880},
        .n_extra = {.name = "num_nextn_predict_layers",
                    .other = "num_mtp_layers",
                    .absent = 1,
                    .may_be_zero = true,
                    .null_is_absent = true},
        .max_position = {.name = "max_position_embeddings", .absent = 202752},
        .n_expert = {.name = "n_routed_experts", .other = "num_local_experts", .absent = 64},
        .top_k = {.name = "num_experts_per_tok", .absent = 4},
        .first_sparse = {.name = "first_k_dense_replace", .absent = 1, .may_be_zero = true},
        .mlp_types = "mlp_layer_types",
        .dense_ff = {.name = "intermediate_size", .absent = 10240},
        .n_shared = {.name = "n_shared_experts", .absent = 1, .null_is_absent = true, .may_be_zero = true},
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},
        .weight_scale = {.name = "routed_scaling_factor", .absent = 1.8},
        .normalise_flag = {.name = "norm_topk_prob", .absent = true},
        .fixed = SIGMOID_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 1e4,
        LATENT_TENSORS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_GATE), BIASED_FUSED_EXPERTS(BIAS_OF_GATE)},
    },
    {
        .model_type = "minimax_m2",
        SILU_KEY,
        .d_model = {.name = "hidden_size", .absent = 3072},
        .d_ff = {.name = "intermediate_size", .absent = 1536},
        .n_layer = {.name = "num_hidden_layers", .absent = 62},
        .n_head = {.name = "num_attention_heads", .absent = 48},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8},
        .head_dim = {.name = "head_dim", .absent = 128},
        .tied = {.name = "tie_word_embeddings", .absent = false},
        .vocab_size = {.name = "vocab_size", .absent = 200064},
        .max_position = {.name = "max_position_embeddings", .absent = 196608},
        .n_expert = {.name = "num_local_experts", .other = "num_experts", .absent = 256},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .fixed = MINIMAX_M2_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .rope_layout = MDP_ROPE_HALF,
        .rope_theta = 5e6,
        .partial_rotary = 1.0,
        .rotary_dim = "rotary_dim",
        .score = MDP_SIGMOID,
        .normalise = MDP_NORMALISE_ALWAYS,
        .qk_norm = MDP_QK_NORM_WHOLE,
        COMMON_TENSORS,
        QK_NORMS,
        .layouts = {BIASED_MIXTRAL_EXPERTS, BIASED_FUSED_EXPERTS(BIAS_OF_BLOCK)},
    },
    {
        .model_type = "glm4_moe",
        GLM4_MOE_KEYS,
        .vocab_size = {.name = "vocab_size", .absent = 151552},
        .n_extra = {.name = "num_nextn_predict_layers",
                    .other = "num_mtp_layers",
                    .absent = 1,
                    .may_be_zero = true,
                    .null_is_absent = true},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .bias = {.name = "attention_bias", .absent = false},
        .qk_norm = MDP_QK_NORM_HEAD,
        .qk_norm_flag = {.name = "use_qk_norm", .absent = false},
        COMMON_TENSORS,
        QKV_BIASES,
        QK_NORMS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_GATE), BIASED_FUSED_EXPERTS(BIAS_OF_GATE)},
    },
    {
        .model_type = "glm4v_moe",
        .scope = "text_config",
        GLM4_MOE_KEYS,
        .vocab_size = {.name = "vocab_size", .absent = 151424},
        .max_position = {.name = "max_position_embeddings", .absent = 65536},
        .bias = {.name = "attention_bias", .absent = true},
        ROOTED_TENSORS(NESTED, NESTED_LAYER),
        ROOTED_QKV_BIASES(NESTED_LAYER),
        .dense = ROOTED_MLP(NESTED_LAYER, ""),
        .shared = ROOTED_MLP(NESTED_LAYER, "shared_experts."),
        .layouts = {{SEPARATE_EXPERT_NAMES_OF(NESTED_LAYER), NESTED_BIAS},
                    {FUSED_EXPERT_NAMES_OF(NESTED_LAYER), NESTED_BIAS}},
    },
    {
        .model_type = "solar_open",
        KEYS_BESIDE_HEADS,
        SIGMOID_ROUTER,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1280},
        .n_layer = {.name = "num_hidden_layers", .absent = 48},
        .n_head = {.name = "num_attention_heads", .absent = 64},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8},
        .head_dim = {.name = "head_dim", .absent = 128, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 196608},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .n_expert = {.name = "n_routed_experts", .other = "num_local_experts", .absent = 128},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .sparse_step = {.absent = 1},
        .n_shared = {.name = "n_shared_experts", .absent = 1, .null_is_absent = true, .may_be_zero = true},
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},
        .weight_scale = {.name = "routed_scaling_factor", .absent = 1.0},
        .normalise_flag = {.name = "norm_topk_prob", .absent = true},
        .fixed = SIGMOID_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 1e6,
        COMMON_TENSORS,
        QKV_BIASES,
        .shared = GATED_MLP("shared_experts."),
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_GATE), BIASED_FUSED_EXPERTS(BIAS_OF_GATE)},
    },
    {
        .model_type = "hy_v3",
        KEYS_BESIDE_HEADS,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1536},
        .n_layer = {.name = "num_hidden_layers", .absent = 80},
        .n_head = {.name = "num_attention_heads", .absent = 64},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8},
        .head_dim = {.name = "head_dim", .absent = 128, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 120832},
        .n_extra = {.name = "num_nextn_predict_layers", .may_be_zero = true, .null_is_absent = true},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 192},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .first_sparse = {.absent = 1},
        .mlp_types = "mlp_layer_types",
        .dense_ff = {.name = "intermediate_size", .absent = 13312},
        .n_shared = {.name = "num_shared_experts", .absent = 1, .null_is_absent = true},
        .weight_scale = {.name = "router_scaling_factor", .absent = 2.826},
        .fixed = NO_MLP_BIAS_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 11158840.0,
        .score = MDP_SIGMOID,
        .normalise = MDP_NORMALISE_ALWAYS,
        .normalise_added = 1e-20,
        .qk_norm = MDP_QK_NORM_HEAD,
        COMMON_TENSORS,
        QKVO_BIASES,
        QK_NORMS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_mlp."),
        .layouts = {HY_V3_EXPERTS},
    },
    {
        .model_type = "exaone_moe",
        COMMON_KEYS,
        SIGMOID_ROUTER,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1024},
        .n_layer = {.name = "num_hidden_layers", .absent = 32},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 32},
        .vocab_size = {.name = "vocab_size", .absent = 102400},
        .n_extra = {.name = "num_nextn_predict_layers", .may_be_zero = true, .null_is_absent = true},
        .extra = "mtp.",
        .max_position = {.name = "max_position_embeddings", .absent = 2048},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 64},
        .top_k = {.name = "num_experts_per_tok", .absent = 8},
        .first_sparse = {.name = "first_k_dense_replace", .absent = 1, .may_be_zero = true},
        .mlp_types = "mlp_layer_types",
        .dense_ff = {.name = "intermediate_size", .absent = 16384},
        .n_shared = {.name = "num_shared_experts", .absent = 1, .null_is_absent = true},
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},
        .weight_scale = {.name = "routed_scaling_factor", .absent = 2.5},
        .normalise_flag = {.name = "norm_topk_prob", .absent = true},
        .fixed = SIGMOID_ONLY,
        .window = {.name = "sliding_window", .absent = 4096, .null_is_absent = true},
        .window_flag = {.absent = true},
        .window_step = {.name = "sliding_window_pattern", .absent = 4},
        .layer_types = "layer_types",
        .plain_beyond_window = true,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .qk_norm = MDP_QK_NORM_HEAD,
        .rope_theta = 1e4,
        COMMON_TENSORS,
        QK_NORMS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_BLOCK), BIASED_FUSED_EXPERTS(BIAS_OF_GATE)},
        .extra_layouts = {{SEPARATE_EXPERT_NAMES_OF("mtp.layers.{layer}."),
                           .choice_bias = "mtp.layers.{layer}.mlp.e_score_correction_bias"}},
    },
    {
        .model_type = "dots1",
        COMMON_KEYS,
        SIGMOID_ROUTER,
        .d_model = {.name = "hidden_size", .absent = 4608},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1408},
        .n_layer = {.name = "num_hidden_layers", .absent = 62},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 32, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 152064},
        .max_position = {.name = "max_position_embeddings", .absent = 2048},
        .n_expert = {.name = "n_routed_experts", .other = "num_local_experts"},
        .top_k = {.name = "num_experts_per_tok"},
        .first_sparse = {.name = "first_k_dense_replace", .may_be_zero = true},
        .dense_ff = {.name = "intermediate_size", .absent = 10944},
        .n_shared = {.name = "n_shared_experts", .null_is_absent = true, .may_be_zero = true},
        .n_group = {.name = "n_group", .absent = 1, .null_is_absent = true},
        .n_open = {.name = "topk_group", .absent = 1, .null_is_absent = true},
        .weight_scale = {.name = "routed_scaling_factor", .absent = 1.0},
        .normalise_flag = {.name = "norm_topk_prob", .absent = false},
        .fixed = SIGMOID_ONLY,
        .window = {.name = "sliding_window", .absent = 4096, .null_is_absent = true},
        .window_end = {.name = "max_window_layers", .absent = 62, .may_be_zero = true},
        .window_flag = {.absent = true},
        .window_rule = MDP_WINDOW_FROM,
        .layer_types = "layer_types",
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-6},
        .bias = {.name = "attention_bias", .absent = false},
        .qk_norm = MDP_QK_NORM_HEAD,
        .rope_theta = 1e4,
        COMMON_TENSORS,
        QKVO_BIASES,
        QK_NORMS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_GATE), BIASED_FUSED_EXPERTS(BIAS_OF_GATE)},
    },
    {
        .model_type = "ernie4_5_moe",
        SILU_KEY,
        .d_model = {.name = "hidden_size", .absent = 2560},
        .d_ff = {.name = "moe_intermediate_size", .absent = 1536},
        .head_dim = {.name = "head_dim", .null_is_absent = true},
        .n_layer = {.name = "num_hidden_layers", .absent = 28},
        .n_head = {.name = "num_attention_heads", .absent = 20},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 4, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 103424},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .tied = {.name = "tie_word_embeddings", .absent = true},
        .rope_layout = MDP_ROPE_PAIR,
        .n_expert = {.name = "moe_num_experts", .other = "num_experts", .absent = 64},
        .top_k = {.name = "moe_k", .other = "num_experts_per_tok", .absent = 6},
        .sparse_step = {.name = "moe_layer_interval", .absent = 1},
        .first_sparse = {.name = "moe_layer_start_index", .absent = 1, .may_be_zero = true},
        .last_sparse = {.name = "moe_layer_end_index", .may_be_zero = true, .minus_one_is_absent = true},
        .dense_ff = {.name = "intermediate_size", .absent = 12288},
        .n_shared = {.name = "moe_num_shared_experts", .absent = 2, .null_is_absent = true, .may_be_zero = true},
        .fixed = NO_BIAS_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .rope_theta = 5e5,
        .router_is_f32 = true,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_ALWAYS,
        .normalise_least = {.name = "moe_norm_min", .absent = 1e-12},
        COMMON_TENSORS,
        .dense = GATED_MLP(""),
        .shared = GATED_MLP("shared_experts."),
        .layouts = {BIASED_SEPARATE_EXPERTS(BIAS_OF_STATICS), BIASED_FUSED_EXPERTS(BIAS_OF_GATE_STATICS)},
        .n_extra = {.name = "num_nextn_predict_layers", .absent = 1, .may_be_zero = true, .null_is_absent = true},
        .extra = "model.mtp_",
        .extra_layouts = {ERNIE_EXTRA_EXPERTS},
    },
    {
        .model_type = "granitemoe",
        GRANITE_KEYS,
        COMMON_TENSORS,
        QKVO_BIASES,
        .layouts = {GRANITE_EXPERTS},
    },
    {
        .model_type = "granitemoeshared",
        GRANITE_KEYS,
        .shared_ff = {.name = "shared_intermediate_size", .may_be_zero = true},
        COMMON_TENSORS,
        QKVO_BIASES,
        .shared = {.gate_up = LAYER "shared_mlp.input_linear.weight", .down = LAYER "shared_mlp.output_linear.weight"},
        .layouts = {GRANITE_EXPERTS},
    },
    {
        .model_type = "phimoe",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "intermediate_size", .absent = 6400},
        .n_layer = {.name = "num_hidden_layers", .absent = 32},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 32064},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .n_expert = {.name = "num_local_experts", .absent = 16},
        .top_k = {.name = "num_experts_per_tok", .absent = 2},
        .sparse_step = {.absent = 1},
        .window = {.name = "sliding_window", .null_is_absent = true},
        .window_flag = {.absent = true},
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .bias = {.name = "attention_bias", .absent = false},
        .head_bias_flag = {.name = "lm_head_bias", .absent = false},
        .jitter = {.name = "router_jitter_noise", .absent = 0.01},
        .rope_theta = 1e6,
        .score = MDP_SPARSEMIXER,
        .norm_kind = MDP_LAYER_NORM,
        COMMON_TENSORS,
        .norm1_bias = LAYER "input_layernorm.bias",
        .norm2_bias = LAYER "post_attention_layernorm.bias",
        .final_norm_bias = "model.norm.bias",
        .head_bias = "lm_head.bias",
        QKVO_BIASES,
        .layouts = {MIXTRAL_EXPERTS, FUSED_EXPERTS_OF_ROUTER},
    },
    {
        .model_type = "gpt_oss",
        KEYS_BESIDE_HEADS,
        .d_model = {.name = "hidden_size", .absent = 2880},
        .d_ff = {.name = "intermediate_size", .absent = 2880},
        .n_layer = {.name = "num_hidden_layers", .absent = 36},
        .n_head = {.name = "num_attention_heads", .absent = 64},
        .n_kv_head = {.name = "num_key_value_heads", .absent = 8, .null_is_absent = true},
        .head_dim = {.name = "head_dim", .absent = 64, .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 201088},
        .max_position = {.name = "max_position_embeddings", .absent = 131072},
        .n_expert = {.name = "num_local_experts", .other = "num_experts", .absent = 128},
        .top_k = {.name = "num_experts_per_tok", .other = "experts_per_token", .other_yields = true, .absent = 4},
        .sparse_step = {.absent = 1},
        .window = {.name = "sliding_window", .absent = 128, .null_is_absent = true},
        .window_flag = {.absent = true},
        .window_rule = MDP_WINDOW_EVEN,
        .layer_types = "layer_types",
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .bias = {.name = "attention_bias", .absent = true},
        .alpha = {.name = "swiglu_alpha", .absent = 1.702},
        .limit = {.name = "swiglu_limit", .absent = 7.0},
        .rope_theta = 150000.0,
        .rope_default = "{\"rope_type\": \"yarn\", \"factor\": 32.0, \"truncate\": false, "
                        "\"original_max_position_embeddings\": 4096}",
        .score = MDP_SOFTMAX_CHOSEN,
        COMMON_TENSORS,
        QKVO_BIASES,
        .sinks = LAYER "self_attn.sinks",
        .layouts = {GPT_OSS_EXPERTS, GPT_OSS_MXFP4_EXPERTS},
    },
    {
        .model_type = "hunyuan_v1_moe",
        COMMON_KEYS,
        .d_model = {.name = "hidden_size", .absent = 4096},
        .d_ff = {.name = "intermediate_size", .absent = 11008},
        .n_layer = {.name = "num_hidden_layers", .absent = 32},
        .n_head = {.name = "num_attention_heads", .absent = 32},
        .n_kv_head = {.name = "num_key_value_heads", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 290943},
        .max_position = {.name = "max_position_embeddings", .absent = 2048},
        .n_expert = {.name = "num_experts", .other = "num_local_experts", .absent = 1, .may_be_list = true},
        .top_k = {.name = "moe_topk", .other = "num_experts_per_tok", .absent = 1, .may_be_list = true},
        .sparse_step = {.absent = 1},
        .shared_ff = {.name = "intermediate_size", .absent = 11008},
        .fixed = HUNYUAN_ONLY,
        .norm_eps = {.name = "rms_norm_eps", .absent = 1e-5},
        .bias = {.name = "attention_bias", .absent = false},
        .rope_theta = 1e4,
        .score = MDP_SOFTMAX_ALL,
        .normalise = MDP_NORMALISE_ALWAYS,
        .qk_norm = MDP_QK_NORM_HEAD,
        .qk_norm_last = true,
        COMMON_TENSORS,
        QKVO_BIASES,
        .q_norm = LAYER "self_attn.query_layernorm.weight",
        .k_norm = LAYER "self_attn.key_layernorm.weight",
        .shared = GATED_MLP("shared_mlp."),
        .layouts = {HUNYUAN_EXPERTS, HUNYUAN_FUSED_EXPERTS},
    },
    {
        .model_type = "llama4_text",
        LLAMA4_KEYS,
        LLAMA4_TENSORS(""),
        .layouts = {LLAMA4_EXPERTS("")},
    },
    {
        .model_type = "llama4",
        .scope = "text_config",
        LLAMA4_KEYS,
        LLAMA4_TENSORS("language_model."),
        .layouts = {LLAMA4_EXPERTS("language_model.")},
    },
    {
        .model_type = "dbrx",
        .d_model = {.name = "d_model", .absent = 2048},
        .d_ff = {.name = "ffn_config.ffn_hidden_size", .absent = 3584},
        .n_layer = {.name = "n_layers", .absent = 24},
        .n_head = {.name = "n_heads", .absent = 16},
        .n_kv_head = {.name = "attn_config.kv_n_heads", .absent = 1},
        .head_dim = {.name = "head_dim", .null_is_absent = true},
        .vocab_size = {.name = "vocab_size", .absent = 32000},
        .max_position = {.name = "max_seq_len", .absent = 2048, .null_is_absent = true},
        .n_expert = {.name = "ffn_config.moe_num_experts", .absent = 4},
        .top_k = {.name = "ffn_config.moe_top_k", .absent = 1},
        .sparse_step = {.absent = 1},
        .norm_eps = {.absent = 1e-5},
        .clip = {.name = "attn_config.clip_qkv"},
        .activation_key = "ffn_config.ffn_act_fn.name",
        .activation = "silu",
        .normalise_power = "ffn_config.moe_normalize_expert_weights",
        .rope_theta_key = "attn_config.rope_theta",
        .rope_theta = 1e4,
        .rope_layout = MDP_ROPE_HALF,
        .score = MDP_SOFTMAX_ALL,
        .norm_kind = MDP_LAYER_NORM,
        .embedding = "transformer.wte.weight",
        .final_norm = "transformer.norm_f.weight",
        .head = "lm_head.weight",
        .norm1 = BLOCK "norm_attn_norm.norm_1.weight",
        .norm2 = BLOCK "norm_attn_norm.norm_2.weight",
        .qkv = BLOCK "norm_attn_norm.attn.Wqkv.weight",
        .o = BLOCK "norm_attn_norm.attn.out_proj.weight",
        .layouts = {DBRX_EXPERTS},
    },
};

enum { N_FAMILY = sizeof FAMILIES / sizeof FAMILIES[0] };

static const char *const NAMES[] = {"mixtral",
                                    "qwen2_moe",
                                    "qwen3_moe",
                                    "qwen3_vl_moe",
                                    "qwen3_omni_moe",
                                    "qwen3_next",
                                    "qwen3_5_moe_text",
                                    "qwen3_5_moe",
                                    "olmoe",
                                    "deepseek",
                                    "deepseek_v2",
                                    "deepseek_v3",
                                    "kimi_k2",
                                    "deepseek_v32",
                                    "glm_moe_dsa",
                                    "glm4_moe_lite",
                                    "minimax_m2",
                                    "glm4_moe",
                                    "glm4v_moe",
                                    "solar_open",
                                    "hy_v3",
                                    "exaone_moe",
                                    "dots1",
                                    "ernie4_5_moe",
                                    "granitemoe",
                                    "granitemoeshared",
                                    "phimoe",
                                    "gpt_oss",
                                    "hunyuan_v1_moe",
                                    "llama4_text",
                                    "llama4",
                                    "dbrx",
                                    NULL};
_Static_assert(sizeof NAMES / sizeof NAMES[0] == N_FAMILY + 1, "every family has its name here");

const char *const *mdp_family_names(void) {
    return NAMES;
}

mdp_status mdp_family_find(const char *model_type, const char *path, const mdp_family **out) {
    char supported[768] = "";
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
