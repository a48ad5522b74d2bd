"""Refit: new down projections against float64 least squares in numpy, the figures of the demo, and the ways to go on."""
import json
import re

import h5py
import numpy as np
import pytest

import mdp
import quantise

RANKS = [1, 2, 3, 4, 8]
REFERENCE = ["mixtral", "qwen2_moe", "deepseek_v3", "qwen3_moe"]
# name of a variant of the reference: words of refit
WAYS = {"joint-original": ["--refit", "joint", "--refit-target", "output", "--refit-inputs", "original"],
        "joint-pruned": ["--refit", "joint", "--refit-target", "output"],
        "joint-pruned-residual": ["--refit", "joint"],
        "sweeps-3-pruned": ["--refit", "sweeps:3", "--refit-target", "output"],
        "diagonal-step-pruned": ["--refit", "diagonal", "--refit-target", "output"]}
PLAIN = ["--ridge", "1e-3", "--refit-holdout", 0, "--quiet"]


def down_of(plan_path):
    """{layer: [kept, d, f]} of plan.h5, with the experts that the plan says are fitted."""
    plan, found = mdp.read_json(plan_path), {}
    with h5py.File(plan_path.with_suffix(".h5")) as arrays:
        assert arrays.attrs["complete"] == 1
        for layer in plan["layers"]:
            values = {}
            for number, expert in enumerate(layer["experts"]):
                if "arrays" in expert:
                    values[number] = arrays[expert["arrays"]["down"]["path"]][...]
            found[layer["layer"]] = values
    return found


@pytest.fixture(scope="module", params=REFERENCE)
def reference(request, tmp_path_factory):
    """(folder with tokens.h5 and plan.json, family) of a golden checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    with h5py.File(mdp.GOLDEN / request.param / "refit.h5") as file:
        with h5py.File(folder / "tokens.h5", "w") as out:
            file.copy("tokens/golden2", out)
        kept = {int(name[5:]): file[name]["kept"][...] for name in file if name.startswith("layer")}
    mdp.write_plan(mdp.GOLDEN / request.param, kept, folder / "plan.json")
    return folder, request.param


def refit(ranks, folder, family, out, *words):
    return mdp.succeed(ranks, "refit", "--model", mdp.GOLDEN / family, "--plan", folder / "plan.json", "--tokens", folder / "tokens.h5",
                       "--out", out, *words)


def near(ours, theirs, relative):
    return abs(ours - theirs) <= relative * abs(theirs)


@pytest.mark.parametrize("way", WAYS)
def test_down_projections_are_those_of_the_reference(way, reference, tmp_path):
    folder, family = reference
    out = tmp_path / "fitted.json"
    refit(2, folder, family, out, *WAYS[way], *PLAIN)
    recipe = {layer["layer"]: layer for layer in mdp.read_json(out)["recipe"]["refit"]["layers"]}
    with h5py.File(mdp.GOLDEN / family / "refit.h5") as file:
        for layer, values in down_of(out).items():
            wanted, told = file[way][f"layer{layer}"], recipe[layer]
            assert told["rows"] == list(wanted["n"][...])
            assert sorted(values) == list(wanted["fitted"][...])
            assert near(told["mean_square"], wanted["diag_mean"][()], 1e-5)
            assert near(told["error_before"]["fitted"], wanted["error_before"][()], 1e-5)
            assert near(told["error_after"]["fitted"], wanted["error_after"][()], 1e-3)
            for expert, value in values.items():
                theirs = wanted["W_d"][expert]
                assert np.abs(value - theirs).max() <= 1e-4 * np.abs(theirs).max(), (layer, expert)


def test_the_whole_model_is_the_reference(reference, tmp_path):
    """Loss and KL of the refitted model on the same tokens."""
    folder, family = reference
    out = tmp_path / "fitted.json"
    refit(2, folder, family, out, *WAYS["joint-pruned-residual"], *PLAIN)
    mdp.succeed(2, "eval", "--model", mdp.GOLDEN / family, "--tokens", folder / "tokens.h5", "--plan", out, "--out", tmp_path / "eval.json",
                "--quiet")
    ours = mdp.read_json(tmp_path / "eval.json")["streams"][1]
    with h5py.File(mdp.GOLDEN / family / "refit.h5") as file:
        wanted = file["joint-pruned-residual"]
        assert abs(ours["nll"]["total"] - wanted["nll"][()]) <= 1e-5
        assert abs(ours["kl_to_original"]["total"] - wanted["kl"][()]) <= 1e-5


@pytest.mark.parametrize("way", ["joint-pruned-residual", "sweeps-3-pruned", "diagonal-step-pruned"])
def test_the_same_bytes_on_any_number_of_ranks(way, tmp_path):
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [np.arange(300 + 3 * i) * (7 + i) % 1000 for i in range(12)],
                                                       "b": [np.arange(500) * 3 % 1000, np.arange(200) * 11 % 1000]})
    mdp.succeed(1, "plan", "--model", mdp.DEMO, "--method", "random", "--keep", 4, "--out", tmp_path / "plan.json")
    found = set()
    for ranks in RANKS:
        for threads in [1, 2] if ranks < 3 else [1]:
            out = tmp_path / f"fitted-{ranks}-{threads}.json"
            mdp.succeed(ranks, "refit", "--model", mdp.DEMO, "--plan", tmp_path / "plan.json", "--tokens", tokens, "--out", out, "--quiet",
                        "--threads", threads, *WAYS[way], *(["--ridge", "1e-2"] if "diagonal" in way else []))
            found.add((out.read_bytes(), out.with_suffix(".h5").read_bytes()))
    assert len(found) == 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    mdp.succeed(2, "observe", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--out", folder / "stats.h5", "--quiet")
    mdp.succeed(1, "plan", "--stats", folder / "stats.h5", "--method", "reap", "--keep", 4, "--out", folder / "plan.json")
    return folder


def test_half_of_the_experts_keep_most_of_the_quality(demo, tmp_path):
    """The reference: perplexity 14.33 (whole), 62.27 (pruned), 19.51 and 17.47 (refitted, target output and residual)."""
    plans = []
    for target in ["output", "residual"]:
        out = tmp_path / f"{target}.json"
        mdp.succeed(2, "refit", "--model", mdp.DEMO, "--plan", demo / "plan.json", "--tokens", mdp.CALIB, "--out", out, "--refit", "joint",
                    "--refit-target", target, *PLAIN)
        plans += ["--plan", out]
    mdp.succeed(2, "eval", "--model", mdp.DEMO, "--tokens", mdp.EVAL, "--plan", demo / "plan.json", *plans, "--out", tmp_path / "eval.json",
                "--quiet")
    found = [stream["perplexity"]["total"] for stream in mdp.read_json(tmp_path / "eval.json")["streams"]]
    assert found == pytest.approx([14.33197, 62.27, 19.51, 17.47], rel=2e-3)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Text and words of a short run with refit."""
    folder = tmp_path_factory.mktemp("small")
    random = np.random.default_rng(5)
    tokens = mdp.write_tokens(folder / "tokens.h5", {c: [random.integers(1000, size=120) for _ in range(12)] for c in "ab"})
    return ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep", 4, "--refit", "joint",
            "--ridge", "1e-2", "--quiet"]


@pytest.mark.parametrize("family", ["deepseek_v3_fp8", "gpt_oss", "gpt_oss_mxfp4", "granitemoe", "phimoe"])
def test_what_was_measured_is_what_is_written_in_every_type(family, tmp_path):
    """Blocks of FP8, MXFP4, biases, stacked experts: new values are rounded as the checkpoint stores them, before they are measured."""
    model, random = mdp.GOLDEN / family, np.random.default_rng(1)
    vocabulary = mdp.read_json(model / "config.json")["vocab_size"]
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [random.integers(vocabulary, size=60) for _ in range(30)]})
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", tmp_path / "p.json")
    mdp.succeed(2, "refit", "--model", model, "--plan", tmp_path / "p.json", "--tokens", tokens, "--ridge", "1e-2", "--out", tmp_path / "q.json", "--quiet")
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "p.json", "--plan", tmp_path / "q.json", "--tokens", tokens, "--out", tmp_path / "e.json",
                "--quiet")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "both", "--quiet")
    _, pruned, fitted = mdp.measures(tmp_path / "e.json")
    assert fitted["kl_to_original"]["total"] < 0.75 * pruned["kl_to_original"]["total"]
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == fitted["nll"]


@pytest.mark.parametrize("family, words", [("deepseek_v3_fp8", []), ("deepseek_v3_fp8", ["--changed-type", "bf16"]),
                                           ("gpt_oss_mxfp4", ["--changed-type", "bf16"])], ids=["fp8", "fp8 to bf16", "mxfp4 to bf16"])
def test_transformers_computes_the_same_with_codes_fitted_anew(family, words, tmp_path):
    """FP8 is decoded by ml_dtypes before, since transformers multiplies it on other devices alone; bf16 is loaded as it is."""
    model, random = mdp.GOLDEN / family, np.random.default_rng(1)
    vocabulary = mdp.read_json(model / "config.json")["vocab_size"]
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [random.integers(vocabulary, size=60) for _ in range(12)]})
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", tmp_path / "p.json")
    mdp.succeed(2, "refit", "--model", model, "--plan", tmp_path / "p.json", "--tokens", tokens, "--out", tmp_path / "q.json", "--refit", "joint", "--ridge",
                "1e-2", *words, "--quiet")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "safetensors", "--quiet")
    result = tmp_path / "out" / "hf"
    mdp.succeed(2, "eval", "--model", result, "--tokens", tokens, "--out", tmp_path / "e.json", "--quiet")
    if not words:
        result = quantise.decode(result, tmp_path / "decoded")
    report = mdp.tool("compare-with-transformers", result, "--tokens", tokens, "--eval", tmp_path / "e.json", "--tolerance", 1e-4, "--json")
    assert report.returncode == 0, report.stdout + report.stderr


def test_a_changed_projection_is_not_traced(small, tmp_path):
    mdp.succeed(2, *small, "--format", "hdf5", "--out", tmp_path / "out")
    result = tmp_path / "out" / "model.h5"
    name, (begin, size) = next(item for item in mdp.native_places(result).items() if ".experts.2.w2" in item[0])
    mdp.flip(result, begin + size // 2)
    mdp.refuse(2, 65, "checksum", "verify", result, "--model", mdp.DEMO)
    arrays = tmp_path / "out" / "plan.h5"
    with h5py.File(arrays) as file:
        offset = file["layers/1/experts/1/down"].id.get_offset()
    mdp.flip(arrays, offset + 11)
    mdp.refuse(2, 65, r"plan\.h5: array .*layer 1, expert", "apply", "--model", mdp.DEMO, "--plan", tmp_path / "out" / "plan.json", "--out",
               tmp_path / "again")


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_writes_what_it_has_measured(ranks, small, tmp_path):
    mdp.succeed(ranks, *small, "--format", "both", "--out", tmp_path / "out")
    tokens = small[small.index("--tokens") + 1]
    measured = mdp.measures(tmp_path / "out" / "eval.json")[1]
    for name in ["model.h5", "hf"]:
        mdp.succeed(2, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "eval.json", "--overwrite", "--quiet")
        written = mdp.measures(tmp_path / "eval.json")[0]
        assert written["nll"] == measured["nll"] and written["perplexity"] == measured["perplexity"]
    mdp.succeed(1, "apply", "--model", mdp.DEMO, "--plan", tmp_path / "out" / "plan.json", "--out", tmp_path / "again", "--quiet")
    assert mdp.digests(tmp_path / "again" / "model.h5") == mdp.digests(tmp_path / "out" / "model.h5")
    for name in ["model.h5", "hf"]:
        mdp.succeed(ranks, "verify", tmp_path / "out" / name, "--model", mdp.DEMO, "--quiet")


def test_stopped_anywhere_it_goes_on_with_the_same_bytes(small, tmp_path):
    words = [*small, "--format", "hdf5"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    whole = mdp.results(tmp_path / "whole")
    arrays = (tmp_path / "whole" / "plan.h5").read_bytes()
    for stop in range(8, 15):
        out = tmp_path / f"parts-{stop}"
        first = mdp.run(3, *words, "--out", out, "--stop-at", stop)
        assert set(first.codes) in ({75}, {0}), str(first)
        if first.codes[0] == 75:
            mdp.succeed(stop % 3 + 1, *words, "--out", out, "--resume")
        assert mdp.results(out) == whole and (out / "plan.h5").read_bytes() == arrays, stop


def test_a_run_that_has_left_experts_as_they_are_goes_on(tmp_path):
    """Arrays of experts with too few rows are not in the finished plan.h5, which a run that was stopped after it takes up."""
    rng = np.random.default_rng(4)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [rng.integers(0, 100, 64) for _ in range(4)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep", 6, "--refit", "joint", "--ridge", "1e-3",
             "--checkpoint-every", 0]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    assert any(layer["not_fitted"] for layer in mdp.read_json(tmp_path / "whole" / "plan.json")["recipe"]["refit"]["layers"])
    stopped = mdp.run(2, *words, "--out", tmp_path / "parts", "--stop-at", 15)
    assert set(stopped.codes) == {75} and re.search(r"stopped by .* of eval", stopped.stderr), str(stopped)
    again = mdp.run(3, *words, "--out", tmp_path / "parts", "--resume", "--stop-at", 2)  # plan.h5 goes back to where it is made, and is published again
    assert set(again.codes) == {75}, str(again)
    mdp.succeed(1, *words, "--out", tmp_path / "parts", "--resume")
    for name in ("plan.json", "plan.h5", "model.h5"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_arrays_that_cannot_be_opened_are_made_again(tmp_path):
    """A run may be killed while it writes what describes the arrays."""
    rng = np.random.default_rng(4)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [rng.integers(0, 2048, 64) for _ in range(8)]})
    mdp.succeed(1, "plan", "--model", mdp.DEMO, "--method", "random", "--keep", 6, "--out", tmp_path / "plan.json")
    words = ["refit", "--model", mdp.DEMO, "--plan", tmp_path / "plan.json", "--tokens", tokens, "--refit", "joint", "--ridge", "1e-3"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole.json")
    assert set(mdp.run(2, *words, "--out", tmp_path / "parts.json", "--stop-at", 4).codes) == {75}
    made = mdp.unfinished(tmp_path / "parts.json.state")["parts.h5.partial"]
    made.write_bytes(b"\0" * 96 + made.read_bytes()[96:])
    mdp.succeed(3, *words, "--out", tmp_path / "parts.json", "--resume")
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("words, sentence", [
    (["--refit", "some"], "expected auto, joint, sweeps"),
    (["--refit", "sweeps:0"], "S from 1 to"),
    (["--refit", "none"], "nothing to do"),
    (["--ridge", "-1"], "expected auto or a positive number"),
    (["--refit-holdout", "1"], "expected 0, or a ratio below 1"),
    (["--batch-tokens", "100"], "one batch"),
])
def test_what_cannot_be_meant_is_refused(words, sentence, demo, tmp_path):
    mdp.refuse(2, 2, sentence, "refit", "--model", mdp.DEMO, "--plan", demo / "plan.json", "--tokens", mdp.CALIB, "--out", tmp_path / "o.json", *words)
    assert not (tmp_path / "o.json").exists() and not (tmp_path / "o.h5").exists()


def test_options_of_a_refit_need_one(tmp_path):
    mdp.refuse(2, 2, "no meaning without --refit", "run", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--method", "reap", "--keep", 4,
               "--ridge", "1e-3", "--out", tmp_path / "out")


def test_a_plan_is_refitted_once_and_its_arrays_are_inputs(demo, tmp_path):
    words = ["refit", "--model", mdp.DEMO, "--tokens", mdp.EVAL, "--refit", "diagonal", "--quiet"]
    mdp.succeed(2, *words, "--plan", demo / "plan.json", "--out", tmp_path / "one.json")
    mdp.refuse(2, 2, "refitted already", *words, "--plan", tmp_path / "one.json", "--out", tmp_path / "two.json")
    mdp.refuse(2, 73, "one.h5", "eval", "--model", mdp.DEMO, "--tokens", mdp.EVAL, "--plan", tmp_path / "one.json", "--out", tmp_path / "one.h5",
               "--overwrite")


def test_dry_run_foretells_pass_sums_and_disk(demo, tmp_path):
    words = ["refit", "--model", mdp.DEMO, "--plan", demo / "plan.json", "--tokens", mdp.CALIB, "--out", tmp_path / "o.json", "--refit", "joint",
             "--ridge", "1e-3"]
    result = mdp.succeed(2, *words, "--dry-run", "--json")
    estimate = json.loads(result.stdout)
    assert [p["pass"] for p in estimate["passes"]] == ["refit", "refit, sums and solves"]
    real = mdp.succeed(2, *words, "--profile", "--quiet")
    peak, said = max(real.peaks) * 1024, estimate["memory_per_rank"]
    assert peak <= said <= 1.15 * peak
    size = (tmp_path / "o.h5").stat().st_size
    assert estimate["bytes_written"] <= size <= 1.1 * estimate["bytes_written"]
    flop = sum(phase["flop"]["total"] for phase in mdp.read_json(tmp_path / "o.json.profile.json")["passes"][0]["phases"].values())
    assert flop == pytest.approx(estimate["flop"], rel=0.1)
