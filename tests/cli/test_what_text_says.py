"""What the text does not say is said: experts that no token reached, texts beyond trained positions, measures of texts with nothing to
predict; and every category can be chosen, whatever its name."""
import json
import re

import h5py
import numpy as np
import pytest

import mdp

MODEL = mdp.GOLDEN / "qwen3_moe"


def unreached(stats, categories=None):
    """{layer: experts whose counts are 0}, by h5py."""
    with h5py.File(stats) as file:
        names = [name.decode() for name in file["categories"][...].tolist()]
        rows = [i for i, name in enumerate(names) if categories is None or name in categories]
        return {int(layer): np.flatnonzero(group["counts"][...][rows].sum(0) == 0).tolist() for layer, group in file["layers"].items()}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three tokens in one category, two in another: most experts of 16 are reached by none."""
    folder = tmp_path_factory.mktemp("few")
    tokens = mdp.write_tokens(folder / "tokens.h5", {"a": [[5, 9, 11]], "b": [[300, 17]]})
    mdp.succeed(2, "observe", "--model", MODEL, "--tokens", tokens, "--out", folder / "stats.h5")
    return folder


def described(told):
    """(experts, {layer: experts}, of which go) as the warning has them."""
    found = re.search(r"no token reached (\d+) experts? \(layer ([^)]*)\), of which (\d+) go", told)
    assert found, told
    return int(found[1]), {int(a): int(b) for a, b in re.findall(r"(\d+): (\d+) of 16", found[2])}, int(found[3])


# ---- experts that no token reached

@pytest.mark.parametrize("more, categories", [([], None), (["--categories", "b"], {"b"}), (["--categories", "a:3,b"], None),
                                              (["--pruned-route", "zero"], None)])
def test_a_plan_names_the_experts_that_no_token_reached(more, categories, few, tmp_path):
    result = mdp.succeed(2, "plan", "--stats", few / "stats.h5", "--method", "reap", "--keep", 9, *more, "--out", tmp_path / "p.json")
    plan, want = mdp.read_json(tmp_path / "p.json"), unreached(few / "stats.h5", categories)
    assert {layer["layer"]: layer["unseen"] for layer in plan["layers"]} == want and all(want.values())
    gone = {layer["layer"]: {one["expert"] for one in layer["dropped"]} | {one["from"][0] for one in layer["experts"] if one["action"] == "zero"}
            for layer in plan["layers"]}
    total = sum(map(len, want.values()))
    assert described(result.stderr) == (total, {layer: len(ones) for layer, ones in want.items()}, sum(len(gone[n] & set(want[n])) for n in want))
    assert "moe-dist-prune: warning: no token reached" in result.stderr
    mdp.succeed(1, "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "applied")


def test_a_run_says_so_in_table_and_report(few, tmp_path):
    result = mdp.succeed(2, "run", "--model", MODEL, "--tokens", few / "tokens.h5", "--method", "reap", "--keep", 9, "--out", tmp_path / "out")
    want = unreached(tmp_path / "out" / "stats.h5")
    assert {layer["layer"]: layer["unseen"] for layer in mdp.read_json(tmp_path / "out" / "plan.json")["layers"]} == want
    assert result.stderr.count("warning: no token reached") == 1
    assert described(result.stdout) == described(result.stderr)
    warnings = mdp.read_json(tmp_path / "out" / "report.json")["warnings"]
    assert len(warnings) == 1 and described(warnings[0]) == described(result.stderr)
    assert "report.warnings" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("more", [["--rounds", 2], ["--propagate", "pruned"]])
def test_later_rounds_remember_what_the_first_did_not_see(more, few, tmp_path):
    """Experts that went in the first round get no tokens in the second; that says nothing of the text."""
    text = mdp.write_tokens(tmp_path / "t.h5", {"a": [np.random.default_rng(0).integers(0, 512, 600)]})
    for tokens, any_unseen in ((few / "tokens.h5", True), (text, False)):
        out = tmp_path / f"out-{any_unseen}"
        result = mdp.succeed(1, "run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 9, *more, "--out", out)
        assert result.stderr.count("warning: no token reached") == any_unseen, str(result)
        assert ("unseen" in mdp.read_json(out / "plan.json")["layers"][0]) == any_unseen
        assert mdp.read_json(out / "report.json")["warnings"] == [] or any_unseen


def test_methods_that_do_not_rest_on_text_say_nothing_of_it(few, tmp_path):
    result = mdp.succeed(1, "plan", "--stats", few / "stats.h5", "--method", "random", "--keep", 9, "--out", tmp_path / "p.json")
    assert "warning" not in result.stderr and "unseen" not in (tmp_path / "p.json").read_text()


@pytest.mark.parametrize("unseen, sentence", [("1", "'unseen' is not a list"), ("[1, 16]", "entry 1 of 'unseen' is no expert"), ("[-1]", "entry 0"),
                                              ('["a"]', "entry 0 of 'unseen'")])
def test_wrong_lists_of_unreached_experts_are_refused(unseen, sentence, few, tmp_path):
    mdp.succeed(1, "plan", "--stats", few / "stats.h5", "--method", "reap", "--keep", 9, "--out", tmp_path / "p.json")
    plan = mdp.read_json(tmp_path / "p.json")
    plan["layers"][1]["unseen"] = json.loads(unseen)
    (tmp_path / "p.json").write_text(json.dumps(plan))
    mdp.refuse(1, 65, rf"p\.json: layer 1: {sentence}", "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "out")


# ---- texts

def test_texts_with_nothing_to_predict_have_no_measures(tmp_path):
    calib = mdp.write_tokens(tmp_path / "c.h5", {"a": [np.random.default_rng(0).integers(0, 512, 300)]})
    single = mdp.write_tokens(tmp_path / "e.h5", {"a": [[7], [9]]})
    result = mdp.succeed(2, "run", "--model", MODEL, "--tokens", calib, "--eval-tokens", single, "--method", "reap", "--keep", 9, "--out", tmp_path / "out")
    assert "nan" not in result.stdout + result.stderr, str(result)
    for absent in ("perplexity", "KL to original", "top-1 agreement", "exact match"):
        assert absent not in result.stdout, str(result)
    assert mdp.read_json(tmp_path / "out" / "report.json")["streams"][1]["kl_to_original"]["total"] is None
    shown = mdp.succeed(1, "eval", "--model", MODEL, "--tokens", single, "--plan", tmp_path / "out" / "plan.json", "--out", tmp_path / "e.json")
    assert "nan" not in shown.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_texts_beyond_the_trained_positions_are_warned_of(ranks, tmp_path):
    most = mdp.read_json(MODEL / "config.json")["max_position_embeddings"]
    choose = np.random.default_rng(0)
    good, long = (mdp.write_tokens(tmp_path / name, {"a": [choose.integers(0, 512, n), [1, 2]]}) for name, n in (("good.h5", most), ("long.h5", most + 1)))
    words = ["run", "--model", MODEL, "--method", "reap", "--keep", 9, "--tokens", good, "--eval-tokens"]
    told = mdp.succeed(ranks, *words, long, "--dry-run", "--out", tmp_path / "out").stderr
    assert re.findall("warning: (.*)", told) == [
        f"{long}: the longest sequence has {most + 1:,} tokens, the model is made for positions up to {most:,} (max_position_embeddings); cut the "
        "text shorter, or trust no number of it"]
    assert "warning" not in mdp.succeed(ranks, *words, good, "--dry-run", "--out", tmp_path / "out").stderr


# ---- categories

@pytest.fixture(scope="module")
def named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    choose = np.random.default_rng(5)
    tokens = mdp.write_tokens(folder / "tokens.h5", {name: [choose.integers(0, 512, 60)] for name in ("a:b", "a,b", "a", "b", "c\\d", "e\\", "f\\,g", "x:2")})
    mdp.succeed(1, "observe", "--model", MODEL, "--tokens", tokens, "--out", folder / "stats.h5")
    return folder


@pytest.mark.parametrize("words, want", [
    (r"a\:b", {"a:b": 1}), (r"a\,b", {"a,b": 1}), (r"a\:b:2,a\,b:0.5,a", {"a:b": 2, "a,b": 0.5, "a": 1}), (r"c\d", {"c\\d": 1}), (r"c\\d", {"c\\d": 1}),
    ("e\\", {"e\\": 1}), (r"e\\,a", {"e\\": 1, "a": 1}), (r"f\\\,g:3", {"f\\,g": 3}), (r"x\:2", {"x:2": 1}), (r"x\:2:2", {"x:2": 2}),
])
def test_categories_with_colons_and_commas_can_be_chosen(words, want, named, tmp_path):
    mdp.succeed(1, "plan", "--stats", named / "stats.h5", "--method", "reap", "--keep", 9, "--categories", words, "--out", tmp_path / "p.json")
    assert mdp.read_json(tmp_path / "p.json")["recipe"]["options"]["categories"] == want
    mdp.succeed(1, "run", "--model", MODEL, "--tokens", named / "tokens.h5", "--method", "reap", "--keep", 9, "--categories", words, "--out", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "stats.h5") as stats:
        assert {name.decode() for name in stats["categories"][...].tolist()} == set(want)
    kept = [[[one["from"] for one in layer["experts"]] for layer in mdp.read_json(path)["layers"]]
            for path in (tmp_path / "out" / "plan.json", tmp_path / "p.json")]
    assert kept[0] == kept[1]  # scores differ in their last bits, by which tokens were computed together


@pytest.mark.parametrize("words, sentence", [
    ("a:b", r"the weight in 'a:b' is not a positive number .*write NAME:WEIGHT, and \\: and \\, where a name has a colon or a comma"),
    (r"a\:b,a\:b:2", "names 'a:b' twice"), ("a,,b", "a name is missing at ',b'"), ("a:1e13", "not a positive number"), ("a:1e308", "1e-12 to 1e12"),
    ("a:1e-320", "1e-12 to 1e12"), ("a:nan", "not a positive number"), ("a:inf", "not a positive number"), ("a:-1", "not a positive number"),
])
def test_wrong_categories_are_refused(words, sentence, named, tmp_path):
    mdp.refuse(1, 2, sentence, "plan", "--stats", named / "stats.h5", "--method", "reap", "--keep", 9, "--categories", words, "--out", tmp_path / "p.json")


# ---- numbers that are too large to weigh by

@pytest.mark.parametrize("weight", ["1e308", "1e13", "1e-13", "1e-320", "inf", "nan", "0", "-1"])
def test_weights_of_statistics_that_would_leave_no_numbers_are_refused(weight, named, tmp_path):
    stats = named / "stats.h5"
    mdp.refuse(1, 2, r"--stats .*: the weight must be a positive number \(1e-12 to 1e12\)", "plan", "--stats", f"{stats}:{weight}", "--method",
               "reap", "--keep", 9, "--out", tmp_path / "p.json")


def test_the_largest_weights_decide_like_any_others(named, tmp_path):
    plans = {}
    for name, words in (("one", ["--stats", named / "stats.h5", "--categories", "a"]),
                        ("most", ["--stats", f"{named / 'stats.h5'}:1e12", "--categories", "a:1e12"]),
                        ("least", ["--stats", f"{named / 'stats.h5'}:1e-12", "--categories", "a:1e-12"])):
        mdp.succeed(1, "plan", *words, "--method", "reap", "--keep", 9, "--out", tmp_path / name)
        plans[name] = [[one["from"] for one in layer["experts"]] for layer in mdp.read_json(tmp_path / name)["layers"]]
    assert plans["one"] == plans["most"] == plans["least"]


@pytest.mark.parametrize("speed", ["1e308", "1e-320", "0"])
def test_speeds_that_nothing_has_are_refused(speed, named, tmp_path):
    mdp.refuse(1, 2, r"--gflops-per-rank .* is not a number above 0", "observe", "--model", MODEL, "--tokens", named / "tokens.h5", "--dry-run", "--json",
               "--gflops-per-rank", speed, "--out", tmp_path / "s.h5")
