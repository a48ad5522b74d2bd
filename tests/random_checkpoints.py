"""Tiny random checkpoints over the cross product of what the families can be, each from a number, and what transformers makes of them.

A case is drawn (`draw`), written by transformers' own classes (`write`), and compared (`compare`): our logits with those of
transformers in float32; a checkpoint pruned to about half likewise, and with the original whose removed experts are at minus
infinity when a token chooses; what is kept with the original, bit for bit.
"""
import dataclasses
import json
import random
import re
import shutil
import struct

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

import mdp
import quantise
from families import assert_dump_equals, load, masked, save_random

torch.set_num_threads(1)  # threads cost more than such sizes take

SEPARATE = r"(experts\.)(\d+)(\..*)"
STACKED = r"\.experts\.|\.router\.|mlp\.gate\.|block_sparse_moe\.|e_score_correction_bias|mlp\.expert_bias"


@dataclasses.dataclass
class Case:
    """All that is drawn; `settings` are those of the configuration class of `made_as`."""
    family: str
    made_as: str
    settings: dict
    n_expert: int
    keep: int
    stored: str = "F32"
    block: tuple = (128, 128)
    n_shard: int = 1
    padded: bool = True        # headers of the files up to a multiple of 8 bytes
    stacked: bool = False      # experts of a layer in one tensor, as transformers holds them
    older: bool = False        # rope_theta and rope_scaling as transformers 4 wrote them
    brief: bool = False        # config.json without what its class has by itself
    through_native: bool = False
    ranks: tuple = (1, 1)      # of the evaluations before and after
    lengths: tuple = ()


# ---- drawing ----

def sometimes(choose, share=0.5):
    return choose.random() < share


def rope(choose, n_rotated, max_position, kinds):
    """rope_parameters of one of the kinds."""
    kind, original = choose.choice(kinds), choose.choice([16, 24, 64])
    values = dict(rope_type=kind, rope_theta=choose.choice([100.0, 10000.0, 500000.0]))
    if kind in ("linear", "dynamic"):
        values["factor"] = choose.choice([1.5, 2.0, 4.0])
    elif kind == "alpha":
        values.update(rope_type="dynamic", alpha=choose.choice([3.0, 1000.0]), factor=1.0)
    elif kind == "yarn":
        values.update(factor=choose.choice([2.0, 8.0, 40.0]), original_max_position_embeddings=original)
        for key, options in (("beta_fast", [4, 2.5]), ("beta_slow", [1, 0.5]), ("truncate", [True, False]), ("attention_factor", [1.2])):
            if sometimes(choose, 0.4):
                values[key] = choose.choice(options)
        if sometimes(choose):
            values.update(mscale=choose.choice([0.707, 1.0]), mscale_all_dim=choose.choice([0.6, 1.0]))
    elif kind == "llama3":
        values.update(factor=choose.choice([4.0, 32.0]), low_freq_factor=1.0, high_freq_factor=choose.choice([1.0, 2.0, 4.0]),
                      original_max_position_embeddings=original)
    elif kind == "longrope":
        n_pair = n_rotated // 2
        values.update(short_factor=[1 + 0.1 * i for i in range(n_pair)], long_factor=[1 + 0.9 * i for i in range(n_pair)],
                      original_max_position_embeddings=original)
        if sometimes(choose):
            values["factor"] = max_position / original
    return values


def sizes(choose, head_dim=True):
    """What all families call the same; heads need not add up to the width where head_dim says so."""
    n_kv = choose.choice([1, 1, 2, 3])
    n_head = n_kv * choose.choice([1, 2, 3])
    drawn = dict(vocab_size=choose.randint(61, 101), num_hidden_layers=choose.choice([2, 3, 3, 4]), num_attention_heads=n_head,
                 num_key_value_heads=n_kv, intermediate_size=choose.randint(17, 45),
                 max_position_embeddings=choose.choice([24, 36, 256]), rms_norm_eps=choose.choice([1e-6, 1e-5, 1e-2]),
                 hidden_act=choose.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh"]), tie_word_embeddings=sometimes(choose, 0.3))
    if head_dim and sometimes(choose, 0.7):
        drawn.update(head_dim=2 * choose.randint(2, 7), hidden_size=choose.randint(25, 49))
    else:
        drawn["hidden_size"] = n_head * 2 * choose.randint(3, 6)
    return drawn


def width(drawn):
    return drawn.get("head_dim") or drawn["hidden_size"] // drawn["num_attention_heads"]


ROPES = ["default", "default", "linear", "dynamic", "yarn", "llama3", "longrope"]


def usual_rope(choose, drawn, kinds=ROPES):
    drawn["rope_parameters"] = rope(choose, width(drawn), drawn["max_position_embeddings"], kinds)
    if drawn["rope_parameters"]["rope_type"] != "default":
        drawn.setdefault("head_dim", width(drawn))  # where it is null the library finds no scaled rope
    return drawn


def window(choose):
    return choose.choice([None, 3, 7, 64])


def layers(choose, drawn, share=0.4):
    """Some layers but not all."""
    chosen = [layer for layer in range(drawn["num_hidden_layers"]) if sometimes(choose, share)]
    return chosen[:drawn["num_hidden_layers"] - 1]


def experts(choose, most=3):
    n_expert = choose.randint(4, 9)
    return n_expert, choose.randint(1, min(most, n_expert // 2))


def halve(n_expert, top_k):
    return max(top_k, n_expert // 2)


def mixtral(choose):
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose))
    drawn.update(num_local_experts=n_expert, num_experts_per_tok=top_k, sliding_window=window(choose))
    return drawn, n_expert, halve(n_expert, top_k)


def qwen(choose):
    """What qwen2_moe and qwen3_moe share."""
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose))
    drawn.update(num_experts=n_expert, num_experts_per_tok=top_k, moe_intermediate_size=choose.randint(11, 40),
                 norm_topk_prob=sometimes(choose), decoder_sparse_step=choose.choice([1, 1, 2]), use_sliding_window=sometimes(choose),
                 sliding_window=choose.choice([3, 7]))
    if drawn["decoder_sparse_step"] == 1:
        drawn["mlp_only_layers"] = layers(choose, drawn)
    return drawn, n_expert, halve(n_expert, top_k)


def qwen2_moe(choose):
    drawn, n_expert, keep = qwen(choose)
    drawn.update(shared_expert_intermediate_size=choose.randint(11, 60), qkv_bias=sometimes(choose),
                 max_window_layers=choose.randint(0, 4))
    if drawn["use_sliding_window"] and sometimes(choose):
        drawn["layer_types"] = [choose.choice(["full_attention", "sliding_attention"]) for _ in range(drawn["num_hidden_layers"])]
    return drawn, n_expert, keep


def qwen3_moe(choose):
    drawn, n_expert, keep = qwen(choose)
    drawn.setdefault("head_dim", 2 * choose.randint(2, 7))
    return usual_rope(choose, {**drawn, "attention_bias": sometimes(choose)}), n_expert, keep


def linear_attention(choose):
    """What qwen3_next and qwen3_5_moe share."""
    n_expert, top_k = experts(choose)
    drawn, n_key = sizes(choose), choose.choice([1, 2])
    drawn["head_dim"] = choose.choice([8, 16])
    part_rotated(choose, drawn, [0.25, 0.5])
    drawn.update(num_experts=n_expert, num_experts_per_tok=top_k, moe_intermediate_size=choose.randint(11, 40),
                 shared_expert_intermediate_size=choose.randint(11, 40), attention_bias=sometimes(choose), linear_num_key_heads=n_key,
                 linear_num_value_heads=n_key * choose.choice([1, 2, 3]), linear_key_head_dim=choose.randint(10, 20),
                 linear_value_head_dim=choose.randint(10, 20), linear_conv_kernel_dim=choose.choice([3, 4, 5]),
                 layer_types=["linear_attention", *(choose.choice(["full_attention", "linear_attention"])
                                                    for _ in range(drawn["num_hidden_layers"] - 1))])
    return drawn, n_expert, halve(n_expert, top_k)


def qwen3_next(choose):
    drawn, n_expert, keep = linear_attention(choose)
    return {**drawn, "norm_topk_prob": sometimes(choose), "mlp_only_layers": layers(choose, drawn)}, n_expert, keep


def qwen3_5_moe_text(choose):
    return linear_attention(choose)


def olmoe(choose):
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose, head_dim=False))  # the class takes the width of the norms from hidden_size
    drawn.update(num_experts=n_expert, num_experts_per_tok=top_k, norm_topk_prob=sometimes(choose), attention_bias=sometimes(choose),
                 clip_qkv=choose.choice([None, 0.4, 1.1]))
    return drawn, n_expert, halve(n_expert, top_k)


def routed(choose, drawn, top_k_key="num_experts_per_tok", groups=True):
    """Experts in groups, or in one: their settings, number, and what to keep of them."""
    n_group = choose.choice([1, 1, 2, 3]) if groups else 1
    if n_group == 1:
        n_expert, top_k = experts(choose)
        n_open, keep = 1, halve(n_expert, top_k)
    else:
        n_open, each = choose.randint(1, n_group), choose.randint(3, 5)
        n_expert, top_k = n_group * each, choose.randint(1, min(3, 2 * n_open))
        left = max(2, each // 2, -(-top_k // n_open))
        keep = n_group * left
    drawn.update(n_routed_experts=n_expert, moe_intermediate_size=choose.randint(11, 40), n_shared_experts=choose.choice([1, 2]),
                 routed_scaling_factor=choose.choice([1.0, 1.7, 16.0]), norm_topk_prob=sometimes(choose), n_group=n_group,
                 topk_group=n_open, **{top_k_key: top_k})
    return drawn, n_expert, keep


def latent(choose, kinds=ROPES):
    drawn = sizes(choose, head_dim=False)
    n_rope = 2 * choose.randint(1, 4)
    drawn.update(num_key_value_heads=drawn["num_attention_heads"], q_lora_rank=choose.choice([None, 13, 20]),
                 kv_lora_rank=choose.randint(9, 20), qk_nope_head_dim=choose.randint(5, 12), qk_rope_head_dim=n_rope,
                 v_head_dim=choose.randint(5, 15), attention_bias=sometimes(choose))
    kinds = [kind for kind in kinds if kind != "dynamic" or n_rope > 2]
    drawn["rope_parameters"] = rope(choose, n_rope, drawn["max_position_embeddings"], kinds)
    return drawn


def deepseek_v2(choose):
    drawn, n_expert, keep = routed(choose, latent(choose))
    for key in ("kv_lora_rank", "qk_nope_head_dim"):  # the library views pairs as complex numbers where they lie
        drawn[key] += drawn[key] % 2
    drawn.update(topk_method="greedy" if drawn["n_group"] == 1 else "group_limited_greedy",
                 first_k_dense_replace=choose.randint(0, drawn["num_hidden_layers"] - 1))
    return drawn, n_expert, keep


def deepseek_v3(choose):
    drawn, n_expert, keep = routed(choose, latent(choose))
    drawn.update(rope_interleave=sometimes(choose), first_k_dense_replace=choose.randint(0, drawn["num_hidden_layers"] - 1))
    return drawn, n_expert, keep


def glm4_moe_lite(choose):
    drawn, n_expert, keep = routed(choose, latent(choose))
    dense = layers(choose, drawn)
    drawn.update(rope_interleave=sometimes(choose),
                 mlp_layer_types=["dense" if layer in dense else "sparse" for layer in range(drawn["num_hidden_layers"])])
    return drawn, n_expert, keep


def indexed(choose):
    """Latent attention with an indexer, and no sequence so long that it chooses."""
    drawn, n_expert, keep = routed(choose, latent(choose))
    drawn.update(q_lora_rank=choose.choice([13, 20]), index_topk=128, index_n_heads=choose.choice([1, 2]), index_head_dim=8 + choose.randint(0, 8))
    return drawn, n_expert, keep


def deepseek_v32(choose):
    drawn, n_expert, keep = indexed(choose)
    return {**drawn, "first_k_dense_replace": choose.randint(0, drawn["num_hidden_layers"] - 1)}, n_expert, keep


def glm_moe_dsa(choose):
    drawn, n_expert, keep = indexed(choose)
    dense, n_layer = layers(choose, drawn), drawn["num_hidden_layers"]
    drawn.update(mlp_layer_types=["dense" if layer in dense else "sparse" for layer in range(n_layer)],
                 indexer_types=["full"] + [choose.choice(["full", "shared"]) for _ in range(n_layer - 1)])
    return drawn, n_expert, keep


def part_rotated(choose, drawn, parts):
    """A rope of a part of each head."""
    part = choose.choice(parts)
    drawn["rope_parameters"] = rope(choose, int(drawn["head_dim"] * part), drawn["max_position_embeddings"], ROPES)
    if drawn["rope_parameters"]["rope_type"] == "dynamic" and drawn["head_dim"] * part == 2:
        part *= 2  # the library divides by what is beyond 2
    drawn["rope_parameters"]["partial_rotary_factor"] = part


def glm4_moe(choose):
    drawn, n_expert, keep = routed(choose, sizes(choose, head_dim=False))
    drawn.update(head_dim=4 * choose.randint(2, 4), attention_bias=sometimes(choose), use_qk_norm=sometimes(choose),
                 first_k_dense_replace=choose.randint(0, drawn["num_hidden_layers"] - 1))
    part_rotated(choose, drawn, [0.5, 1.0])
    return drawn, n_expert, keep


def solar_open(choose):
    drawn, n_expert, keep = routed(choose, sizes(choose))
    drawn.setdefault("head_dim", 2 * choose.randint(2, 7))
    return usual_rope(choose, {**drawn, "attention_bias": sometimes(choose)}), n_expert, keep


def of_other_names(drawn):
    """Numbers of experts as K-EXAONE and Hy3 call them."""
    drawn["num_experts"], drawn["num_shared_experts"] = drawn.pop("n_routed_experts"), drawn.pop("n_shared_experts")
    return drawn


def exaone_moe(choose):
    drawn, n_expert, keep = routed(choose, usual_rope(choose, sizes(choose)))
    of_other_names(drawn).update(sliding_window=choose.choice([3, 7, 64]), sliding_window_pattern=choose.choice([2, 3]),
                                 first_k_dense_replace=choose.randint(0, drawn["num_hidden_layers"] - 1))
    if sometimes(choose):
        drawn["layer_types"] = [choose.choice(["full_attention", "sliding_attention"]) for _ in range(drawn["num_hidden_layers"])]
    return drawn, n_expert, keep


def hy_v3(choose):
    drawn, n_expert, keep = routed(choose, sizes(choose), groups=False)
    drawn.setdefault("head_dim", 2 * choose.randint(2, 7))
    for key in ("n_group", "topk_group", "norm_topk_prob"):
        del drawn[key]
    of_other_names(drawn).update(router_scaling_factor=drawn.pop("routed_scaling_factor"), attention_bias=sometimes(choose))
    if sometimes(choose):
        dense = layers(choose, drawn)
        drawn["mlp_layer_types"] = ["dense" if layer in dense else "sparse" for layer in range(drawn["num_hidden_layers"])]
    return usual_rope(choose, drawn), n_expert, keep


def dots1(choose):
    drawn, n_expert, keep = routed(choose, usual_rope(choose, sizes(choose)))
    drawn.update(attention_bias=sometimes(choose), sliding_window=window(choose), max_window_layers=choose.randint(0, 4),
                 first_k_dense_replace=choose.randint(0, drawn["num_hidden_layers"] - 1))
    return drawn, n_expert, keep


def minimax_m2(choose):
    n_expert, top_k = experts(choose)
    drawn = sizes(choose)
    drawn.update(num_local_experts=n_expert, num_experts_per_tok=top_k, head_dim=4 * choose.randint(2, 4))
    part_rotated(choose, drawn, [0.5, 1.0])
    return drawn, n_expert, halve(n_expert, top_k)


def ernie4_5_moe(choose):
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose))
    first = choose.randint(0, drawn["num_hidden_layers"] - 1)
    drawn.update(moe_num_experts=n_expert, moe_k=top_k, moe_intermediate_size=choose.randint(11, 40),
                 moe_num_shared_experts=choose.choice([0, 1, 2]), moe_norm_min=choose.choice([1e-12, 0.3]), moe_layer_start_index=first,
                 moe_layer_end_index=choose.choice([-1, first]))
    if first % 2 == 1:
        drawn["moe_layer_interval"] = choose.choice([1, 2])
    return drawn, n_expert, halve(n_expert, top_k)


def granitemoe(choose):
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose))
    drawn.update(num_local_experts=n_expert, num_experts_per_tok=top_k, attention_bias=sometimes(choose),
                 embedding_multiplier=choose.choice([1.0, 12.0]), residual_multiplier=choose.choice([1.0, 0.22]),
                 logits_scaling=choose.choice([1.0, 6.0]), attention_multiplier=choose.choice([1.0, 0.0625]))
    return drawn, n_expert, halve(n_expert, top_k)


def granitemoeshared(choose):
    drawn, n_expert, keep = granitemoe(choose)
    return {**drawn, "shared_intermediate_size": choose.choice([0, 13, 40])}, n_expert, keep


def phimoe(choose):
    n_expert = choose.randint(4, 9)
    drawn = sizes(choose)
    drawn.update(num_local_experts=n_expert, num_experts_per_tok=2, attention_bias=sometimes(choose), lm_head_bias=sometimes(choose),
                 router_jitter_noise=choose.choice([0.01, 0.2]), sliding_window=window(choose))
    drawn["rope_parameters"] = dict(rope_type="default", rope_theta=10000.0)
    if sometimes(choose):  # the library keeps short_factor at every length, unlike the authors: no sequence is longer
        values = rope(choose, width(drawn), drawn["max_position_embeddings"], ["longrope"])
        drawn["rope_parameters"] = {**values, "short_mscale": 1.1, "long_mscale": 1.4, "original_max_position_embeddings": 64}
        drawn["rope_parameters"].pop("factor", None)
    return drawn, n_expert, max(2, n_expert // 2)


def gpt_oss(choose):
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose))
    if sometimes(choose):
        del drawn["rope_parameters"]  # yarn by itself
    drawn.setdefault("head_dim", 2 * choose.randint(2, 7))
    drawn.update(num_local_experts=n_expert, num_experts_per_tok=top_k, sliding_window=choose.choice([3, 7, 64]),
                 attention_bias=sometimes(choose), swiglu_alpha=choose.choice([1.702, 1.3]), swiglu_limit=choose.choice([7.0, 0.9]))
    if sometimes(choose):
        drawn["layer_types"] = [choose.choice(["full_attention", "sliding_attention"]) for _ in range(drawn["num_hidden_layers"])]
    return drawn, n_expert, halve(n_expert, top_k)


def hunyuan_v1_moe(choose):
    n_expert, top_k = experts(choose)
    drawn = usual_rope(choose, sizes(choose), ["default", "alpha", "alpha", "linear", "dynamic"])
    drawn.update(num_experts=n_expert, moe_topk=choose.choice([top_k, [top_k] * drawn["num_hidden_layers"]]),
                 attention_bias=sometimes(choose))
    return drawn, n_expert, halve(n_expert, top_k)


def llama4_text(choose):
    n_expert, top_k = experts(choose)
    n_layer = (drawn := usual_rope(choose, sizes(choose), ["default", "linear", "llama3", "llama3"]))["num_hidden_layers"]
    drawn.setdefault("head_dim", 2 * choose.randint(2, 7))
    drawn.update(num_local_experts=n_expert, num_experts_per_tok=top_k, intermediate_size_mlp=choose.randint(20, 50),
                 attention_chunk_size=choose.choice([5, 9, 64]), floor_scale=choose.choice([4, 8192]), attn_scale=choose.choice([0.1, 0.3]),
                 use_qk_norm=sometimes(choose), attention_bias=sometimes(choose), attn_temperature_tuning=sometimes(choose))
    if sometimes(choose):
        drawn["no_rope_layers"] = [choose.randint(0, 1) for _ in range(n_layer)]
    else:
        drawn["no_rope_layer_interval"] = choose.choice([2, 4])
    if sometimes(choose):
        drawn["moe_layers"] = sorted(choose.sample(range(n_layer), choose.randint(1, n_layer)))
    else:
        drawn["interleave_moe_layer_step"] = choose.choice([1, 2])
    return drawn, n_expert, halve(n_expert, top_k)


def dbrx(choose):
    n_expert, top_k = experts(choose)
    n_kv = choose.choice([1, 2])
    n_head, theta = n_kv * choose.choice([1, 3]), choose.choice([5000.0, 500000.0])
    ffn = dict(ffn_hidden_size=choose.randint(17, 45), moe_num_experts=n_expert, moe_top_k=top_k,
               moe_normalize_expert_weights=choose.choice([1.0, None]))
    return dict(d_model=n_head * 2 * choose.randint(3, 8), n_heads=n_head, n_layers=choose.choice([2, 3]), max_seq_len=256,
                vocab_size=choose.randint(61, 101), rope_parameters=dict(rope_type="default", rope_theta=theta),
                attn_config=dict(clip_qkv=choose.choice([0.4, 0.9]), kv_n_heads=n_kv, rope_theta=theta), ffn_config=ffn), \
        n_expert, halve(n_expert, top_k)


def deepseek(choose):
    """The first DeepSeek-MoE, which transformers has no class for: see `as_deepseek`."""
    drawn, n_expert, keep = qwen2_moe(choose)
    for key in ("use_sliding_window", "sliding_window", "layer_types", "qkv_bias", "decoder_sparse_step", "head_dim"):
        drawn.pop(key, None)
    drawn["hidden_size"] = drawn["num_attention_heads"] * 2 * choose.randint(3, 6)
    drawn.pop("rope_parameters")
    n_dense = choose.randint(0, drawn["num_hidden_layers"] - 1)
    drawn.update(mlp_only_layers=list(range(n_dense)), qkv_bias=False, max_window_layers=0,
                 shared_expert_intermediate_size=choose.choice([1, 2]) * drawn["moe_intermediate_size"])
    return usual_rope(choose, drawn, ["default", "linear", "dynamic"]), n_expert, keep


MADE_AS = {"kimi_k2": "deepseek_v3", "deepseek": "qwen2_moe", "llama4": "llama4_text"}
DRAWN = {rule.__name__: rule for rule in (
    mixtral, qwen2_moe, qwen3_moe, qwen3_next, qwen3_5_moe_text, olmoe, deepseek, deepseek_v2, deepseek_v3, deepseek_v32, glm_moe_dsa,
    glm4_moe_lite, minimax_m2, glm4_moe, solar_open, hy_v3, exaone_moe, dots1, ernie4_5_moe, granitemoe, granitemoeshared, phimoe,
    gpt_oss, hunyuan_v1_moe, llama4_text, dbrx)} | {"kimi_k2": deepseek_v3, "llama4": llama4_text}
FUSED_ONLY = ("granitemoe", "granitemoeshared", "gpt_oss", "llama4", "llama4_text", "dbrx")


def draw(seed):
    """The case of a number. Families take turns, so that as many numbers as there are families see all of them."""
    choose = random.Random(seed)
    family = sorted(DRAWN)[seed % len(DRAWN)]
    settings, n_expert, keep = DRAWN[family](choose)
    case = Case(family=family, made_as=MADE_AS.get(family, family), settings=settings, n_expert=n_expert, keep=keep)
    kinds = ["F32", "F32", "BF16", "F16"] + ([] if family in FUSED_ONLY else ["FP8", "FP8 E8M0"]) + ["MXFP4"] * 3 * (family == "gpt_oss")
    case.stored = choose.choice(kinds)
    case.block = choose.choice([(16, 32), (8, 8), (128, 128)])
    if case.stored == "MXFP4":
        settings.update(hidden_size=32 * choose.randint(1, 2), intermediate_size=32 * choose.randint(1, 2))
    case.n_shard, case.padded = choose.choice([1, 2, 3]), sometimes(choose)
    case.stacked = family not in (*FUSED_ONLY, "deepseek", "hy_v3") and sometimes(choose, 0.3)
    case.older, case.brief, case.through_native = (sometimes(choose, 0.3) for _ in range(3))
    case.ranks = choose.choice([1, 2, 3]), choose.choice([1, 2])
    case.lengths = tuple(choose.choice([1, 2, 23, 30]) for _ in range(2)) + (choose.randint(37, 45),)
    if settings.get("rope_parameters", {}).get("rope_type") == "dynamic":
        case.lengths = 2, 30, case.lengths[-1]  # the library keeps the base of the longest until it sees a short one
    return case


# ---- writing ----

def as_deepseek(tensors, config):
    """A qwen2_moe whose shared expert gives half (its gate is 0), doubled, is a DeepSeek-MoE; returns its tensors and config."""
    ours = {name.replace("shared_expert.", "shared_experts."): values for name, values in tensors.items() if "shared_expert_gate" not in name}
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
            "moe_intermediate_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "num_experts_per_tok",
            "norm_topk_prob", "rope_parameters", "quantization_config", "dtype"]
    return ours, {**{key: config[key] for key in keys if key in config}, "model_type": "deepseek", "scoring_func": "softmax",
                  "n_routed_experts": config["num_experts"], "first_k_dense_replace": len(config["mlp_only_layers"]),
                  "n_shared_experts": config["shared_expert_intermediate_size"] // config["moe_intermediate_size"]}


def as_qwen2_moe(tensors, config):
    """The way back."""
    ours = {name.replace("shared_experts.", "shared_expert."): values for name, values in tensors.items()}
    for name in [name for name in ours if name.endswith("shared_expert.down_proj.weight")]:
        ours[name] = 2 * ours[name]
        ours[name.replace("shared_expert.down_proj", "shared_expert_gate")] = torch.zeros(1, config["hidden_size"])
    return ours, {**config, "model_type": "qwen2_moe", "num_experts": config["n_routed_experts"], "qkv_bias": False,
                  "mlp_only_layers": list(range(config["first_k_dense_replace"])),
                  "shared_expert_intermediate_size": config["n_shared_experts"] * config["moe_intermediate_size"]}


def dressed(family, tensors, config):
    """As the family is published, from what transformers' class for it saves."""
    if family == "deepseek":
        return as_deepseek(tensors, config)
    if family == "kimi_k2":
        return tensors, {**config, "model_type": "kimi_k2"}
    if family == "llama4":
        return ({**{f"language_model.{name}": values for name, values in tensors.items()}, "vision_model.weight": torch.ones(6, 2)},
                {"model_type": "llama4", "text_config": config, "vision_config": {"num_local_experts": 77}})
    return tensors, config


def undressed(family, tensors, config):
    """What transformers' class loads."""
    if family == "deepseek":
        return as_qwen2_moe(tensors, config)
    if family == "kimi_k2":
        return tensors, {**config, "model_type": "deepseek_v3"}
    if family == "llama4":
        return ({name.removeprefix("language_model."): values for name, values in tensors.items() if not name.startswith("vision")},
                config["text_config"])
    return tensors, config


def older_config(config):
    """rope_parameters as transformers 4 had it."""
    values = dict(config.pop("rope_parameters"))
    config["rope_theta"] = values.pop("rope_theta")
    if "partial_rotary_factor" in values:
        config["partial_rotary_factor"] = values.pop("partial_rotary_factor")
    kind = values.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **values}


def brief_config(config):
    """config.json without what the class has by itself."""
    defaults = transformers.AutoConfig.for_model(config["model_type"]).to_dict()
    return {key: value for key, value in config.items() if key == "model_type" or defaults.get(key, ...) != value}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3",
          torch.float8_e8m0fnu: "F8_E8M0"}


def save_unpadded(tensors, path, choose):
    """A file whose tensors lie in any order and begin at an odd address."""
    names, header, offset = list(tensors), {"__metadata__": {"format": "pt"}}, 0
    choose.shuffle(names)
    for name in names:
        n_byte = tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [offset, offset + n_byte]}
        offset += n_byte
    text = json.dumps(header)
    text += " " * (len(text) % 2 == 0)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + b"".join(bits(tensors[name]) for name in names))


def store(tensors, config, folder, n_shard=1, padded=True, choose=None):
    """Write the folder of a checkpoint; each tensor in any of the shards."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("model*"):
        path.unlink()
    shards = [dict() for _ in range(n_shard)]
    for i, (name, values) in enumerate(sorted(tensors.items())):
        shards[i if i < n_shard else choose.randrange(n_shard) if choose else 0][name] = values.contiguous()
    weight_map = {}
    for i, shard in enumerate(shards):
        path = folder / ("model.safetensors" if n_shard == 1 else f"model-{i + 1:05}-of-{n_shard:05}.safetensors")
        weight_map |= {name: path.name for name in shard}
        save_file(shard, path, metadata={"format": "pt"}) if padded else save_unpadded(shard, path, choose)
    if n_shard > 1:
        total = sum(values.numel() * values.element_size() for values in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def write(case, seed, folder):
    """The checkpoint of the case."""
    choose = random.Random(seed + 1)
    save_random(case.made_as, case.settings, folder, seed, save_original_format=not case.stacked)
    tensors, config = quantise.load(folder), mdp.read_json(folder / "config.json")
    config.pop("transformers_version", None)
    if case.stored in ("F16", "BF16"):
        kind = torch.float16 if case.stored == "F16" else torch.bfloat16
        tensors = {name: values.to(kind) for name, values in tensors.items()}
    elif case.stored.startswith("FP8"):
        tensors, config = quantise.fp8_of(tensors, config, case.block, "E8M0" in case.stored)
    elif case.stored == "MXFP4":
        tensors, config = quantise.mxfp4_of(tensors, config, np.random.default_rng(seed))
    if case.older and "rope_parameters" in config:
        older_config(config)
    elif case.brief:
        config = brief_config(config) if case.family != "deepseek" else config
    tensors, config = dressed(case.family, tensors, config)
    return store(tensors, config, folder, case.n_shard, case.padded, choose)


# ---- comparing ----

def reference(case, folder, out):
    """transformers' model of a checkpoint of the case, in float32."""
    if case.stored == "MXFP4":
        return load(folder, quantization_config=transformers.Mxfp4Config(dequantize=True))
    tensors, config = undressed(case.family, *quantise.decoded(quantise.load(folder), mdp.read_json(folder / "config.json")))
    return load(store(tensors, config, out))


def dump(ranks, folder, tokens, out):
    mdp.succeed(ranks, "eval", "--model", folder, "--tokens", tokens, "--dump", out, "--out", out.with_suffix(".json"))
    return out


def prune(case, folder, tokens, out):
    """The folder of the pruned checkpoint, and what each layer keeps. One rank and four write the same bytes."""
    written = []
    for ranks in (1, 4):
        shutil.rmtree(out, ignore_errors=True)
        mdp.succeed(ranks, "run", "--model", folder, "--tokens", tokens, "--method", "reap", "--keep", case.keep, "--format", "both",
                    "--out", out)
        written.append({name: mdp.digests(out / name) for name in ("stats.h5", "plan.json", "model.h5", "hf")})
    assert written[0] == written[1]
    if case.through_native:
        mdp.succeed(2, "export", "--model", out / "model.h5", "--out", out / "exported")
        assert mdp.digests(out / "exported") == written[0]["hf"]
    plan = mdp.read_json(out / "plan.json")
    return out / "hf", {layer["layer"]: [expert["from"][0] for expert in layer["experts"]] for layer in plan["layers"]}


def kept_tensors(case, tensors, kept):
    """{name: tensor} that dropping experts must leave, bit for bit."""
    result = {}
    for name, values in tensors.items():
        layer = re.search(r"(?:layers|blocks)\.(\d+)\.", name)
        expert = re.search(SEPARATE, name)
        if not layer or int(layer[1]) not in kept or "shared" in name:
            result[name] = values
        elif expert:
            if int(expert[2]) in kept[int(layer[1])]:
                result[re.sub(SEPARATE, rf"\g<1>{kept[int(layer[1])].index(int(expert[2]))}\g<3>", name)] = values
        elif re.search(STACKED, name):
            codes = values.view(torch.uint8) if values.element_size() == 1 else values  # FP8 tensors cannot be indexed
            rows = codes.view(case.n_expert, -1, *codes.shape[1:]) if "experts.mlp." in name else codes
            axis = 1 if rows.shape[0] == 1 else 0
            rows = rows.index_select(axis, torch.tensor(kept[int(layer[1])]))
            result[name] = (rows.flatten(0, 1) if "experts.mlp." in name else rows).view(values.dtype)
        else:
            result[name] = values
    return result


def assert_same_bits(ours, want):
    assert ours.keys() == want.keys(), ours.keys() ^ want.keys()
    for name, values in want.items():
        assert (ours[name].dtype, ours[name].shape, bits(ours[name])) == (values.dtype, values.shape, bits(values)), name


def compare(seed, work):
    """Make, prune and compare the case of a number in an empty folder."""
    case = draw(seed)
    original = write(case, seed, work / "original")
    config = mdp.read_json(original / "config.json")
    rng = np.random.default_rng(seed)
    vocabulary = config.get("text_config", config)["vocab_size"]
    tokens = mdp.write_tokens(work / "tokens.h5", {"text": [rng.integers(0, vocabulary, n) for n in case.lengths]})
    calib = mdp.write_tokens(work / "calib.h5", {name: [rng.integers(0, vocabulary, rng.integers(1, 120)) for _ in range(150)]
                                                 for name in ("a", "b")})  # two blocks, so that ranks share them
    before = reference(case, original, work / "twin")
    assert_dump_equals(dump(case.ranks[0], original, tokens, work / "before.h5"), tokens, before)
    pruned, kept = prune(case, original, calib, work / "out")
    assert_same_bits(quantise.load(pruned), kept_tensors(case, quantise.load(original), kept))
    after = dump(case.ranks[1], pruned, tokens, work / "after.h5")
    assert_dump_equals(after, tokens, reference(case, pruned, work / "pruned-twin"))
    with masked(before, kept):
        assert_dump_equals(after, tokens, before)
    return case
