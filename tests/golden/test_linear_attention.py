"""Families with linear attention (the gated delta rule): the same logits as transformers before and after pruning, the same bytes on
any ranks and threads.
"""
import json
import re

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mdp
from families import SIZES, assert_dump_equals, assert_same_logits, load, masked, prune, save_random

LINEAR = dict(linear_num_key_heads=2, linear_key_head_dim=12, linear_num_value_heads=4, linear_value_head_dim=18, head_dim=16,
              num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=20)
VARIANTS = {
    "qwen3_next": ("qwen3_next", dict(**{**SIZES, "num_hidden_layers": 4}, **LINEAR,
                                      layer_types=["linear_attention", "full_attention"] * 2)),
    "qwen3_next, one dense layer, biases, half rotary, unnormalised, longer kernel": ("qwen3_next", dict(
        **SIZES, **{**LINEAR, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 5}, attention_bias=True, norm_topk_prob=False,
        mlp_only_layers=[1], layer_types=["full_attention", "linear_attention", "linear_attention"], partial_rotary_factor=0.5)),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", dict(
        **SIZES, **LINEAR, layer_types=["linear_attention", "full_attention", "linear_attention"])),
    "qwen3_5_moe_text, tied, six values to a key": ("qwen3_5_moe_text", dict(
        **SIZES, **{**LINEAR, "linear_num_value_heads": 6, "linear_num_key_heads": 1}, tie_word_embeddings=True,
        layer_types=["linear_attention", "linear_attention", "full_attention"])),
    # compared through its text part: see below
    "qwen3_5_moe, with images": ("qwen3_5_moe", dict(
        **SIZES, **LINEAR, layer_types=["linear_attention", "full_attention", "linear_attention"])),
}


def make(variant, folder):
    return save_random(*VARIANTS[variant], folder)


def write_tokens(path):
    """Sequences of less than a chunk of 64 tokens, of one, and of several with a rest."""
    rng = np.random.default_rng(11)
    return mdp.write_tokens(path, {"text": [rng.integers(0, 96, n) for n in (1, 150, 64, 23)]})


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "images" not in name])
def test_family_equals_transformers_before_and_after_pruning(variant, tmp_path):
    original, tokens = make(variant, tmp_path / "original"), write_tokens(tmp_path / "tokens.h5")
    before = assert_same_logits(original, tokens, tmp_path, 3)
    pruned = prune(original, tokens, 3, tmp_path / "out", "both")
    plan = mdp.read_json(tmp_path / "out" / "plan.json")
    kept = {layer["layer"]: [expert["from"][0] for expert in layer["experts"]] for layer in plan["layers"]}
    after = assert_same_logits(pruned, tokens, tmp_path, 1)
    with masked(before, kept):
        assert_dump_equals(tmp_path / "hf.h5", tokens, before)
    smaller = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        routed = re.search(r"layers\.(\d+)\.mlp\.(gate\.weight|experts\.)", name)
        assert torch.equal(smaller[name], parameter[kept[int(routed[1])]] if routed else parameter), name
    mdp.succeed(2, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(pruned)


def test_ranks_and_threads_do_not_show(tmp_path):
    original, tokens = make("qwen3_next", tmp_path / "original"), write_tokens(tmp_path / "tokens.h5")
    logits = []
    for ranks, threads in ((1, 1), (1, 3), (3, 2)):
        out = tmp_path / f"{ranks}-{threads}.h5"
        mdp.succeed(ranks, "eval", "--model", original, "--tokens", tokens, "--threads", threads, "--dump", out,
                    "--out", out.with_suffix(".json"))
        with h5py.File(out) as file:
            logits.append([file[f"original/text/{i}/logits"][...].tobytes() for i in range(4)])
    assert logits[0] == logits[1] == logits[2]


def test_layers_that_predict_further_tokens_have_names_of_their_own(tmp_path):
    """As public checkpoints have them, under mtp.; transformers ignores them."""
    made, tokens = make("qwen3_next", tmp_path / "made"), write_tokens(tmp_path / "tokens.h5")
    tensors, folder = load_file(made / "model.safetensors"), tmp_path / "original"
    tensors |= {name.replace("model.layers.1.", "mtp.layers.0."): values + 1 for name, values in tensors.items() if ".layers.1." in name}
    tensors |= {"mtp.fc.weight": torch.ones(32, 64), "mtp.norm.weight": torch.ones(32)}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in mdp.read_json(made / "config.json").items() if key != "layer_types"}
    config["full_attention_interval"] = 2  # as public files say which layers have which attention
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    dropped = prune(folder, tokens, 3, tmp_path / "dropped")
    count = next(key for key in ("num_experts", "num_local_experts") if key in config)
    assert mdp.read_json(dropped / "config.json") == {**config, count: 3, "num_nextn_predict_layers": 0}
    assert not any(name.startswith("mtp.") for name in load_file(dropped / "model.safetensors"))
    mdp.succeed(2, "apply", "--model", folder, "--plan", tmp_path / "dropped" / "plan.json", "--mtp", "prune", "--format", "safetensors",
                "--out", tmp_path / "pruned")
    assert mdp.read_json(tmp_path / "pruned" / "hf" / "config.json") == {**config, count: 3}
    found = load_file(tmp_path / "pruned" / "hf" / "model.safetensors")
    rows = tensors["mtp.layers.0.mlp.gate.weight"]
    kept = [int((rows == row).all(1).nonzero()) for row in found["mtp.layers.0.mlp.gate.weight"]]
    assert len(kept) == 3 and kept == sorted(kept)
    for number, expert in enumerate(kept):
        for part in ("gate", "up", "down"):
            name = "mtp.layers.0.mlp.experts.{}." + part + "_proj.weight"
            assert torch.equal(found[name.format(number)], tensors[name.format(expert)])
    assert {name for name in tensors if name.startswith("mtp.") and ".experts." not in name} | \
        {f"mtp.layers.0.mlp.experts.{e}.{part}_proj.weight" for e in range(3) for part in ("gate", "up", "down")} == \
        {name for name in found if name.startswith("mtp.")}
    assert_same_logits(tmp_path / "pruned" / "hf", tokens, tmp_path, 1)


def test_text_part_of_a_larger_model_is_pruned_like_the_text_model(tmp_path):
    """Qwen3.5 with images: keys in text_config, tensors under model.language_model., and what else there is stays."""
    flat, tokens = make("qwen3_5_moe_text", tmp_path / "flat"), write_tokens(tmp_path / "tokens.h5")
    config, tensors = mdp.read_json(flat / "config.json"), load_file(flat / "model.safetensors")
    nested = tmp_path / "nested"
    nested.mkdir()
    whole = {"model_type": "qwen3_5_moe", "text_config": config, "vision_config": {"num_experts": 77}}
    (nested / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    names = {name: re.sub(r"^model\.", "model.language_model.", name) for name in tensors}
    save_file({**{names[name]: tensors[name] for name in names}, "model.visual.weight": torch.ones(6, 2)}, nested / "model.safetensors",
              metadata={"format": "pt"})
    found = {folder.name: prune(folder, tokens, 3, tmp_path / f"{folder.name}-out") for folder in (flat, nested)}
    assert mdp.read_json(found["nested"] / "config.json") == {**whole, "text_config": mdp.read_json(found["flat"] / "config.json")}
    want, have = (load_file(found[kind] / "model.safetensors") for kind in ("flat", "nested"))
    assert torch.equal(have.pop("model.visual.weight"), torch.ones(6, 2))
    assert {re.sub(r"^model\.language_model\.", "model.", name): tensor.tolist() for name, tensor in have.items()} == \
        {name: tensor.tolist() for name, tensor in want.items()}


def test_heads_that_cannot_share_keys_are_refused(tmp_path):
    original, tokens = make("qwen3_next", tmp_path / "original"), write_tokens(tmp_path / "tokens.h5")
    config = mdp.read_json(original / "config.json")
    (original / "config.json").write_text(json.dumps({**config, "linear_num_value_heads": 3}), encoding="utf-8")
    mdp.refuse(2, 65, r"'linear_num_value_heads' is 3, which is not a multiple of 'linear_num_key_heads' 2", "eval", "--model", original,
               "--tokens", tokens, "--out", tmp_path / "eval.json")
    (original / "config.json").write_text(json.dumps({**config, "linear_conv_kernel_dim": 3}), encoding="utf-8")
    mdp.refuse(2, 65, r"layer 0: convolution .*conv1d.weight' has shape \[120, 1, 4\], config.json says \[120, 1, 3\]", "eval",
               "--model", original, "--tokens", tokens, "--out", tmp_path / "eval.json")
