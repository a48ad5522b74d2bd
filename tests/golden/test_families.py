"""Every family, with the settings that its configuration class knows, computes as in transformers, and loads there when pruned.

The checkpoints are made here by transformers, all parameters at random (norms and biases too), and saved by it.
"""
import json

import h5py
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mdp
from families import SIZES, assert_same_logits, prune, save_random, write_tokens

QWEN = dict(**SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
VARIANTS = {
    "mixtral": ("mixtral", dict(**SIZES, num_local_experts=6, num_experts_per_tok=2)),
    "qwen2_moe": ("qwen2_moe", dict(**QWEN, shared_expert_intermediate_size=56, norm_topk_prob=True)),
    "qwen2_moe, every second layer dense": ("qwen2_moe", dict(**QWEN, shared_expert_intermediate_size=56, decoder_sparse_step=2)),
    "qwen2_moe, window in layer 0 alone, no biases": ("qwen2_moe", dict(
        **QWEN, shared_expert_intermediate_size=56, use_sliding_window=True, sliding_window=5, max_window_layers=2, qkv_bias=False)),
    "qwen2_moe, windows by layer_types": ("qwen2_moe", dict(
        **QWEN, shared_expert_intermediate_size=56, use_sliding_window=True, sliding_window=5,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"])),
    "qwen3_moe": ("qwen3_moe", dict(**QWEN, head_dim=12, norm_topk_prob=True)),
    "qwen3_moe, biases, window, dense layer, tied": ("qwen3_moe", dict(
        **QWEN, attention_bias=True, use_sliding_window=True, sliding_window=5, mlp_only_layers=[1], tie_word_embeddings=True)),
    "olmoe": ("olmoe", dict(**SIZES, num_experts=6, num_experts_per_tok=2)),
    "olmoe, biases, clamped, normalised": ("olmoe", dict(
        **SIZES, num_experts=6, num_experts_per_tok=2, attention_bias=True, clip_qkv=0.8, norm_topk_prob=True)),
}
GOLDEN = ["qwen2_moe", "qwen3_moe", "qwen3_moe_bf16", "olmoe", "granitemoe", "phimoe", "gpt_oss"]


def make(variant, folder):
    return save_random(*VARIANTS[variant], folder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_family_equals_transformers_before_and_after_pruning(variant, tmp_path):
    original = make(variant, tmp_path / "original")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    before = assert_same_logits(original, tokens, tmp_path, 3)
    after = assert_same_logits(prune(original, tokens, 3, tmp_path / "out"), tokens, tmp_path, 1)
    shapes = dict(after.named_parameters())
    n_sliced = 0
    for name, parameter in before.named_parameters():
        sliced = ".experts." in name or name.endswith("mlp.gate.weight")
        n_sliced += sliced
        assert shapes[name].shape == ((3, *parameter.shape[1:]) if sliced else parameter.shape), name
        assert sliced or torch.equal(shapes[name], parameter), name
    assert n_sliced > 0


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_checkpoint_pruned_to_half_loads_in_transformers(name, tmp_path):
    config = mdp.read_json(mdp.GOLDEN / name / "config.json")
    key = "num_experts" if "num_experts" in config else "num_local_experts"
    tokens = write_tokens(config["vocab_size"], tmp_path / "tokens.h5")
    pruned = prune(mdp.GOLDEN / name, tokens, config[key] // 2, tmp_path / "out", "both")
    assert mdp.read_json(pruned / "config.json") == {**config, key: config[key] // 2}
    assert_same_logits(pruned, tokens, tmp_path, 2)
    mdp.succeed(3, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(pruned)


def fuse(folder, out):
    """The same checkpoint with the experts of a layer stacked, as transformers holds them in memory."""
    tensors, stacks = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if ".experts." in name]:
        prefix, rest = name.split(".experts.")
        expert, projection, _ = rest.split(".")
        stacks.setdefault(prefix, {}).setdefault(projection, {})[int(expert)] = tensors.pop(name)
    for prefix, parts in stacks.items():
        gate, up, down = (torch.stack([parts[part][e] for e in sorted(parts[part])])
                          for part in ("gate_proj", "up_proj", "down_proj"))
        tensors[f"{prefix}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        tensors[f"{prefix}.experts.down_proj"] = down
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


@pytest.mark.parametrize("name", ["qwen2_moe", "olmoe"])
def test_stacked_experts_give_the_same_bytes(name, tmp_path):
    """Evaluation, and the pruned checkpoint once its experts are stacked, are those of the checkpoint with separate experts."""
    fused = fuse(mdp.GOLDEN / name, tmp_path / "fused")
    tokens = write_tokens(512, tmp_path / "tokens.h5")
    pruned = {}
    for which, folder in (("separate", mdp.GOLDEN / name), ("fused", fused)):
        mdp.succeed(2, "eval", "--model", folder, "--tokens", tokens, "--dump", tmp_path / f"{which}.h5",
                    "--out", tmp_path / f"{which}.json")
        pruned[which] = prune(folder, tokens, 5, tmp_path / f"{which}-out")
    with h5py.File(tmp_path / "separate.h5") as one, h5py.File(tmp_path / "fused.h5") as two:
        for i in range(3):
            assert np.array_equal(one[f"original/text/{i}/logits"][...], two[f"original/text/{i}/logits"][...])
    want, ours = (load_file(folder / "model.safetensors") for folder in (fuse(pruned["separate"], tmp_path / "want"), pruned["fused"]))
    assert want.keys() == ours.keys()
    assert all(torch.equal(want[key], ours[key]) for key in want)
    assert_same_logits(pruned["fused"], tokens, tmp_path, 1)


def test_absent_keys_take_the_defaults_of_their_class(tmp_path):
    """config.json with every key taken out that is its class's default computes the same."""
    original = make("qwen2_moe", tmp_path / "original")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    config = mdp.read_json(original / "config.json")
    defaults = transformers.AutoConfig.for_model("qwen2_moe").to_dict()
    short = {key: value for key, value in config.items() if key == "model_type" or defaults.get(key, None) != value}
    assert not {"hidden_act", "rms_norm_eps", "qkv_bias", "rope_parameters", "use_sliding_window"} & short.keys()
    (original / "config.json").write_text(json.dumps(short), encoding="utf-8")
    assert_same_logits(original, tokens, tmp_path, 2)


@pytest.mark.parametrize("name", ["qwen2_moe", "olmoe"])
def test_logits_are_the_same_bytes_for_any_ranks_threads_and_batches(name, tmp_path):
    rng = np.random.default_rng(9)
    lengths = [1, 700, 33, *[3300] * 5, 900, 2]  # two batches of whole blocks, the second short
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"text": [rng.integers(0, 512, n) for n in lengths]})
    for ranks, words in ((1, ()), (3, ("--threads", 2, "--batch-tokens", 16384))):
        mdp.succeed(ranks, "eval", "--model", mdp.GOLDEN / name, "--tokens", tokens, "--dump", tmp_path / f"{ranks}.h5",
                    "--out", tmp_path / f"{ranks}.json", *words)
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "3.h5") as three:
        for i in range(len(lengths)):
            assert np.array_equal(one[f"original/text/{i}/logits"][...], three[f"original/text/{i}/logits"][...]), i
