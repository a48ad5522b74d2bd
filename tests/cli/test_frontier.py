"""`frontier`: many plans as streams of a few forwards give what each gives by itself, on any number of ranks and in any lots."""
import json
import re

import h5py
import numpy as np
import pytest
from safetensors import safe_open

import mdp

RANKS = [1, 2, 3, 4, 8]
METHODS = ["reap", "seer", "aimer", "random"]
RATIOS = [0.1, 0.2, 0.3, 0.4, 0.7, 0.9]
MEASURES = ["nll", "perplexity", "kl_to_original", "top1_agreement", "exact_match", "layer_error"]
INSIDE = re.compile(r'<script type="application/json" id="frontier">(.*?)</script>', re.S)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Text, statistics and a frontier of the demo, by one rank."""
    folder = tmp_path_factory.mktemp("frontier")
    with h5py.File(mdp.EVAL) as text:
        mdp.write_tokens(folder / "t.h5", {c: text[f"{c}/input_ids"][:6 * 256].reshape(6, 256)[:, :60] for c in ("json", "prose")})
    mdp.succeed(2, "observe", "--model", mdp.DEMO, "--tokens", folder / "t.h5", "--out", folder / "s.h5", "--quiet")
    return run(1, folder, folder / "f.json", "--within", "30%", "--quiet")


def words(folder, out):
    return ["frontier", "--stats", folder / "s.h5", "--model", mdp.DEMO, "--eval-tokens", folder / "t.h5", "--methods", ",".join(METHODS),
            "--ratios", ",".join(map(str, RATIOS)), "--out", out]


def run(ranks, folder, out, *more):
    mdp.succeed(ranks, *words(folder, out), *more)
    return folder


def points(folder):
    return mdp.read_json(folder / "f.json")["points"]


def size_of(path):
    """Bytes and values of the tensors in a Hugging Face folder."""
    width, n_byte, n_value = {"BF16": 2, "F32": 4}, 0, 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():
                part = tensors.get_slice(name)
                n_value += np.prod(part.get_shape())
                n_byte += np.prod(part.get_shape()) * width[part.get_dtype()]
    return n_byte, n_value


@pytest.mark.parametrize("method, ratio", [("reap", 0.4), ("seer", 0.4), ("aimer", 0.7), ("random", 0.1)])
def test_a_point_is_what_plan_eval_and_apply_make_of_it(method, ratio, found, tmp_path):
    point = next(p for p in points(found) if p["method"] == method and p["ratio"] == ratio)
    mdp.succeed(1, "plan", "--stats", found / "s.h5", "--model", mdp.DEMO, "--method", method, "--prune-ratio", ratio, "--out", tmp_path / "p.json")
    mdp.succeed(2, "eval", "--model", mdp.DEMO, "--plan", tmp_path / "p.json", "--tokens", found / "t.h5", "--out", tmp_path / "e.json")
    alone = mdp.read_json(tmp_path / "e.json")["streams"][1]
    assert {name: point[name] for name in MEASURES} == {name: alone[name] for name in MEASURES}
    mdp.succeed(1, "apply", "--model", mdp.DEMO, "--plan", tmp_path / "p.json", "--format", "hdf5", "--out", tmp_path / "m")
    mdp.succeed(1, "export", "--model", tmp_path / "m" / "model.h5", "--out", tmp_path / "hf", *(["--non-uniform", "per-layer-config"] if method == "seer" else []))
    assert (point["bytes"], point["parameters"]) == size_of(tmp_path / "hf")
    kept = [len(layer["experts"]) for layer in mdp.read_json(tmp_path / "p.json")["layers"]]
    assert point["experts"] == sum(kept) and point["experts_of_a_layer"] == [min(kept), max(kept)]


def test_points_are_all_that_was_asked_for_and_the_undominated_ones_marked(found):
    all_points = points(found)
    assert [(p["method"], p["ratio"]) for p in all_points[1:]] == [(m, r) for m in METHODS for r in RATIOS]
    for p in all_points[1:]:
        assert ("refused" in p) == (p["ratio"] == 0.9), p  # one expert is fewer than a token uses
    assert all("2 that each token uses" in p["refused"] for p in all_points if "refused" in p)
    there = [p for p in all_points if "refused" not in p]
    for p in there:
        mine = (p["bytes"], p["perplexity"]["total"])
        beaten = any(q["bytes"] <= mine[0] and q["perplexity"]["total"] <= mine[1] and (q["bytes"], q["perplexity"]["total"]) != mine for q in there)
        assert p["undominated"] == (not beaten), p
        if p["same_as"] is not None:
            same = all_points[p["same_as"]]
            assert same["same_as"] is None and all(p[k] == same[k] for k in MEASURES + ["bytes"]) and p["keep"] == same["keep"], p
    assert sum(p["same_as"] is None for p in there) == 1 + 4 * len(METHODS)  # 0.2 and 0.3 keep as many


def test_within_names_the_smallest_result(found, tmp_path):
    within, all_points = mdp.read_json(found / "f.json")["within"], points(found)
    near = [(p["bytes"], p["perplexity"]["total"]) for p in all_points if "refused" not in p and p["perplexity"]["total"] <= 1.3 * all_points[0]["perplexity"]["total"]]
    best = all_points[within["point"]]
    assert within["allowed"] == 0.3 and (best["bytes"], best["perplexity"]["total"]) == min(near) and best["method"]
    said = mdp.succeed(1, *words(found, tmp_path / "n.json"), "--within", 0.3).stdout
    line = next(line for line in said.splitlines() if line.startswith("smallest within 30%"))
    assert f"{best['method']} {best['ratio']:.4g}" in line
    command = next(line for line in said.splitlines() if line.startswith("next ")).split()[2:]
    mdp.succeed(1, *command[:-1], tmp_path / "next.json")  # what is proposed does
    said = mdp.succeed(1, *words(found, tmp_path / "m.json"), "--within", "0.0001%").stdout
    assert "none but the original" in said and "next" not in said


def foretold(*what):
    return json.loads(mdp.succeed(2, *what, "--dry-run", "--json", "--gflops-per-rank", 20).stdout)


@pytest.fixture(scope="module")
def little(found):
    """Words for memory with which no single lot can be made, and what a forward of one plan is foretold to be."""
    mdp.succeed(1, "plan", "--stats", found / "s.h5", "--method", "reap", "--keep", 4, "--out", found / "p.json")
    one = foretold("eval", "--model", mdp.DEMO, "--plan", found / "p.json", "--tokens", found / "t.h5", "--out", found / "e.json")
    most = foretold(*words(found, found / "g.json"))
    assert len(most["passes"]) == 1 and most["bytes_read"] == one["bytes_read"] and most["memory_per_rank"] > one["memory_per_rank"] + 8e6
    return ["--memory", (one["memory_per_rank"] + most["memory_per_rank"]) // 2], one


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_any_ranks_and_lots_give_the_same_bytes(ranks, found, little, tmp_path):
    """Lots follow from memory, and do not show."""
    mdp.succeed(ranks, *words(found, tmp_path / "f.json"), "--within", "30%", *little[0], "--quiet")
    for name in ("f.json", "f.html"):
        assert (tmp_path / name).read_bytes() == (found / name).read_bytes(), name


def test_lots_are_foretold_and_each_reads_the_model_once(found, little, tmp_path):
    """Whole plans are dealt to forwards of one batch each; every forward reads what one of a single plan reads."""
    more, one = little
    told = foretold(*words(found, tmp_path / "f.json"), *more)
    names = [lot["pass"] for lot in told["passes"]]
    assert len(names) > 1 and names == [f"eval {i + 1}/{len(names)}" for i in range(len(names))] and told["memory_per_rank"] <= more[1]
    assert {lot["bytes_read"] for lot in told["passes"]} == {one["bytes_read"]}
    mdp.succeed(2, *words(found, tmp_path / "f.json"), *more, "--profile", "--quiet")
    done = mdp.read_json(tmp_path / "f.json.profile.json")["passes"]
    assert [lot["pass"] for lot in done] == [f"eval {i + 1}/{len(done)}" for i in range(len(done))] and len(done) > 1
    most = max(lot["all_ranks"]["bytes_read"] for lot in told["passes"])  # what a rank begins with is not the same from run to run
    for lot in done:
        assert lot["all"]["bytes_read"]["total"] <= 1.1 * most
    assert len(done) != len(names) or [lot["all"]["flop"]["total"] for lot in done] == [lot["all_ranks"]["flop"] for lot in told["passes"]]


@pytest.mark.parametrize("steps", [12])
def test_stopped_anywhere_it_goes_on_on_other_ranks_in_the_lots_that_it_began_with(steps, found, little, tmp_path):
    out, said, ranks = tmp_path / "f.json", 0, [2, 3, 1, 2]
    for turn in range(30):
        # more memory would make fewer lots
        more = little[0] if turn == 0 else ["--memory", "400MB", "--resume"]
        result = mdp.run(ranks[turn % 4], *words(found, out), "--within", "30%", *more, "--stop-at", steps)
        if set(result.codes) == {0}:
            break
        assert set(result.codes) == {75} and not out.exists(), str(result)
        said += 1
    assert said > 0 and out.read_bytes() == (found / "f.json").read_bytes()
    again = mdp.succeed(2, *words(found, out), "--within", "30%", "--resume", "--json")
    assert "nothing is left to do" in again.stderr and json.loads(again.stdout)["points"] == points(found)


def test_other_statistics_are_not_gone_on_with(found, tmp_path):
    mdp.write_tokens(tmp_path / "t.h5", {"a": [list(range(100))]})
    mdp.succeed(1, "observe", "--model", mdp.DEMO, "--tokens", tmp_path / "t.h5", "--out", tmp_path / "other.h5", "--quiet")
    assert set(mdp.run(1, *words(found, tmp_path / "f.json"), "--stop-at", 3).codes) == {75}
    changed = [tmp_path / "other.h5" if w == found / "s.h5" else w for w in words(found, tmp_path / "f.json")]
    mdp.refuse(2, 65, r"--resume: .* of other statistics .*--overwrite", *changed, "--resume")


def test_page_holds_the_json_and_loads_nothing(found):
    page = (found / "f.html").read_text(encoding="utf-8")
    assert json.loads(INSIDE.search(page).group(1)) == mdp.read_json(found / "f.json")
    assert not re.search(r"(src|href)=|url\(|@import", page)


@pytest.mark.parametrize("family, ratio", [("deepseek_v2_group", 0.25), ("granitemoe", 0.5)])
def test_groups_of_the_router_keep_numbers_that_they_can(family, ratio, tmp_path):
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [list(range(1, 60))]})
    mdp.succeed(2, "frontier", "--model", mdp.GOLDEN / family, "--eval-tokens", tokens, "--methods", "aimer", "--ratios", f"{ratio},0.99", "--out", tmp_path / "f.json")
    _, kept, gone = points(tmp_path)
    mdp.succeed(1, "plan", "--model", mdp.GOLDEN / family, "--method", "aimer", "--prune-ratio", ratio, "--out", tmp_path / "p.json")
    assert kept["keep"] == len(mdp.read_json(tmp_path / "p.json")["layers"][0]["experts"]) and "that each token uses" in gone["refused"]


@pytest.mark.parametrize("code, sentence, change", [
    (2, "unknown method 'reep'. Did you mean 'reap'", {"--methods": "reep"}),
    (2, "'reap' twice", {"--methods": "reap,ean,reap"}),
    (2, "'dek' makes experts of several", {"--methods": "reap,dek"}),
    (2, "'proficiency' runs the model", {"--methods": "proficiency"}),
    (2, "'router-norm-change' compares two models", {"--methods": "router-norm-change"}),
    (2, "--ratios 0.5,0.4: expected", {"--ratios": "0.5,0.4"}),
    (2, "--ratios 0:0.8:8: expected", {"--ratios": "0:0.8:8"}),
    (2, "--ratios 0.1:0.8:1: expected", {"--ratios": "0.1:0.8:1"}),
    (2, "--ratios 0.5x: expected", {"--ratios": "0.5x"}),
    (2, "nothing to measure; method 'reap' with ratio 0.9: keeps 1 of 8", {"--ratios": "0.9"}),
    (2, "no ratio is large enough", {"--ratios": "0.01"}),
    (2, "--within much: expected", {"--within": "much"}),
    (2, "--normalise layer-sum cannot scale", {"--methods": "aimer", "--normalise": "layer-sum", "--budget": "global"}),
    (2, "--memory 1.0 MB is too little", {"--memory": "1MB"}),
])
def test_what_cannot_be_is_refused(code, sentence, change, found, tmp_path):
    told = {"--methods": "reap", "--ratios": "0.5", **change}
    more = [word for pair in told.items() for word in pair]
    mdp.refuse(2, code, re.escape(sentence).replace("'", "."), *words(found, tmp_path / "f.json")[:7], *more, "--out", tmp_path / "f.json")
    assert list(tmp_path.iterdir()) == []


def test_methods_of_statistics_need_them(found, tmp_path):
    mdp.refuse(2, 2, "'reap' needs --stats", "frontier", "--model", mdp.DEMO, "--eval-tokens", found / "t.h5", "--methods", "random,reap", "--out", tmp_path / "f.json")
