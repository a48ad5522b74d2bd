"""export --type: a checkpoint in another type is what torch's casts and transformers' dequantisation make of it.

Perplexities of the results say what a type keeps: f32 holds every stored value, bf16 those of MXFP4, but not those of FP8 times a scale.
"""
import json
import re

import h5py
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

import mdp
import quantise

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
DEEPSEEK = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


def export(ranks, model, kind, out, *more):
    mdp.succeed(ranks, "export", "--model", model, "--type", kind, "--out", out, *more)
    return quantise.load(out) if out.is_dir() else out


def config_of(folder):
    return mdp.read_json(folder / "config.json")


def assert_equal(ours, want):
    assert ours.keys() == want.keys()
    for name, tensor in want.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (ours[name], tensor))
        assert torch.equal(a, b), (name, ours[name].float() - tensor.float())


def perplexity(model, tokens, out):
    mdp.succeed(2, "eval", "--model", model, "--tokens", tokens, "--out", out)
    return mdp.read_json(out)["streams"][0]


@pytest.fixture
def tokens(tmp_path):
    rng = np.random.default_rng(5)
    return mdp.write_tokens(tmp_path / "tokens.h5", {"text": [rng.integers(0, 512, n) for n in (1, 60, 40)]})


def linear(name):
    """What DeepSeek-V3 has in FP8, and what the other families here have in its place."""
    return name.endswith("_proj.weight") or re.search(r"\.w[123]\.weight$|_proj_with_mqa\.weight$", name)


def fp8_of(tensors):
    """The same tensors with linear layers in FP8, by torch's cast."""
    result = {}
    for name, tensor in tensors.items():
        if not linear(name):
            result[name] = tensor if name.endswith("correction_bias") else tensor.bfloat16()
            continue
        rows, columns = quantise.blockwise(tensor.shape, (128, 128))
        largest = np.zeros((rows.max() + 1, columns.max() + 1), np.float32)
        np.maximum.at(largest, (rows, columns), tensor.float().abs().numpy())
        scale = torch.from_numpy(largest) / 448
        result[name] = (tensor.float() / scale[torch.from_numpy(rows), torch.from_numpy(columns)]).to(torch.float8_e4m3fn)
        result[f"{name}_scale_inv"] = scale
    return result


# ---- one type for another


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("model", ["mixtral_bf16", "mixtral", "deepseek_v3", "ernie4_5_moe"])
def test_every_value_is_rounded_once(model, kind, tmp_path):
    source = mdp.GOLDEN / model
    tensors, config = quantise.load(source), config_of(source)
    ours = export(2, source, kind, tmp_path / "out")

    def stays(name):  # as transformers keeps it
        return "correction_bias" in name or (model == "ernie4_5_moe" and name.endswith("mlp.gate.weight"))
    assert_equal(ours, {name: tensor if stays(name) else tensor.to(DTYPES[kind]) for name, tensor in tensors.items()})
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    assert config_of(tmp_path / "out") == {**config, key: NAMES[kind]}
    save_file(ours, tmp_path / "again.safetensors", metadata={"format": "pt"})  # the library's own order and header
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    mdp.succeed(2, "verify", tmp_path / "out")
    mdp.succeed(2, "verify", tmp_path / "out", "--model", source)


def test_transformers_keeps_in_f32_what_stays_f32(tmp_path):
    for name, pattern in (("deepseek_v3", "e_score_correction_bias"), ("ernie4_5_moe", "gate.weight")):
        kept = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(mdp.GOLDEN / name))._keep_in_fp32_modules_strict
        assert pattern in kept, kept


def test_what_a_checkpoint_itself_keeps_in_f32_stays_so(tmp_path):
    source = mdp.GOLDEN / "mixtral_bf16"
    tensors, gate = quantise.load(source), "model.layers.0.block_sparse_moe.gate.weight"
    quantise.save({**tensors, gate: tensors[gate].float(), "steps": torch.arange(3)}, config_of(source), tmp_path / "model")
    ours = export(1, tmp_path / "model", "f16", tmp_path / "out")
    assert {name for name, tensor in ours.items() if tensor.dtype != torch.float16} == {gate, "steps"}
    assert torch.equal(ours[gate], tensors[gate].float()) and torch.equal(ours["steps"], torch.arange(3))


def test_f32_gives_the_perplexity_of_bf16_to_the_bit(tokens, tmp_path):
    source = mdp.GOLDEN / "mixtral_bf16"
    export(3, source, "f32", tmp_path / "wide")
    assert perplexity(source, tokens, tmp_path / "a.json") == perplexity(tmp_path / "wide", tokens, tmp_path / "b.json")


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_a_source_of_the_wanted_type_is_copied(kind, tmp_path):
    source = mdp.GOLDEN / ("mixtral_bf16" if kind == "bf16" else "deepseek_v3_fp8")
    export(2, source, kind, tmp_path / "typed")
    mdp.succeed(1, "export", "--model", source, "--out", tmp_path / "plain")
    assert mdp.digests(tmp_path / "typed") == mdp.digests(tmp_path / "plain")


def test_types_of_all_parts_of_a_configuration_change(tmp_path):
    source = mdp.GOLDEN / "mixtral_bf16"
    config = {**{key: value for key, value in config_of(source).items() if key != "torch_dtype"}, "dtype": "bfloat16",
              "vision_config": {"dtype": "bfloat16", "depth": 3}}
    quantise.save(quantise.load(source), config, tmp_path / "model")
    export(1, tmp_path / "model", "f32", tmp_path / "out")
    assert config_of(tmp_path / "out") == {**config, "dtype": "float32", "vision_config": {"dtype": "float32", "depth": 3}}
    del config["dtype"], config["vision_config"]
    quantise.save(quantise.load(source), config, tmp_path / "silent")
    export(1, tmp_path / "silent", "f32", tmp_path / "said")
    assert config_of(tmp_path / "said") == {**config, "torch_dtype": "float32"}


# ---- codes to values


@pytest.mark.parametrize("how", ["usual", "E8M0 scales, small blocks", "by row", "of the whole"])
def test_fp8_is_decoded_and_its_settings_go(how, tokens, tmp_path):
    if how == "usual":
        source = mdp.GOLDEN / "deepseek_v3_fp8"
    else:
        plain = mdp.GOLDEN / "qwen3_moe_bf16"
        source = quantise.fp8(plain, tmp_path / "few", (32, 64), True) if "E8M0" in how else quantise.wide_fp8(plain, tmp_path / "few", how == "by row")
    few = quantise.load(source)
    decoded, config = quantise.decoded(few, config_of(source))
    decoded = {name: tensor for name, tensor in decoded.items() if not name.endswith("input_scale")}
    for kind in ("bf16", "f32"):
        ours = export(3, source, kind, tmp_path / kind)
        assert_equal(ours, {name: tensor if "correction_bias" in name else tensor.to(DTYPES[kind]) for name, tensor in decoded.items()})
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        assert config_of(tmp_path / kind) == {**config, key: NAMES[kind]}
    original = perplexity(source, tokens, tmp_path / "original.json")
    assert original == perplexity(tmp_path / "f32", tokens, tmp_path / "f32.json")
    rounded = perplexity(tmp_path / "bf16", tokens, tmp_path / "bf16.json")
    assert rounded["perplexity"]["total"] == pytest.approx(original["perplexity"]["total"], rel=0.01)
    exact = "E8M0" in how  # 4 bits of mantissa times a power of two
    assert (rounded == original) == exact


def test_mxfp4_is_what_transformers_makes_of_it(tokens, tmp_path):
    source = mdp.GOLDEN / "gpt_oss_mxfp4"
    wide = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.bfloat16)
    ours = export(2, source, "bf16", tmp_path / "out")
    assert_equal(ours, {name: tensor.to(torch.bfloat16) for name, tensor in wide.state_dict().items()})
    assert "quantization_config" not in config_of(tmp_path / "out")
    assert perplexity(source, tokens, tmp_path / "a.json") == perplexity(tmp_path / "out", tokens, tmp_path / "b.json")
    loaded, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded.dtype == torch.bfloat16 and not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# ---- values to FP8


@pytest.mark.parametrize("model", ["deepseek_v3", "mixtral_bf16", "qwen3_moe_bf16"])
def test_fp8_is_torchs_cast_with_deepseeks_keys(model, tokens, tmp_path):
    source = mdp.GOLDEN / model
    config = config_of(source)
    ours = export(2, source, "fp8", tmp_path / "few")
    assert_equal(ours, fp8_of(quantise.load(source)))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    assert config_of(tmp_path / "few") == {**config, key: "bfloat16", "quantization_config": DEEPSEEK}
    mdp.succeed(2, "verify", tmp_path / "few", "--model", source)
    quantise.decode(tmp_path / "few", tmp_path / "wide")
    assert perplexity(tmp_path / "few", tokens, tmp_path / "a.json") == perplexity(tmp_path / "wide", tokens, tmp_path / "b.json")


def test_transformers_decodes_fp8_as_we_do(tmp_path):
    """Sizes are whole blocks: transformers 5.23 does not read short ones. (Loading whole models of FP8 there takes accelerate.)"""
    config = transformers.Qwen3MoeConfig(vocab_size=64, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
                                         intermediate_size=256, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2, max_position_embeddings=64)
    torch.manual_seed(2)
    transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path / "model", save_original_format=True)
    few = export(2, tmp_path / "model", "fp8", tmp_path / "few")
    ours = export(1, tmp_path / "few", "bf16", tmp_path / "again")
    theirs = Fp8Dequantize(None)
    codes = [name for name in few if few[name].dtype == torch.float8_e4m3fn]
    assert len(codes) == 2 * (4 + 4 * 3)
    assert_equal({name: ours[name] for name in codes},
                 {name: theirs._dequantize_one(few[name], few[f"{name}_scale_inv"], torch.bfloat16) for name in codes})


def test_layers_that_predict_further_tokens_are_changed_like_the_others(tmp_path):
    """Without being computed: by what the last layer's tensors of the same name are."""
    source = mdp.GOLDEN / "deepseek_v3"
    tensors, config = quantise.load(source), {**config_of(source), "num_nextn_predict_layers": 1}
    last = config["num_hidden_layers"] - 1
    for name in [name for name in tensors if name.startswith(f"model.layers.{last}.")]:
        tensors[name.replace(f"layers.{last}.", f"layers.{last + 1}.")] = tensors[name].clone()
    joined = f"model.layers.{last + 1}.eh_proj.weight"
    tensors[joined] = torch.randn(config["hidden_size"], 2 * config["hidden_size"])
    few = export(2, quantise.save(tensors, config, tmp_path / "model"), "fp8", tmp_path / "few")
    want = fp8_of({name: tensor for name, tensor in tensors.items() if name != joined})
    assert_equal(few, {**want, joined: tensors[joined].bfloat16()})
    assert config_of(tmp_path / "few")["quantization_config"] == DEEPSEEK
    wide = export(1, tmp_path / "few", "f32", tmp_path / "wide")
    assert not any(name.endswith("_scale_inv") for name in wide) and wide[joined].dtype == torch.float32


def test_linear_layers_that_stay_are_named(tmp_path):
    source = mdp.GOLDEN / "qwen2_moe"
    ours = export(2, source, "fp8", tmp_path / "few")
    gates = [name for name in ours if name.endswith("shared_expert_gate.weight")]
    assert gates and all(ours[name].dtype == torch.bfloat16 for name in gates)
    named = config_of(tmp_path / "few")["quantization_config"]["modules_to_not_convert"]
    assert sorted(named) == sorted(name.removesuffix(".weight") for name in gates)


# ---- any ranks, both containers, going on, foretold


@pytest.mark.parametrize("model, kind", [("mixtral-demo", "fp8"), ("mixtral-demo", "f32"), ("golden/gpt_oss_mxfp4", "bf16"), ("golden/deepseek_v3_fp8", "f16")])
def test_bytes_do_not_depend_on_ranks_or_buffers(model, kind, tmp_path):
    source = mdp.FIXTURES / model
    export(1, source, kind, tmp_path / "1")
    for ranks, more in ((2, []), (3, ["--memory", "34MB"])):
        export(ranks, source, kind, tmp_path / str(ranks), *more)
        assert mdp.digests(tmp_path / "1") == mdp.digests(tmp_path / str(ranks))


@pytest.mark.parametrize("model, kind", [("deepseek_v3", "fp8"), ("gpt_oss_mxfp4", "f32"), ("mixtral_bf16", "f32")])
def test_model_h5_holds_the_same(model, kind, tmp_path):
    source = mdp.GOLDEN / model
    ours = export(2, source, kind, tmp_path / "hf")
    export(3, source, kind, tmp_path / "model.h5")
    mdp.succeed(2, "verify", tmp_path / "model.h5")
    mdp.succeed(1, "verify", tmp_path / "model.h5", "--model", source)
    mdp.succeed(2, "export", "--model", tmp_path / "model.h5", "--out", tmp_path / "again")
    assert mdp.digests(tmp_path / "again") == mdp.digests(tmp_path / "hf")
    with h5py.File(tmp_path / "model.h5") as file:
        name = "model/embed_tokens/weight"
        assert file[name].attrs["stored_type"] == {"fp8": b"BF16", "f32": b"F32"}[kind]
        if kind == "f32":
            assert np.array_equal(file[name][...], ours["model.embed_tokens.weight"].numpy())
    export(1, tmp_path / "model.h5", "bf16", tmp_path / "back")  # a model.h5 in another type


def test_a_pruned_model_h5_in_another_type(tokens, tmp_path):
    source = mdp.GOLDEN / "mixtral_bf16"
    mdp.succeed(2, "run", "--model", source, "--tokens", tokens, "--method", "reap", "--keep", 4, "--format", "both", "--out", tmp_path / "out")
    ours = export(2, tmp_path / "out" / "model.h5", "f32", tmp_path / "wide")
    assert_equal(ours, {name: tensor.float() for name, tensor in quantise.load(tmp_path / "out" / "hf").items()})
    record = mdp.read_json(tmp_path / "wide" / "moe-dist-prune.json")
    assert record["provenance"]["type"] == "f32" and "plan" not in record
    mdp.succeed(2, "verify", tmp_path / "wide", "--model", tmp_path / "out" / "model.h5")


@pytest.mark.parametrize("name", ["hf", "model.h5"])
def test_a_stopped_export_goes_on(name, tmp_path):
    words = ["export", "--model", mdp.DEMO, "--type", "fp8"]
    mdp.succeed(2, *words, "--out", tmp_path / name)
    out, codes, n = tmp_path / "parts" / name, {75}, 0
    out.parent.mkdir()
    while codes == {75} and n < 20:
        codes = set(mdp.run(1 + n % 3, *words, "--out", out, "--stop-at", 1, *(["--resume"] if n else [])).codes)
        n += 1
    assert codes == {0} and n > 2
    if name == "hf":
        assert mdp.digests(out) == mdp.digests(tmp_path / name)
    else:
        assert out.read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("model, kind", [("mixtral-demo", "fp8"), ("mixtral-demo", "f32"), ("golden/gpt_oss_mxfp4", "bf16"), ("pruned", "fp8")])
@pytest.mark.parametrize("name", ["hf", "model.h5"])
def test_reading_and_writing_are_foretold(name, model, kind, tmp_path):
    source = mdp.FIXTURES / model
    if model == "pruned":  # has checksums, which are compared: what is made of a tensor is not the tensor
        source = tmp_path / "pruned" / "model.h5"
        mdp.succeed(2, "run", "--model", mdp.GOLDEN / "mixtral_bf16", "--tokens", mdp.golden_tokens("mixtral_bf16", tmp_path / "tokens.h5"), "--method", "reap",
                    "--keep", 4, "--out", source.parent)
    words = ["export", "--model", source, "--type", kind, "--out", tmp_path / name]
    told = json.loads(mdp.succeed(2, *words, "--dry-run", "--json").stdout)
    assert not (tmp_path / name).exists()
    mdp.succeed(2, *words, "--profile")
    counted = mdp.read_json(tmp_path / f"{name}.profile.json")["passes"][0]["all"]
    for key in ("bytes_read", "bytes_written"):
        assert told[key] == counted[key]["total"], key
    files = [path for path in (tmp_path / name).iterdir()] if name == "hf" else [tmp_path / name]
    assert told["bytes_written"] == sum(path.stat().st_size for path in files)


def test_damage_is_found_in_what_is_changed(tokens, tmp_path):
    source = mdp.GOLDEN / "deepseek_v3_fp8"
    mdp.succeed(1, "run", "--model", source, "--tokens", tokens, "--method", "reap", "--keep", 4, "--format", "safetensors", "--out", tmp_path / "out")
    path = tmp_path / "out" / "hf" / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + size])
    for name in ("model.layers.1.mlp.experts.2.up_proj.weight", "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"):
        at = 8 + size + header[name]["data_offsets"][0]
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        mdp.refuse(2, 65, rf"'{name}'.* has checksum|{name}.*checksum", "export", "--model", path.parent, "--type", "bf16", "--out", tmp_path / "bf16")


# ---- what is refused


def changed(tmp_path, change, model="mixtral_bf16"):
    tensors = quantise.load(mdp.GOLDEN / model)
    change(tensors)
    return quantise.save(tensors, config_of(mdp.GOLDEN / model), tmp_path / "model")


def test_values_that_a_type_cannot_hold_are_named(tmp_path):
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"

    def set_to(value):
        return lambda tensors: tensors[name].view(-1)[7:8].fill_(value)
    model = changed(tmp_path, set_to(70000.0))
    mdp.refuse(2, 65, rf"'{name}' has the value \d+, which F16 cannot hold; take --type bf16 or f32", "export", "--model", model, "--type", "f16", "--out",
               tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(2, model, "f32", tmp_path / "wide")
    (tmp_path / "model").rename(tmp_path / "large")
    model = changed(tmp_path, set_to(float("inf")))
    mdp.refuse(3, 65, rf"'{name}' has a value that is not finite, which FP8 cannot hold", "export", "--model", model, "--type", "fp8", "--out", tmp_path / "out")
    assert torch.isinf(export(1, model, "f16", tmp_path / "same")[name]).sum() == 1


def test_what_cannot_be_fp8_is_refused(tmp_path):
    words = ["--type", "fp8", "--out", tmp_path / "out"]
    mdp.refuse(2, 65, r"_blocks' is quantised already \(MXFP4 with scales U8 for 1 x 32 values\).*--type bf16, and that with --type fp8",
               "export", "--model", mdp.GOLDEN / "gpt_oss_mxfp4", *words)
    mdp.refuse(2, 65, r"experts\.\w+' has the outputs of its layer in columns", "export", "--model", mdp.GOLDEN / "gpt_oss", *words)
    few = quantise.fp8(mdp.GOLDEN / "qwen3_moe_bf16", tmp_path / "few", (32, 64), True)
    mdp.refuse(1, 65, r"is quantised already \(F8_E4M3 with scales F8_E8M0 for 32 x 64 values\)", "export", "--model", few, *words)


def test_settings_beside_the_weights_are_refused(tmp_path):
    few = quantise.fp8(mdp.GOLDEN / "qwen3_moe_bf16", tmp_path / "few")
    (few / "hf_quant_config.json").write_text("{}", encoding="utf-8")
    mdp.refuse(2, 65, r"the side file hf_quant_config\.json has settings of quantisation", "export", "--model", few, "--type", "bf16", "--out", tmp_path / "out")
