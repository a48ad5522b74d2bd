"""Layers that keep different numbers of experts, as a folder that transformers loads: experts that are never chosen make up the
difference, and nothing that is computed changes.
"""
import json
import subprocess

import h5py
import numpy as np
import pytest
import torch

import mdp
import quantise
from families import SIZES, assert_dump_equals, assert_same_logits, load, masked, pruned_config, save_random, write_tokens

ROUTED = dict(**SIZES, num_experts_per_tok=2, moe_intermediate_size=24)
GROUPED = dict(**SIZES, n_routed_experts=12, n_group=3, topk_group=2, num_experts_per_tok=3, moe_intermediate_size=24, head_dim=16)
# What layers keep of their experts: in groups a multiple of their number, two or more each.
CASES = {
    "glm4_moe": ("glm4_moe", dict(**ROUTED, n_routed_experts=6, head_dim=12), {"1": 3, "2": 5}),
    "glm4_moe, groups": ("glm4_moe", dict(**GROUPED, first_k_dense_replace=0), {"0": 9, "1": 6, "2": 12}),
    "minimax_m2, bf16": ("minimax_m2", dict(**SIZES, num_local_experts=6, num_experts_per_tok=2, head_dim=16, rotary_dim=8),
                         {"0": 2, "1": 4, "2": 3}),
    "gpt_oss, mxfp4": (None, None, {"0": 3, "1": 5, "2": 4}),
    "glm4_moe, f16": ("glm4_moe", dict(**ROUTED, n_routed_experts=6, head_dim=12), {"1": 2, "2": 5}),
    "glm4_moe, fp8": ("glm4_moe", dict(**ROUTED, n_routed_experts=6, head_dim=12), {"1": 4, "2": 2}),
    "glm4_moe, fp8 with scales of inputs": ("glm4_moe", dict(**ROUTED, n_routed_experts=6, head_dim=12), {"1": 4, "2": 2}),
}


def make(case, tmp_path):
    model_type, settings, keep = CASES[case]
    folder = mdp.GOLDEN / "gpt_oss_mxfp4" if "mxfp4" in case else save_random(model_type, settings, tmp_path / "made")
    if case.endswith("f16"):
        kind = torch.bfloat16 if "bf16" in case else torch.float16
        tensors = {name: tensor.to(kind) for name, tensor in quantise.load(folder).items()}
        folder = quantise.save(tensors, mdp.read_json(folder / "config.json"), tmp_path / "half")
    if "inputs" in case:
        folder = quantise.wide_fp8(folder, tmp_path / "fp8", False)
    elif "fp8" in case:
        folder = quantise.fp8(folder, tmp_path / "fp8", (16, 32))
    (tmp_path / "keep.json").write_text(json.dumps(keep), encoding="utf-8")
    return folder


def prune(model, tokens, tmp_path, *words):
    return ["run", "--model", model, "--tokens", tokens, "--method", "reap", "--keep-file", tmp_path / "keep.json", "--format", "both",
            "--out", tmp_path / "out", *words]


def dump(ranks, model, tokens, out):
    mdp.succeed(ranks, "eval", "--model", model, "--tokens", tokens, "--dump", out, "--out", out.with_suffix(".json"))
    with h5py.File(out) as file:
        return [file[f"original/text/{i}/logits"][...] for i in range(3)]


@pytest.mark.parametrize("case", CASES)
def test_padded_folder_computes_what_model_h5_does(case, tmp_path):
    original, tokens = make(case, tmp_path), write_tokens(96, tmp_path / "tokens.h5")
    mdp.succeed(3, *prune(original, tokens, tmp_path, "--non-uniform", "pad"))
    native, padded = tmp_path / "out" / "model.h5", tmp_path / "out" / "hf"
    keep, config = CASES[case][2], mdp.read_json(original / "config.json")
    key = next(key for key in ("n_routed_experts", "num_local_experts") if key in config)
    assert mdp.read_json(padded / "config.json") == pruned_config(config, **{key: max(keep.values())})
    assert all(np.array_equal(a, b) for a, b in zip(dump(1, native, tokens, tmp_path / "native.h5"),
                                                    dump(2, padded, tokens, tmp_path / "padded.h5")))
    n_bias = 0
    for name, tensor in quantise.load(padded).items():
        if name.endswith("input_scale"):
            assert tensor > 0, name  # loaders divide by it
        if name.endswith(("e_score_correction_bias", "router.bias")):
            n_bias += 1
            values, n_group = tensor.float().numpy(), config.get("n_group", 1)
            n_kept = keep[name.split(".")[2]] // n_group
            assert np.isfinite(values).all()
            in_groups = values.reshape(n_group, -1) < (-6e4 if tensor.dtype == torch.float16 else -1e29)
            assert not in_groups[:, :n_kept].any() and in_groups[:, n_kept:].all(), name
    assert n_bias == len(keep)
    mdp.succeed(2, "export", "--model", native, "--non-uniform", "pad", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(padded)
    mdp.succeed(2, "verify", padded)


@pytest.mark.parametrize("case", ["glm4_moe", "glm4_moe, groups", "glm4_moe, f16"])
def test_transformers_computes_the_padded_folder_as_the_original_without_the_removed_experts(case, tmp_path):
    original, tokens = make(case, tmp_path), write_tokens(96, tmp_path / "tokens.h5")
    mdp.succeed(2, *prune(original, tokens, tmp_path, "--non-uniform", "pad"))
    assert_same_logits(tmp_path / "out" / "hf", tokens, tmp_path, 1)
    kept = {layer["layer"]: [expert["from"][0] for expert in layer["experts"]]
            for layer in mdp.read_json(tmp_path / "out" / "plan.json")["layers"]}
    with masked(load(original), kept) as model, torch.no_grad():
        assert_dump_equals(tmp_path / "hf.h5", tokens, model)


def test_added_experts_count_in_the_space_that_is_asked_for(tmp_path):
    library = tmp_path / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, mdp.TESTS / "full_disk.c", "-ldl"], check=True)
    original, tokens = make("glm4_moe", tmp_path), write_tokens(96, tmp_path / "tokens.h5")
    mdp.succeed(2, *prune(original, tokens, tmp_path, "--non-uniform", "pad"))

    def apply_words(n_free, out):
        return (["apply", "--model", original, "--plan", tmp_path / "out" / "plan.json", "--non-uniform", "pad", "--format", "safetensors",
                 "--out", out], {"within": ["env", f"LD_PRELOAD={library}", f"FREE_BYTES={n_free}"]})

    words, how = apply_words(10**9, tmp_path / "first")
    mdp.succeed(2, *words, **how)
    need = sum(path.stat().st_size for path in (tmp_path / "first" / "hf").iterdir())
    words, how = apply_words(need - 1, tmp_path / "short")
    mdp.refuse(2, 73, r"the output needs .* the file system of .* has .* free", *words, **how)
    assert not (tmp_path / "short").exists()
    words, how = apply_words(need, tmp_path / "enough")
    mdp.succeed(2, *words, **how)
    assert mdp.digests(tmp_path / "enough" / "hf") == mdp.digests(tmp_path / "out" / "hf")


def test_padding_is_refused_where_it_would_change_results(tmp_path):
    """A softmax over all experts comes before the bias of ERNIE; Mixtral has none."""
    settings = {"ernie4_5_moe": dict(**SIZES, moe_num_experts=6, moe_k=2, moe_intermediate_size=24),
                "mixtral": dict(**SIZES, num_local_experts=6, num_experts_per_tok=2)}
    for model_type in settings:
        work = tmp_path / model_type
        work.mkdir()
        original, tokens = save_random(model_type, settings[model_type], work / "made"), write_tokens(96, work / "tokens.h5")
        keep = {"ernie4_5_moe": {"1": 3, "2": 4}, "mixtral": {"0": 3, "1": 4, "2": 4}}[model_type]
        (work / "keep.json").write_text(json.dumps(keep), encoding="utf-8")
        mdp.refuse(2, 2, rf"--non-uniform pad: model_type '{model_type}' chooses experts by a softmax over all",
                   *prune(original, tokens, work, "--non-uniform", "pad"))
        assert not (work / "out").exists()  # nothing was observed for it
    mdp.succeed(2, *["hdf5" if word == "both" else word for word in prune(original, tokens, work)])
    refused = ["apply", "--model", original, "--plan", work / "out" / "plan.json", "--format", "safetensors", "--out", work / "no"]
    mdp.refuse(2, 2, "--non-uniform pad: model_type 'mixtral'", *refused, "--non-uniform", "pad")
    mdp.succeed(2, "apply", "--model", original, "--plan", work / "out" / "plan.json", "--out", work / "native")
    mdp.refuse(2, 65, r"layers differ.*--non-uniform pad", "export", "--model", work / "native" / "model.h5", "--out", work / "hf")


@pytest.mark.parametrize("model_type, settings, key", [
    ("qwen3_moe", dict(**SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=12, decoder_sparse_step=1), "num_experts"),
    ("glm4_moe", dict(**ROUTED, n_routed_experts=6, head_dim=12), "n_routed_experts"),
])
def test_config_lists_the_experts_of_every_layer(model_type, settings, key, tmp_path):
    """transformers reads the numbers; the folder computes what model.h5 does; pruned again to equal numbers it lists nothing."""
    from transformers import AutoConfig
    original, tokens = save_random(model_type, settings, tmp_path / "made"), write_tokens(96, tmp_path / "tokens.h5")
    key = key if key in mdp.read_json(original / "config.json") else "num_local_experts"
    keep = {"1": 3, "2": 5} if model_type == "glm4_moe" else {"0": 4, "1": 3, "2": 5}
    (tmp_path / "keep.json").write_text(json.dumps(keep), encoding="utf-8")
    mdp.succeed(3, *prune(original, tokens, tmp_path, "--non-uniform", "per-layer-config"))
    native, folder = tmp_path / "out" / "model.h5", tmp_path / "out" / "hf"
    config = mdp.read_json(folder / "config.json")
    listed = {layer: {key: n} for layer, n in keep.items() if n != 5}
    assert config == pruned_config(mdp.read_json(original / "config.json"), **{key: 5}, per_layer_config=listed)
    theirs = AutoConfig.from_pretrained(folder).per_layer_config
    assert {layer: getattr(theirs[int(layer)], key) for layer in keep} == keep
    assert all(np.array_equal(a, b) for a, b in zip(dump(1, native, tokens, tmp_path / "native.h5"), dump(2, folder, tokens, tmp_path / "listed.h5")))
    mdp.succeed(2, "export", "--model", native, "--non-uniform", "per-layer-config", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(folder)
    mdp.succeed(1, "verify", folder)
    mdp.succeed(1, "run", "--model", folder, "--tokens", tokens, "--method", "reap", "--keep", 3, "--format", "safetensors", "--out", tmp_path / "again")
    assert mdp.read_json(tmp_path / "again" / "hf" / "config.json") == {**config, key: 3, "per_layer_config": {}}
    load(tmp_path / "again" / "hf")


def test_config_that_has_the_number_in_an_object_cannot_list_layers(tmp_path):
    settings = dict(d_model=32, n_heads=4, n_layers=3, max_seq_len=256, vocab_size=96, attn_config=dict(kv_n_heads=2, rope_theta=5000.0),
                    rope_parameters=dict(rope_type="default", rope_theta=5000.0),
                    ffn_config=dict(ffn_hidden_size=40, moe_num_experts=6, moe_top_k=2))
    original = save_random("dbrx", settings, tmp_path / "made")
    mdp.succeed(1, "plan", "--model", original, "--method", "random", "--budget", "trapezoid", "--keep", 4, "--out", tmp_path / "plan.json")
    mdp.refuse(2, 2, r"per-layer-config: .*model_type 'dbrx'.*an object within it \('ffn_config\.moe_num_experts'\)", "apply", "--model", original,
               "--plan", tmp_path / "plan.json", "--format", "safetensors", "--non-uniform", "per-layer-config", "--out", tmp_path / "out")


@pytest.mark.parametrize("listed, sentence", [
    ({"3": {"num_experts": 4}}, "the layers are 0 to 2"),
    ({"1": {"num_experts": 0}}, "1 or more"),
    ({"1": {"sliding_window": 4}}, "only 'num_experts' may differ"),
    ({"1": 4}, "expected an object"),
    ([4], "expected an object"),
])
def test_other_lists_of_layers_are_refused(listed, sentence, tmp_path):
    folder = save_random("qwen3_moe", dict(**SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=12), tmp_path / "made")
    config = mdp.read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "per_layer_config": listed}), encoding="utf-8")
    mdp.refuse(1, 65, sentence, "inspect", folder)
