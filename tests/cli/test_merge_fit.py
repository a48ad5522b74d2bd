"""Merged experts whose down projections are fitted (MergeMoE): against float64 numpy, on any number of ranks, in every stored type."""
import json

import h5py
import numpy as np
import pytest

import mdp

RANKS = [1, 2, 3, 4, 8]


def given_groups(n):
    """One of three, pairs, one of one: 0 0 0 1 1 2 2 3 of 8, as merge2.h5 has them."""
    label = [max(0, (e - 1) // 2) for e in range(n)]
    return [[e for e in range(n) if label[e] == g] for g in range(label[-1] + 1)]


def tokens_of(family, which, path):
    if which == "golden":
        return mdp.golden_tokens(family, path)
    with h5py.File(mdp.GOLDEN / family / "refit.h5") as file, h5py.File(path, "w") as out:
        file.copy("tokens/golden2", out)
    return path


def write_plan(model, tokens, path, groups=given_groups):
    """A plan that merges groups by the tokens of their members, and fits them."""
    stats = path.with_suffix(".stats.h5")
    mdp.succeed(2, "observe", "--model", model, "--tokens", tokens, "--out", stats, "--quiet")
    mdp.succeed(1, "plan", "--model", model, "--stats", stats, "--method", "frequency", "--keep-ratio", 0.5, "--out", path, "--quiet")
    plan = mdp.read_json(path)
    for layer in plan["layers"]:
        layer["dropped"], layer["experts"] = [], []
        for group in groups(len(layer["scores"])):
            n = np.array(layer["scores"])[group]
            weights = n / n.sum() if n.sum() > 0 else np.full(len(group), 1 / len(group))
            layer["experts"].append({"from": group, "action": "keep"} if len(group) == 1 else
                                    {"from": group, "action": "merge", "weights": weights.tolist(), "align": "none", "fit": "least-squares"})
    path.write_text(json.dumps(plan))
    return path


def merge(ranks, model, plan, tokens, out, *words):
    return mdp.succeed(ranks, "merge", "--model", model, "--plan", plan, "--tokens", tokens, "--out", out, "--quiet", *words)


@pytest.mark.parametrize("which, tolerance, relative", [("golden2", 1e-4, 1e-5), ("golden", 1e-3, 1e-3)])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_down_projections_are_those_of_the_reference(family, which, tolerance, relative, tmp_path):
    model, tokens = mdp.GOLDEN / family, tokens_of(family, which, tmp_path / "t.h5")
    write_plan(model, tokens, tmp_path / "p.json")
    merge(3, model, tmp_path / "p.json", tokens, tmp_path / "q.json")
    plan = mdp.read_json(tmp_path / "q.json")
    told = {(e["layer"], e["expert"]): e for e in plan["recipe"]["made"]["least_squares"]["experts"]}
    with h5py.File(model / "merge2.h5") as file:
        found = file[f"mergemoe/{which}"]
        n_solved = 0
        for at, layer in enumerate(plan["layers"]):
            theirs = found[f"layer{layer['layer']}"]
            for g, expert in enumerate(layer["experts"]):
                assert (expert["action"] == "merge") == (len(expert["from"]) > 1)
                if expert["action"] != "merge":
                    continue
                ours = told[layer["layer"], g]
                assert ours["rows"] == theirs["tokens"][g] and ours["fitted"] == bool(theirs["solved"][g])
                n_solved += ours["fitted"]
                if ours["fitted"]:
                    assert ours["lambda"] == pytest.approx(theirs["lambda"][g], rel=1e-5)
                    assert ours["error_before"] == pytest.approx(theirs["error_before"][g], rel=1e-5)
                    assert ours["error_after"] == pytest.approx(theirs["error_after"][g], rel=relative, abs=1e-8)
                if "W_d" in theirs:
                    wanted = theirs["W_d"][g]
                    assert np.abs(mdp.plan_array(tmp_path / "q.json", at, g, "down") - wanted).max() <= tolerance * np.abs(wanted).max()
        assert n_solved >= 6


def whole_layer(n):
    """Ten of sixteen become one: more than compute at once."""
    return [list(range(10)), *[[e] for e in range(10, n)]]


def test_members_that_do_not_compute_at_once_count_as_those_that_do(tmp_path):
    """Members of no weight compute nothing, so there are few; with hardly any weight they do, in several goes."""
    model = mdp.GOLDEN / "qwen3_moe"
    tokens = tokens_of("qwen3_moe", "golden2", tmp_path / "t.h5")
    plan = mdp.read_json(write_plan(model, tokens, tmp_path / "p.json", whole_layer))
    found = []
    for small in (0.0, 1e-13):
        for layer in plan["layers"]:
            layer["experts"][0]["weights"] = [0.5, 0.5, *[small] * 8]
        (tmp_path / "p.json").write_text(json.dumps(plan))
        merge(2, model, tmp_path / "p.json", tokens, tmp_path / "q.json", "--overwrite")
        found.append([mdp.plan_array(tmp_path / "q.json", l, 0, "down") for l in range(len(plan["layers"]))])
    for few, many in zip(*found):
        assert np.abs(few).max() > 0 and np.abs(few - many).max() <= 1e-5 * np.abs(few).max()


def demo_groups(n):
    return [[0, 3, 5], [1], [2, 7], [4, 6]]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(plan, tokens) of the demo."""
    folder = tmp_path_factory.mktemp("planned")
    random = np.random.default_rng(4)
    tokens = mdp.write_tokens(folder / "t.h5", {c: [random.integers(1000, size=100) for _ in range(12)] for c in "ab"})
    return write_plan(mdp.DEMO, tokens, folder / "p.json", demo_groups), tokens


def test_the_same_bytes_on_any_number_of_ranks(planned, tmp_path):
    plan, tokens = planned
    found = set()
    for ranks in RANKS:
        for threads in [1, 2] if ranks == 2 else [1]:
            out = tmp_path / f"q-{ranks}-{threads}.json"
            merge(ranks, mdp.DEMO, plan, tokens, out, "--threads", threads)
            found.add((out.read_bytes(), out.with_suffix(".h5").read_bytes()))
    assert len(found) == 1


def test_stopped_anywhere_it_goes_on_with_the_same_bytes(planned, tmp_path):
    plan, tokens = planned
    merge(2, mdp.DEMO, plan, tokens, tmp_path / "whole.json")
    wanted = ((tmp_path / "whole.json").read_bytes(), (tmp_path / "whole.h5").read_bytes())
    for stop in (1, 4, 6):
        out = tmp_path / f"parts-{stop}.json"
        words = ["merge", "--model", mdp.DEMO, "--plan", plan, "--tokens", tokens, "--out", out, "--quiet"]
        assert mdp.run(3, *words, "--stop-at", stop).codes == [75] * 3
        assert not out.exists()
        mdp.succeed(stop % 3 + 1, *words, "--resume")
        assert (out.read_bytes(), out.with_suffix(".h5").read_bytes()) == wanted, stop
        mdp.succeed(2, *words, "--resume")  # nothing is left to do


@pytest.mark.parametrize("family", ["deepseek_v3_fp8", "gpt_oss", "gpt_oss_mxfp4", "granitemoe", "qwen3_moe_bf16"])
def test_fitted_experts_are_measured_as_they_are_written_in_every_type(family, tmp_path):
    """And are nearer to what they stand for than the weighted sum."""
    model = mdp.GOLDEN / family
    vocabulary, random = mdp.read_json(model / "config.json").get("vocab_size"), np.random.default_rng(3)
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [random.integers(vocabulary, size=50) for _ in range(40)]})
    write_plan(model, tokens, tmp_path / "p.json", lambda n: [[2 * i, 2 * i + 1] for i in range(n // 2)])
    merge(2, model, tmp_path / "p.json", tokens, tmp_path / "q.json")
    experts = mdp.read_json(tmp_path / "q.json")["recipe"]["made"]["least_squares"]["experts"]
    fitted = [e for e in experts if e["fitted"]]
    assert fitted and all(e["error_after"] < e["error_before"] for e in fitted)
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "q.json", "--tokens", tokens, "--out", tmp_path / "e.json", "--quiet")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "both", "--quiet")
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == mdp.measures(tmp_path / "e.json")[1]["nll"]


def test_groups_that_few_tokens_reach_keep_the_sum_and_are_listed(tmp_path):
    model = mdp.GOLDEN / "mixtral"
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [np.arange(30)]})
    write_plan(model, tokens, tmp_path / "p.json")
    warned = mdp.succeed(2, "merge", "--model", model, "--plan", tmp_path / "p.json", "--tokens", tokens, "--out", tmp_path / "q.json")
    assert "keep the weighted sum of down projections, since fewer than 32 tokens" in warned.stderr
    plan = mdp.read_json(tmp_path / "p.json")
    experts = mdp.read_json(tmp_path / "q.json")["recipe"]["made"]["least_squares"]["experts"]
    assert not any(e["fitted"] for e in experts) and all(e["rows"] <= 30 for e in experts)
    for layer in plan["layers"]:
        for expert in layer["experts"]:
            expert.pop("fit", None)
    (tmp_path / "sum.json").write_text(json.dumps(plan))
    mdp.succeed(2, "merge", "--model", model, "--plan", tmp_path / "sum.json", "--out", tmp_path / "r.json", "--quiet")
    assert (mdp.plan_array(tmp_path / "q.json", 1, 0, "down") == mdp.plan_array(tmp_path / "r.json", 1, 0, "down")).all()


def test_text_is_wanted_where_it_is_of_use(planned, tmp_path):
    plan, tokens = planned
    words = ["merge", "--model", mdp.DEMO, "--out", tmp_path / "q.json", "--plan"]
    mdp.refuse(2, 2, "it has experts that are fitted to text", *words, plan)
    other = mdp.read_json(plan)
    for layer in other["layers"]:
        for expert in layer["experts"]:
            expert.pop("fit", None)
    (tmp_path / "p.json").write_text(json.dumps(other))
    mdp.refuse(2, 2, "--tokens has no meaning without", *words, tmp_path / "p.json", "--tokens", tokens)
    mdp.refuse(2, 2, "--merge-ridge has no meaning without", *words, tmp_path / "p.json", "--merge-ridge", 0.5)
    other["layers"][0]["experts"][0]["fit"] = "best"
    (tmp_path / "p.json").write_text(json.dumps(other))
    mdp.refuse(2, 65, "'fit' is 'best'; least-squares is possible", *words, tmp_path / "p.json")
    other["layers"][0]["experts"][0]["fit"] = "least-squares"
    other["layers"][0]["experts"][1]["fit"] = "least-squares"
    (tmp_path / "p.json").write_text(json.dumps(other))
    mdp.refuse(2, 65, "action 'keep' has no 'fit'", *words, tmp_path / "p.json", "--tokens", tokens)


def test_dry_run_foretells_operations_memory_and_disk(tmp_path):
    mdp.tool("make-shape-model", "--experts", 4, "--hidden", 256, "--intermediate", 1024, "--layers", 2, "--vocab", 100, "--out", tmp_path / "model")
    random = np.random.default_rng(4)
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [random.integers(100, size=512) for _ in range(8)]})
    plan = write_plan(tmp_path / "model", tokens, tmp_path / "p.json", lambda n: [[0, 1], [2, 3]])
    words = ["merge", "--model", tmp_path / "model", "--plan", plan, "--tokens", tokens, "--out", tmp_path / "q.json", "--quiet"]
    estimate = json.loads(mdp.succeed(1, *words, "--dry-run", "--json").stdout)
    assert [p["pass"] for p in estimate["passes"]] == ["merge", "merge, tokens", "merge, fits"]
    real = mdp.succeed(1, *words, "--profile")
    (profile,) = mdp.read_json(tmp_path / "q.json.profile.json")["passes"]
    assert sum(phase["flop"]["total"] for phase in profile["phases"].values()) == pytest.approx(estimate["flop"], rel=0.1)
    assert estimate["bytes_written"] <= (tmp_path / "q.h5").stat().st_size <= 1.1 * estimate["bytes_written"]
    assert 0.9 * real.peaks[0] * 1024 <= estimate["memory_per_rank"] <= 1.4 * real.peaks[0] * 1024
    mdp.refuse(1, 2, "--memory", *words, "--memory", "40MB", "--overwrite")


def test_a_run_fits_and_goes_on_where_it_was_stopped(tmp_path):
    random = np.random.default_rng(5)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {c: [random.integers(1000, size=60) for _ in range(8)] for c in "ab"})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "mergemoe", "--keep", 4, "--format", "hdf5", "--quiet"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    whole, arrays = mdp.results(tmp_path / "whole"), (tmp_path / "whole" / "plan.h5").read_bytes()
    recipe = mdp.read_json(tmp_path / "whole" / "plan.json")["recipe"]
    assert recipe["merge"]["weights"] == "least-squares" and any(e["fitted"] for e in recipe["made"]["least_squares"]["experts"])
    for stop in (8, 11):
        out = tmp_path / f"parts-{stop}"
        assert mdp.run(3, *words, "--out", out, "--stop-at", stop).codes == [75] * 3
        mdp.succeed(stop % 3 + 1, *words, "--out", out, "--resume")
        assert mdp.results(out) == whole and (out / "plan.h5").read_bytes() == arrays, stop
