"""--changed-type bf16: experts made of FP8 and MXFP4 stand in bf16, and the result is that of a model exported to bf16 first."""
import json

import numpy as np
import pytest
import torch

import mdp
import quantise

FAMILIES = ["deepseek_v3_fp8", "gpt_oss_mxfp4"]
FIT = ["--ridge", "1e-2", "--refit", "joint", "--quiet"]


def config_of(folder):
    return mdp.read_json(folder / "config.json")


def write_text(family, path):
    random = np.random.default_rng(1)
    vocabulary = config_of(mdp.GOLDEN / family)["vocab_size"]
    return mdp.write_tokens(path, {"a": [random.integers(vocabulary, size=60) for _ in range(12)]})


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """A folder with text, a plan that merges and one that drops, and the model exported to bf16 with the same plans for it."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    write_text(family, folder / "t.h5")
    mdp.succeed(2, "export", "--model", mdp.GOLDEN / family, "--type", "bf16", "--out", folder / "wide", "--quiet")
    for kind, model in ("codes", mdp.GOLDEN / family), ("wide", folder / "wide"):
        mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", folder / f"{kind}-drop.json")
        plan = mdp.read_json(folder / f"{kind}-drop.json")
        for layer in plan["layers"]:
            n = 2 * len(layer["experts"])
            layer["experts"] = [{"from": [2 * i, 2 * i + 1], "action": "merge", "weights": [0.25, 0.75], "align": "weight"} for i in range(n // 2)]
            layer["dropped"] = []
        (folder / f"{kind}-merge.json").write_text(json.dumps(plan))
    return folder, family


def make(ranks, folder, family, kind, how, out, *more):
    """The plan with fitted experts, which are merged before where that is wanted."""
    model = mdp.GOLDEN / family if kind == "codes" else folder / "wide"
    plan, words = folder / f"{kind}-{how}.json", ["--changed-type", "bf16"] if kind == "codes" else []
    if how == "merge":
        mdp.succeed(ranks, "merge", "--model", model, "--plan", plan, "--out", out.with_name(f"{out.stem}-merged.json"), *words, "--quiet")
        plan, words = out.with_name(f"{out.stem}-merged.json"), []  # the plan says it
    mdp.succeed(ranks, "refit", "--model", model, "--plan", plan, "--tokens", folder / "t.h5", "--out", out, *FIT, *words, *more)
    return out


def load(folder):
    return quantise.load(folder)


@pytest.mark.parametrize("how", ["drop", "merge"])
def test_the_result_is_that_of_a_model_in_bf16(how, both, tmp_path):
    folder, family = both
    results = {}
    for kind, model in ("codes", mdp.GOLDEN / family), ("wide", folder / "wide"):
        plan = make(2, folder, family, kind, how, tmp_path / f"{kind}.json")
        mdp.succeed(2, "eval", "--model", model, "--plan", plan, "--tokens", folder / "t.h5", "--out", tmp_path / f"{kind}.eval.json", "--quiet")
        mdp.succeed(2, "apply", "--model", model, "--plan", plan, "--out", tmp_path / kind, "--format", "both", "--quiet")
        results[kind] = load(tmp_path / kind / "hf"), mdp.measures(tmp_path / f"{kind}.eval.json")
    (ours, our_measures), (theirs, their_measures) = results["codes"], results["wide"]
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].float(), tensor.float()) and ours[name].shape == tensor.shape, name
        assert ours[name].dtype == tensor.dtype or ours[name].dtype == torch.float32, name
    assert [m["nll"] for m in our_measures] == [m["nll"] for m in their_measures]
    assert "quantization_config" not in config_of(tmp_path / "codes" / "hf")
    for name in ["model.h5", "hf"]:  # what was measured is what was written
        mdp.succeed(3, "verify", tmp_path / "codes" / name, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "codes" / name, "--tokens", folder / "t.h5", "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == our_measures[1]["nll"]


def test_a_result_is_traced_to_its_model(both, tmp_path):
    folder, family = both
    plan = make(2, folder, family, "codes", "drop", tmp_path / "p.json")
    mdp.succeed(3, "apply", "--model", mdp.GOLDEN / family, "--plan", plan, "--out", tmp_path / "out", "--format", "both", "--quiet")
    for name in ["model.h5", "hf"]:
        words = ["verify", tmp_path / "out" / name, "--model", mdp.GOLDEN / family, "--quiet"]
        if family == "gpt_oss_mxfp4":  # rows and columns are exchanged there
            mdp.refuse(2, 2, "verify it without --model", *words)
        else:
            mdp.succeed(2, *words)


def test_a_run_writes_what_it_has_measured(both, tmp_path):
    folder, family = both
    words = ["run", "--model", mdp.GOLDEN / family, "--tokens", folder / "t.h5", "--eval-tokens", folder / "t.h5", "--method", "frequency", "--keep-ratio", 0.5,
             "--changed-type", "bf16", "--format", "both", *FIT]
    mdp.succeed(2, *words, "--out", tmp_path / "out")
    foretold = json.loads(mdp.succeed(2, *words, "--out", tmp_path / "again", "--dry-run", "--json").stdout)
    written = sum(f.stat().st_size for f in (tmp_path / "out").rglob("*") if f.suffix in (".h5", ".safetensors") and f.name != "stats.h5")
    assert foretold["bytes_written"] == pytest.approx(written, rel=0.1)
    measured = mdp.measures(tmp_path / "out" / "eval.json")[1]
    for name in ["model.h5", "hf"]:
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", folder / "t.h5", "--out", tmp_path / "e.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "e.json")[0]["nll"] == measured["nll"]
    for stop in (10,):
        first = mdp.run(3, *words, "--out", tmp_path / f"parts-{stop}", "--stop-at", stop)
        assert set(first.codes) in ({75}, {0}), str(first)
        mdp.succeed(1, *words, "--out", tmp_path / f"parts-{stop}", "--resume") if first.codes[0] else None
        assert mdp.results(tmp_path / f"parts-{stop}") == mdp.results(tmp_path / "out")


def test_what_rounding_takes_is_told(tmp_path):
    """Values whose logarithms are spread evenly lose 2^-b / sqrt(18 / ln 2) of their norm where b bits follow the first."""
    model, tokens = mdp.GOLDEN / "deepseek_v3_fp8", write_text("deepseek_v3_fp8", tmp_path / "t.h5")
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", tmp_path / "p.json")
    for bits, words in (3, []), (7, ["--changed-type", "bf16"]):
        mdp.succeed(2, "refit", "--model", model, "--plan", tmp_path / "p.json", "--tokens", tokens, "--out", tmp_path / f"{bits}.json", *FIT, *words)
        for layer in mdp.read_json(tmp_path / f"{bits}.json")["recipe"]["refit"]["layers"]:
            assert layer["rounding"] == pytest.approx(2 ** -bits / np.sqrt(18 / np.log(2)), rel=0.15)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bytes_on_any_number_of_ranks(family, tmp_path):
    tokens = write_text(family, tmp_path / "t.h5")
    mdp.succeed(1, "plan", "--model", mdp.GOLDEN / family, "--method", "random", "--keep-ratio", 0.5, "--out", tmp_path / "p.json")
    found = set()
    for ranks in [1, 2, 3, 4]:
        out = tmp_path / f"{ranks}.json"
        mdp.succeed(ranks, "refit", "--model", mdp.GOLDEN / family, "--plan", tmp_path / "p.json", "--tokens", tokens, "--out", out, "--changed-type", "bf16", *FIT)
        found.add((out.read_bytes(), out.with_suffix(".h5").read_bytes()))
    assert len(found) == 1


def test_what_cannot_be_meant_is_refused(tmp_path):
    tokens = write_text("deepseek_v3_fp8", tmp_path / "t.h5")
    fp8, plain = mdp.GOLDEN / "deepseek_v3_fp8", mdp.GOLDEN / "deepseek_v3"
    for name, model in ("p", fp8), ("q", plain):
        mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", tmp_path / f"{name}.json")
    mdp.refuse(2, 2, "no weights in FP8 or MXFP4", "refit", "--model", plain, "--plan", tmp_path / "q.json", "--tokens", tokens, "--changed-type", "bf16",
               "--out", tmp_path / "o.json")
    mdp.refuse(2, 2, "no meaning without --merge or --refit", "run", "--model", fp8, "--tokens", tokens, "--method", "frequency", "--keep-ratio", 0.5,
               "--changed-type", "bf16", "--out", tmp_path / "o")
    fit = ["refit", "--model", fp8, "--plan", tmp_path / "p.json", "--tokens", tokens, *FIT]
    mdp.succeed(2, *fit, "--out", tmp_path / "stored.json")
    mdp.succeed(2, *fit, "--changed-type", "bf16", "--out", tmp_path / "wide.json")
    mdp.refuse(2, 2, "evaluate them one by one", "eval", "--model", fp8, "--tokens", tokens, "--plan", tmp_path / "stored.json", "--plan", tmp_path / "wide.json",
               "--out", tmp_path / "e.json")
    plan = mdp.read_json(tmp_path / "wide.json")
    plan["changed_type"] = "f16"
    (tmp_path / "wide.json").write_text(json.dumps(plan))
    mdp.refuse(2, 65, "changed_type", "apply", "--model", fp8, "--plan", tmp_path / "wide.json", "--out", tmp_path / "o")
