"""`plan --for`: what other software reads, read by json and compared with plans, statistics by h5py, and numpy."""
import json

import h5py
import numpy as np
import pytest

import mdp

MODEL = mdp.GOLDEN / "qwen3_moe"


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("others"), np.random.default_rng(2)
    tokens = mdp.write_tokens(folder / "t.h5", {c: [random.integers(0, 400, 60) for _ in range(2)] for c in ("code", "prose", "x y")})
    mdp.succeed(2, "observe", "--model", MODEL, "--tokens", tokens, "--out", folder / "s.h5", "--quiet")
    return folder / "s.h5"


def plan(stats, out, *words, ranks=1):
    mdp.succeed(ranks, "plan", "--stats", stats, "--out", out, "--overwrite", *words)
    return out


def kept(path):
    return {str(layer["layer"]): [e["from"][0] for e in layer["experts"]] for layer in mdp.read_json(path)["layers"]}


def scores_of(path):
    return {str(layer["layer"]): layer["scores"] for layer in mdp.read_json(path)["layers"]}


@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_keep_list_is_that_of_the_plan(budget, stats, tmp_path):
    words = ["--method", "reap", "--keep", 7, "--budget", budget]
    listed = mdp.read_json(plan(stats, tmp_path / "l.json", *words, "--for", "keep-list", ranks=2))
    made = mdp.read_json(plan(stats, tmp_path / "p.json", *words))
    assert listed["layers"] == kept(tmp_path / "p.json") and listed["format"] == "moe-dist-prune keep-list"
    assert listed["recipe"] == made["recipe"] and listed["model"]["fingerprint"] == made["model"]["fingerprint"]


def test_vllm_ascend_gets_all_experts_in_order_a_layer_a_line(stats, tmp_path):
    result = mdp.succeed(2, "plan", "--stats", stats, "--method", "ean", "--keep", 5, "--for", "vllm-ascend", "--out", tmp_path / "l.jsonl")
    plan(stats, tmp_path / "p.json", "--method", "ean", "--keep", 5)
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    stay, scores = kept(tmp_path / "p.json"), scores_of(tmp_path / "p.json")
    assert [list(line) for line in lines] == [[layer] for layer in stay]
    for line in lines:
        ((layer, order),) = line.items()
        assert sorted(order) == list(range(16)) and sorted(order[:5]) == stay[layer]
        assert order == sorted(range(16), key=lambda e: (-scores[layer][e], -e))
    assert '"expert_prune_ratio": 0.6875' in result.stderr
    mdp.refuse(1, 2, "one ratio for all layers", "plan", "--stats", stats, "--method", "ean", "--keep", 5, "--budget", "global", "--for", "vllm-ascend", "--out", tmp_path / "n")


def test_scores_are_formulas_of_the_statistics_and_need_no_number(stats, tmp_path):
    found = mdp.read_json(plan(stats, tmp_path / "s.json", "--method", "reap", "--for", "scores"))
    assert set(mdp.CRITERIA) | {"characteristic"} <= set(found["layers"]["0"]["scores"]) and "random" not in found["layers"]["0"]["scores"]
    with h5py.File(stats) as file:
        for layer, group in file["layers"].items():
            ours, counts = found["layers"][str(int(layer))], group["counts"][...].sum(0)
            assert ours["counts"] == counts.tolist() == ours["scores"]["frequency"]
            np.testing.assert_allclose(ours["scores"]["ean"], group["norm_sum"][...].sum(0), rtol=1e-7)
            np.testing.assert_allclose(ours["scores"]["reap"], group["gate_norm_sum"][...].sum(0) / np.maximum(counts, 1), rtol=1e-7)
    for method in ("weighted-ean", "characteristic", "tenp"):
        theirs = scores_of(plan(stats, tmp_path / "p.json", "--method", method, "--keep", 4))
        assert {layer: one["scores"][method] for layer, one in found["layers"].items()} == theirs
    weighted = mdp.read_json(plan(stats, tmp_path / "w.json", "--method", "reap", "--categories", "code:3,prose", "--for", "scores"))
    theirs = scores_of(plan(stats, tmp_path / "p.json", "--method", "reap", "--categories", "code:3,prose", "--keep", 4))
    assert {layer: one["scores"]["reap"] for layer, one in weighted["layers"].items()} == theirs


def places(scores, among):
    """Share of the others that are less; of equal ones half."""
    return [((among < s).sum() + 0.5 * ((among == s).sum() - 1)) / (len(among) - 1) for s in scores]


def test_precision_places_experts_among_others(stats, tmp_path):
    found = mdp.read_json(plan(stats, tmp_path / "s.json", "--method", "frequency", "--for", "precision"))["layers"]
    assert {layer: one["scores"] for layer, one in found.items()} == scores_of(plan(stats, tmp_path / "p.json", "--method", "frequency", "--keep", 4))
    whole = np.concatenate([one["scores"] for one in found.values()])
    assert len(set(whole)) < len(whole)  # ties are among them
    for one in found.values():
        np.testing.assert_allclose(one["place_in_layer"], places(one["scores"], np.array(one["scores"])), rtol=1e-8)
        np.testing.assert_allclose(one["place_in_model"], places(one["scores"], whole), rtol=1e-8)


def test_per_category_has_the_plan_of_each_and_what_they_share(stats, tmp_path):
    found = mdp.read_json(plan(stats, tmp_path / "c.json", "--method", "reap", "--keep", 6, "--for", "per-category", ranks=3))
    assert list(found["categories"]) == ["code", "prose", "x y"]
    theirs = {c: kept(plan(stats, tmp_path / "p.json", "--method", "reap", "--keep", 6, "--categories", c)) for c in found["categories"]}
    assert {c: one["keep"] for c, one in found["categories"].items()} == theirs
    for layer in found["keep_in_all"]:
        lists = {c: set(one[layer]) for c, one in theirs.items()}
        assert found["keep_in_all"][layer] == sorted(set.intersection(*lists.values()))
        for c, one in found["categories"].items():
            assert one["keep_alone"][layer] == sorted(lists[c] - set.union(*(lists[d] for d in lists if d != c)))


@pytest.mark.parametrize("sentence, words", [
    ("--merge and --pruned-route zero do not go", ["--method", "frequency", "--merge", "mean", "--keep", 4, "--for", "keep-list"]),
    ("leave --top-k out", ["--method", "frequency", "--top-k", 2, "--for", "keep-list"]),
    ("does not tell categories apart", ["--method", "characteristic", "--keep", 4, "--for", "per-category"]),
    ("--categories and --worst-category do not go", ["--method", "reap", "--keep", 4, "--categories", "code", "--for", "per-category"]),
    ("needs --keep N", ["--method", "reap", "--for", "keep-list"]),
    ("'keep-lists'", ["--method", "reap", "--keep", 4, "--for", "keep-lists"]),
])
def test_what_cannot_be_said_is_refused(sentence, words, stats, tmp_path):
    mdp.refuse(2, 2, sentence, "plan", "--stats", stats, *words, "--out", tmp_path / "x.json")
