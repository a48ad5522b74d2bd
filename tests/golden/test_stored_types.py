"""Weights of few bits: read as their decoded values, kept bit for bit when experts go, in both containers.

Checkpoints are quantised here by ml_dtypes; the same checkpoint decoded to f32 by numpy must give the same bytes.
"""
import collections
import json
import re

import h5py
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import mdp
import quantise
from families import assert_dump_equals

SIZES = dict(vocab_size=64, hidden_size=144, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=136,
             max_position_embeddings=128, num_experts_per_tok=2)
KINDS = ["fp8", "fp8, stacked experts", "fp8, E8M0 scales, small blocks", "fp8, a scale for each row", "fp8, one scale, and one of inputs",
         "f16"]


def make(kind, tmp_path):
    """A random checkpoint in that kind of weights; 144 and 136 leave the last blocks of 128 short."""
    model_type = "mixtral" if "E8M0" in kind or "inputs" in kind else "qwen3_moe"
    extra = dict(num_local_experts=5) if model_type == "mixtral" else dict(num_experts=5, moe_intermediate_size=136, head_dim=36)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **SIZES, **extra))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    plain = tmp_path / "plain"
    (model.half() if kind == "f16" else model).save_pretrained(plain, save_original_format="stacked" not in kind)
    if kind == "f16":
        return plain
    if "row" in kind or "inputs" in kind:
        return quantise.wide_fp8(plain, tmp_path / "few-bits", "row" in kind)
    return quantise.fp8(plain, tmp_path / "few-bits", (32, 64) if "E8M0" in kind else (128, 128), "E8M0" in kind)


def write_tokens(path, vocabulary=64):
    rng = np.random.default_rng(11)
    return mdp.write_tokens(path, {"text": [rng.integers(0, vocabulary, n) for n in (1, 50, 23)]})


def logits(ranks, model, tokens, out, *words, stream="original"):
    mdp.succeed(ranks, "eval", "--model", model, "--tokens", tokens, "--dump", out, "--out", out.with_suffix(".json"), *words)
    with h5py.File(out) as dump:
        names = [name for name in dump if (name == "original") == (stream == "original")]
        return [dump[f"{names[0]}/text/{i}/logits"][...] for i in range(3)]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.dim() else tensor.reshape(1).view(torch.uint8).numpy()


def expected(original, plan):
    """{name: tensor} that dropping experts must give, from the original's tensors."""
    kept = {layer["layer"]: [expert["from"][0] for expert in layer["experts"]] for layer in plan["layers"]}
    result = {}
    for name, tensor in original.items():
        part = name.split(".")
        inside = part.index("experts") + 1 if "experts" in part else 0
        layer = int(part[2]) if part[:2] == ["model", "layers"] else -1
        if inside and part[inside].isdigit():
            if int(part[inside]) in kept[layer]:
                part[inside] = str(kept[layer].index(int(part[inside])))
                result[".".join(part)] = tensor
        elif inside or part[-2:] == ["gate", "weight"] or "router" in part:
            codes = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor  # FP8 tensors cannot be indexed
            result[name] = codes[kept[layer]].view(tensor.dtype)
        else:
            result[name] = tensor
    return result


def assert_bits(ours, want):
    assert ours.keys() == want.keys()
    for name, tensor in want.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert np.array_equal(bits(ours[name]), bits(tensor)), name


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_decoded_checkpoint(kind, tmp_path):
    stored, tokens = make(kind, tmp_path), write_tokens(tmp_path / "tokens.h5")
    decoded = quantise.decode(stored, tmp_path / "decoded")
    few, wide = logits(3, stored, tokens, tmp_path / "few.h5"), logits(1, decoded, tokens, tmp_path / "wide.h5")
    assert all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(few, wide))
    shown = [mdp.succeed(1, "inspect", folder, "--json").stdout for folder in (stored, decoded)]
    counts = [{line for line in text.splitlines() if "parameters" in line} for text in shown]
    assert len(counts[0]) == 2 and counts[0] == counts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_experts_keeps_codes_and_scales_bit_for_bit(kind, tmp_path):
    stored, tokens, out = make(kind, tmp_path), write_tokens(tmp_path / "tokens.h5"), tmp_path / "out"
    mdp.succeed(3, "run", "--model", stored, "--tokens", tokens, "--method", "reap", "--keep", 3, "--format", "both", "--out", out)
    plan, config = mdp.read_json(out / "plan.json"), mdp.read_json(stored / "config.json")
    ours = quantise.load(out / "hf")
    assert_bits(ours, expected(quantise.load(stored), plan))
    key = "num_experts" if "num_experts" in config else "num_local_experts"
    assert mdp.read_json(out / "hf" / "config.json") == {**config, key: 3}
    save_file(ours, tmp_path / "again.safetensors", metadata={"format": "pt"})  # the library's own order and header
    assert (tmp_path / "again.safetensors").read_bytes() == (out / "hf" / "model.safetensors").read_bytes()
    mdp.succeed(2, "export", "--model", out / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(out / "hf")
    for path in (out / "model.h5", out / "hf"):
        mdp.succeed(2, "verify", path)
    virtual = logits(2, stored, tokens, tmp_path / "virtual.h5", "--plan", out / "plan.json", stream="pruned")
    for path in (out / "model.h5", out / "hf"):
        written = logits(1, path, tokens, tmp_path / f"{path.name}-written.h5")
        assert all(np.array_equal(a, b) for a, b in zip(virtual, written)), path


def test_dropping_experts_keeps_mxfp4_bit_for_bit_and_loads_in_transformers(tmp_path):
    stored, tokens, out = mdp.GOLDEN / "gpt_oss_mxfp4", write_tokens(tmp_path / "tokens.h5"), tmp_path / "out"
    mdp.succeed(3, "run", "--model", stored, "--tokens", tokens, "--method", "reap", "--keep", 4, "--format", "both", "--out", out)
    ours, config = quantise.load(out / "hf"), mdp.read_json(stored / "config.json")
    assert_bits(ours, expected(quantise.load(stored), mdp.read_json(out / "plan.json")))
    assert mdp.read_json(out / "hf" / "config.json") == {**config, "num_local_experts": 4}
    save_file(ours, tmp_path / "again.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "again.safetensors").read_bytes() == (out / "hf" / "model.safetensors").read_bytes()
    mdp.succeed(1, "export", "--model", out / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(out / "hf")
    logits(2, out / "hf", tokens, tmp_path / "ours.h5")
    wide = transformers.AutoModelForCausalLM.from_pretrained(
        out / "hf", quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager")
    assert_dump_equals(tmp_path / "ours.h5", tokens, wide.float().eval())
    assert json.loads(mdp.succeed(1, "inspect", out / "hf", "--json").stdout)["parameters"] == wide.num_parameters()


def test_damaged_mxfp4_is_named(tmp_path):
    stored, tokens = mdp.GOLDEN / "gpt_oss_mxfp4", write_tokens(tmp_path / "tokens.h5")
    tensors, config, name = quantise.load(stored), mdp.read_json(stored / "config.json"), "model.layers.1.mlp.experts.down_proj_scales"
    wrong = [(rf"'{name}' is not in the checkpoint", None),
             (rf"'{name}' is stored as U8 \[5, 96, 2\]; expected for MXFP4 weights U8 \[6, 96, 2\]", tensors[name][:5])]
    for i, (sentence, changed) in enumerate(wrong):
        kept = {key: changed if key == name else tensor for key, tensor in tensors.items() if key != name or changed is not None}
        quantise.save(kept, config, tmp_path / f"bad{i}")
        mdp.refuse(1, 65, sentence, "eval", "--model", tmp_path / f"bad{i}", "--tokens", tokens, "--out", tmp_path / "never.json")


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_model_h5_holds_every_kept_tensor_as_bytes_that_h5py_reads(kind, tmp_path):
    stored, tokens, out = (mdp.GOLDEN / "gpt_oss_mxfp4" if kind == "mxfp4" else make(kind, tmp_path)), write_tokens(tmp_path / "tokens.h5"), \
        tmp_path / "out"
    mdp.succeed(2, "run", "--model", stored, "--tokens", tokens, "--method", "frequency", "--keep", 4, "--out", out)
    want, types = expected(quantise.load(stored), mdp.read_json(out / "plan.json")), collections.Counter()
    with h5py.File(out / "model.h5") as file:
        for name, tensor in want.items():
            stack = re.sub(r"experts\.\d+\.", "experts.", name)
            dataset = file[stack.replace(".", "/")]
            values = np.empty(dataset.shape, f"u{dataset.id.get_type().get_size()}")
            dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, values, dataset.id.get_type())
            if stack != name:
                values = values[int(re.search(r"experts\.(\d+)\.", name)[1])]
            assert np.array_equal(np.ascontiguousarray(values).reshape(-1).view(np.uint8), bits(tensor)), name
            types[dataset.attrs.get("stored_type", b"").decode()] += 1
        if kind == "fp8":
            stack = file["model/layers/1/mlp/experts/down_proj/weight"]
            assert stack.attrs["stored_type"].decode() == "F8_E4M3" and len(stack.attrs["xxh3_128"]) == 4
    assert len(types) >= 2


def test_a_pruned_expert_that_returns_0_keeps_its_place(tmp_path):
    stored, tokens, out = make("fp8", tmp_path), write_tokens(tmp_path / "tokens.h5"), tmp_path / "out"
    mdp.succeed(2, "run", "--model", stored, "--tokens", tokens, "--method", "reap", "--keep", 3, "--pruned-route", "zero",
                "--format", "safetensors", "--out", out)
    virtual = logits(2, stored, tokens, tmp_path / "virtual.h5", "--plan", out / "plan.json", stream="pruned")
    assert all(np.array_equal(a, b) for a, b in zip(virtual, logits(1, out / "hf", tokens, tmp_path / "written.h5")))


def test_damaged_scales_are_named(tmp_path):
    stored, tokens = make("fp8", tmp_path), write_tokens(tmp_path / "tokens.h5")
    tensors, config = quantise.load(stored), mdp.read_json(stored / "config.json")
    name = "model.layers.0.mlp.experts.1.up_proj.weight_scale_inv"

    def refuse(sentence, changed, settings=None):
        folder = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        quantise.save({key: tensor for key, tensor in {**tensors, **changed}.items() if tensor is not None},
                      {**config, "quantization_config": {**config["quantization_config"], **(settings or {})}}, folder)
        mdp.refuse(2, 65, sentence, "eval", "--model", folder, "--tokens", tokens, "--out", tmp_path / "never.json")

    refuse(rf"up_proj.weight' is stored as F8_E4M3, but its scales '{name}' are missing", {name: None})
    refuse(rf"scales '{name}' have shape \[1, 1\]; expected \[2, 2\], one for each block of 128 x 128", {name: tensors[name][:1, :1]})
    refuse(rf"scales '{name}' are stored as I32", {name: torch.ones(2, 2, dtype=torch.int32)})
    refuse(r"expected \[5, 3\], one for each block of 32 x 64", {}, {"weight_block_size": [32, 64]})
    refuse(r"'weight_block_size' must be two positive whole numbers", {}, {"weight_block_size": [128]})
    refuse(r"'fmt' is 'e5m2'; supported is 'e4m3'", {}, {"fmt": "e5m2"})
    refuse(r"scales '.*q_proj.weight_scale_inv' have shape \[2, 2\]; expected \[5, 5\], one for each block of 32 x 32", {},
           {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {
               "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]}}}})
    refuse(r"are quantised \(compressed-tensors, 'g': 4 bits, int\); supported are", {},
           {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}})
    refuse(r"are quantised \(quantization_config, quant_method modelopt\)", {}, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    refuse(r"lies among the experts", {"model.layers.0.mlp.experts.1.up_proj.weight": torch.zeros(136, 144)})
