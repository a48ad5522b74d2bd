"""Families with rules of their own: the same logits as transformers, and after pruning those of the original with the removed
experts' logits at minus infinity.

The checkpoints are made and saved by transformers, all parameters at random.
"""
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import mdp
from families import SIZES, assert_dump_equals, assert_same_logits, load, masked, prune, save_random, write_tokens

N_EXPERT = 6
MOE = dict(**SIZES, num_local_experts=N_EXPERT, num_experts_per_tok=2)
LLAMA4 = dict(**{**MOE, "num_experts_per_tok": 1}, head_dim=8, intermediate_size_mlp=56, no_rope_layer_interval=2, attention_chunk_size=9,
              floor_scale=4, attn_scale=0.3)
QWEN3_VL = dict(**SIZES, head_dim=12, num_experts=N_EXPERT, num_experts_per_tok=2, moe_intermediate_size=24,
                rope_parameters=dict(rope_type="default", rope_theta=5000.0, mrope_section=[2, 2, 2]))
VARIANTS = {
    "granitemoe": ("granitemoe", dict(
        **MOE, attention_multiplier=0.3, embedding_multiplier=1.7, residual_multiplier=0.6, logits_scaling=2.5)),
    "granitemoe, biases, tied, one kv head": ("granitemoe", dict(
        **{**MOE, "num_key_value_heads": 1}, attention_bias=True, tie_word_embeddings=True, attention_multiplier=0.3)),
    "granitemoeshared": ("granitemoeshared", dict(
        **MOE, shared_intermediate_size=20, attention_multiplier=0.3, embedding_multiplier=1.7, residual_multiplier=0.6,
        logits_scaling=2.5)),
    "qwen3_vl_moe": ("qwen3_vl_moe", dict(
        text_config=dict(**QWEN3_VL, tie_word_embeddings=False, mlp_only_layers=[1], attention_bias=True), vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=32, num_position_embeddings=16,
            deepstack_visual_indexes=[0]))),
    # compared through the part that thinks: see below
    "qwen3_omni_moe": ("qwen3_omni_moe", dict(
        text_config=dict(**QWEN3_VL, mlp_only_layers=[1]),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=32, num_position_embeddings=16,
                           deepstack_visual_indexes=[0]),
        audio_config=dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=20, downsample_hidden_size=8,
                          output_dim=32))),
    "glm4v_moe": ("glm4v_moe", dict(
        text_config=dict(**SIZES, head_dim=16, n_routed_experts=N_EXPERT, num_experts_per_tok=2, moe_intermediate_size=24,
                         routed_scaling_factor=1.7, rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                                         partial_rotary_factor=0.5, mrope_section=[2, 1, 1])),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=32))),
    "phimoe": ("phimoe", dict(**MOE, attention_bias=True, lm_head_bias=True, router_jitter_noise=0.2)),
    "phimoe, window, no biases": ("phimoe", dict(**MOE, sliding_window=7)),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", dict(
        **SIZES, num_experts=N_EXPERT, moe_topk=[2, 2, 2], head_dim=10,
        rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, alpha=1000.0, factor=1.0))),
    "llama4_text": ("llama4_text", dict(**LLAMA4, rms_norm_eps=1e-2)),
    "llama4_text, dense layers, no norms, other chunks, llama3 rope": ("llama4_text", dict(
        **{**LLAMA4, "num_experts_per_tok": 2}, use_qk_norm=False, moe_layers=[0, 2], no_rope_layers=[1, 0, 0], attention_bias=True,
        attn_temperature_tuning=False, layer_types=["full_attention", "chunked_attention", "full_attention"],
        rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=1.0,
                             original_max_position_embeddings=64))),
    "dbrx": ("dbrx", dict(
        d_model=32, n_heads=4, n_layers=3, max_seq_len=256, vocab_size=96, rope_parameters=dict(rope_type="default", rope_theta=5000.0),
        attn_config=dict(clip_qkv=0.9, kv_n_heads=2, rope_theta=5000.0),
        ffn_config=dict(ffn_hidden_size=40, moe_num_experts=N_EXPERT, moe_top_k=2))),
    "gpt_oss": ("gpt_oss", dict(**MOE, head_dim=10, sliding_window=6, swiglu_alpha=1.3, swiglu_limit=0.9)),
}


def test_long_sequences_take_the_long_frequencies(tmp_path):
    """Beyond the original length: the authors' rule, which the library has, but does not follow for this family."""
    rope = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.0, 2.0, 5.0, 9.0],
                short_mscale=1.1, long_mscale=1.4, original_max_position_embeddings=30)
    folder = save_random("phimoe", dict(**MOE, rope_parameters=rope), tmp_path / "original")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    mdp.succeed(2, "eval", "--model", folder, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    model = load(folder)
    rotary, longrope = model.model.rotary_emb, ROPE_INIT_FUNCTIONS["longrope"]
    rotary.register_forward_pre_hook(lambda module, args, kwargs: setattr(
        module, "rope_init_fn", lambda config: longrope(config, seq_len=kwargs["position_ids"].shape[1])), with_kwargs=True)
    assert_dump_equals(tmp_path / "dump.h5", tokens, model)


def test_text_part_of_a_larger_model_is_pruned_like_the_text_model(tmp_path):
    """Llama 4 with images: keys in text_config, tensors under language_model., and what else there is stays."""
    flat = save_random(*VARIANTS["llama4_text"], tmp_path / "flat")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    config, tensors = mdp.read_json(flat / "config.json"), load_file(flat / "model.safetensors")
    nested = tmp_path / "nested"
    nested.mkdir()
    whole = {"vision_config": {"num_local_experts": 77}, "model_type": "llama4", "text_config": config, "num_local_experts": 78}
    (nested / "config.json").write_text(json.dumps(whole, indent=2), encoding="utf-8")
    save_file({**{f"language_model.{name}": tensor for name, tensor in tensors.items()}, "vision_model.weight": torch.ones(6, 2)},
              nested / "model.safetensors", metadata={"format": "pt"})
    found = {}
    for folder in (flat, nested):
        pruned = prune(folder, tokens, 3, tmp_path / f"{folder.name}-out")
        found[folder.name] = mdp.read_json(pruned / "config.json"), load_file(pruned / "model.safetensors")
    assert found["flat"][0] == {**config, "num_local_experts": 3}
    assert found["nested"][0] == {**whole, "text_config": found["flat"][0]}
    assert torch.equal(found["nested"][1].pop("vision_model.weight"), torch.ones(6, 2))
    assert {name.removeprefix("language_model."): tensor.tolist() for name, tensor in found["nested"][1].items()} == \
        {name: tensor.tolist() for name, tensor in found["flat"][1].items()}


def test_text_part_of_a_model_that_also_hears_and_speaks(tmp_path):
    """Qwen3-Omni: the part that thinks, in thinker_config and under thinker., is what transformers has as a model of its own; the part
    that speaks has experts too, which stay."""
    thinker = save_random("qwen3_omni_moe_thinker", VARIANTS["qwen3_omni_moe"][1], tmp_path / "thinker")
    config, tensors, whole = mdp.read_json(thinker / "config.json"), load_file(thinker / "model.safetensors"), tmp_path / "whole"
    speaks = {"talker.model.layers.0.mlp.experts.0.up_proj.weight": torch.ones(6, 2), "talker.model.layers.0.mlp.gate.weight": torch.ones(6, 2)}
    outer = {"model_type": "qwen3_omni_moe", "talker_config": {"text_config": {"num_experts": 6}}, "thinker_config": config}
    whole.mkdir()
    save_file({**{f"thinker.{name}": values for name, values in tensors.items()}, **speaks}, whole / "model.safetensors", metadata={"format": "pt"})
    (whole / "config.json").write_text(json.dumps(outer, indent=2), encoding="utf-8")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    mdp.succeed(3, "eval", "--model", whole, "--tokens", tokens, "--dump", tmp_path / "whole.h5", "--out", tmp_path / "whole.json")
    assert_dump_equals(tmp_path / "whole.h5", tokens, load(thinker))
    pruned, twin = prune(whole, tokens, 3, tmp_path / "out"), tmp_path / "twin"
    found, after = mdp.read_json(pruned / "config.json"), load_file(pruned / "model.safetensors")
    count = next(key for key in ("num_experts", "num_local_experts") if key in config["text_config"])
    assert found == {**outer, "thinker_config": {**config, "text_config": {**config["text_config"], count: 3}}}
    assert all(torch.equal(after.pop(name), values) for name, values in speaks.items())
    twin.mkdir()
    save_file({name.removeprefix("thinker."): values for name, values in after.items()}, twin / "model.safetensors", metadata={"format": "pt"})
    (twin / "config.json").write_text(json.dumps(found["thinker_config"]), encoding="utf-8")
    mdp.succeed(1, "eval", "--model", pruned, "--tokens", tokens, "--dump", tmp_path / "pruned.h5", "--out", tmp_path / "pruned.json")
    assert_dump_equals(tmp_path / "pruned.h5", tokens, load(twin))


def test_stacks_of_experts_are_told_by_shape_from_transposed_ones(tmp_path):
    """Qwen3-VL as it is published (columns are outputs) and as transformers 5 saves it; here twice d_ff is d_model, where only the
    down projections differ in shape."""
    settings = VARIANTS["qwen3_vl_moe"][1]
    settings = {**settings, "text_config": {**settings["text_config"], "moe_intermediate_size": 16}}
    saved, published = save_random("qwen3_vl_moe", settings, tmp_path / "saved"), tmp_path / "published"
    tensors = load_file(saved / "model.safetensors")
    turned = {name: values.transpose(1, 2).contiguous() if ".experts." in name else values for name, values in tensors.items()}
    published.mkdir()
    save_file(turned, published / "model.safetensors", metadata={"format": "pt"})
    (published / "config.json").write_bytes((saved / "config.json").read_bytes())
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    assert_same_logits(saved, tokens, tmp_path, 1)
    mdp.succeed(2, "eval", "--model", published, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    assert_dump_equals(tmp_path / "dump.h5", tokens, load(saved))
    ours, want = (load_file(prune(folder, tokens, 3, tmp_path / f"{folder.name}-out") / "model.safetensors") for folder in (published, saved))
    assert {name: (values.transpose(1, 2) if ".experts." in name else values).tolist() for name, values in ours.items()} == \
        {name: values.tolist() for name, values in want.items()}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "omni" not in name])
def test_family_equals_transformers_before_and_after_pruning(variant, tmp_path):
    original = save_random(*VARIANTS[variant], tmp_path / "original")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    before = assert_same_logits(original, tokens, tmp_path, 3)
    pruned = prune(original, tokens, 3, tmp_path / "out", "both")
    plan = mdp.read_json(tmp_path / "out" / "plan.json")
    kept = {layer["layer"]: [expert["from"][0] for expert in layer["experts"]] for layer in plan["layers"]}
    after = assert_same_logits(pruned, tokens, tmp_path, 1)
    with masked(before, kept) as model:
        assert_dump_equals(tmp_path / "hf.h5", tokens, model)
    shapes = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        stacked = ".experts.mlp." in name  # dbrx: rows of all experts under each other
        if len(parameter) == N_EXPERT or stacked:
            layer = int(re.search(r"(?:layers|blocks)\.(\d+)\.", name)[1])
            want = parameter.view(N_EXPERT, -1, parameter.shape[-1])[kept[layer]].flatten(0, 1) if stacked else parameter[kept[layer]]
            assert torch.equal(shapes[name], want), name
        else:
            assert torch.equal(shapes[name], parameter), name
    mdp.succeed(3, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(pruned)
