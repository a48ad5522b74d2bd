"""Neurons of experts that go join those of experts that stay (DERN): against float64 numpy, on any number of ranks, in every stored type."""
import json

import h5py
import numpy as np
import pytest

import mdp

RANKS = [1, 2, 3, 4, 8]


def stats_of(family, folder):
    tokens = mdp.golden_tokens(family, folder / "t.h5")
    mdp.succeed(2, "observe", "--model", mdp.GOLDEN / family, "--tokens", tokens, "--out", folder / "stats.h5", "--quiet")
    return folder / "stats.h5"


@pytest.fixture(scope="module", params=["mixtral", "qwen2_moe"])
def observed(request, tmp_path_factory):
    return request.param, stats_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def of_mixtral(tmp_path_factory):
    return stats_of("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.mark.parametrize("alpha", ["0.6", "0.25"])
def test_experts_are_those_of_the_reference(alpha, observed, tmp_path):
    family, stats = observed
    mdp.succeed(1, "plan", "--stats", stats, "--method", "dern", "--keep-ratio", 0.5, "--dern-alpha", alpha, "--out", tmp_path / "p.json", "--quiet")
    mdp.succeed(3, "merge", "--model", mdp.GOLDEN / family, "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json", "--quiet")
    n_moved = 0
    with h5py.File(mdp.GOLDEN / family / "merge2.h5") as file:
        for at, layer in enumerate(mdp.read_json(tmp_path / "q.json")["layers"]):
            theirs = file[f"dern/alpha-{alpha}/layer{layer['layer']}"]
            assert [e["from"] for e in layer["experts"]] == [[e] for e in theirs["kept"][...]]
            assert np.abs(np.array(layer["mass"]) - theirs["mass"][...]).max() <= 3e-5 * theirs["mass"][...].max()
            for kept in range(len(layer["experts"])):
                n_moved += (theirs["target"][...] == kept).sum()
                for ours, name in [("router", "router"), ("gate", "W_g"), ("up", "W_u"), ("down", "W_d")]:
                    if name not in theirs:
                        continue
                    wanted = theirs[name][kept]
                    assert np.abs(mdp.plan_array(tmp_path / "q.json", at, kept, ours) - wanted).max() <= 3e-5 * np.abs(theirs[name][...]).max(), (layer, kept)
    assert n_moved > 0 or family != "mixtral"


def test_the_same_bytes_on_any_number_of_ranks_also_when_stopped(observed, tmp_path):
    family, stats = observed
    mdp.succeed(1, "plan", "--stats", stats, "--method", "dern", "--keep-ratio", 0.5, "--dern-alpha", "0.25", "--out", tmp_path / "p.json", "--quiet")
    found = set()
    for ranks in RANKS:
        out = tmp_path / f"q-{ranks}.json"
        words = ["merge", "--model", mdp.GOLDEN / family, "--plan", tmp_path / "p.json", "--out", out, "--quiet"]
        if ranks == 3:
            assert mdp.run(2, *words, "--stop-at", 1).codes == [75] * 2
            words.append("--resume")
        mdp.succeed(ranks, *words)
        found.add((out.read_bytes(), out.with_suffix(".h5").read_bytes()))
    assert len(found) == 1


@pytest.mark.parametrize("family", ["deepseek_v3_fp8", "granitemoe", "qwen3_moe_bf16"])
def test_what_was_measured_is_what_is_written_in_every_type(family, tmp_path):
    """Of groups of the router, neurons stay in theirs; experts to which nothing comes stay bit for bit."""
    model = mdp.GOLDEN / family
    tokens = mdp.golden_tokens(family, tmp_path / "t.h5")
    mdp.succeed(2, "run", "--model", model, "--tokens", tokens, "--eval-tokens", tokens, "--method", "dern", "--keep-ratio", 0.5, "--dern-alpha", "0.2", "--format",
                "both", "--out", tmp_path / "out", "--quiet")
    measured = mdp.measures(tmp_path / "out" / "eval.json")[1]
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == measured["nll"]


def first(plan):
    return plan["layers"][0]["experts"][0]


@pytest.mark.parametrize("change, sentence", [
    (lambda p: p["layers"][0].pop("mass"), "so 'mass' must be a list of 8 numbers"),
    (lambda p: p["layers"][0]["mass"].__setitem__(2, -1.0), "the mass of expert 2 is not a number from 0 on"),
    (lambda p: first(p).update(takes_in=1.5), "'takes_in' must be a cosine from -1 to below 1"),
    (lambda p: first(p).update(fit="least-squares"), "do not go together"),
])
def test_bad_plans_are_refused_in_one_sentence(change, sentence, of_mixtral, tmp_path):
    mdp.succeed(1, "plan", "--stats", of_mixtral, "--method", "dern", "--keep", 4, "--out", tmp_path / "p.json", "--quiet")
    plan = mdp.read_json(tmp_path / "p.json")
    change(plan)
    (tmp_path / "p.json").write_text(json.dumps(plan))
    mdp.refuse(2, 65, sentence, "merge", "--model", mdp.GOLDEN / "mixtral", "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json")


def test_what_has_no_meaning_is_refused(of_mixtral, tmp_path):
    words = ["plan", "--stats", of_mixtral, "--method", "soft", "--keep-ratio", 0.5, "--merge", "dern", "--out", tmp_path / "p.json"]
    mdp.refuse(1, 2, "it must be below 1", *words, "--dern-alpha", 1.5)
    mdp.refuse(1, 2, "--dern-alpha has no meaning without --merge dern", *words[:-4], "--out", tmp_path / "p.json", "--dern-alpha", 0.5)
    mdp.refuse(1, 2, "--group has no meaning", *words, "--group", "kmeans")
    tokens = mdp.golden_tokens("gpt_oss", tmp_path / "t.h5")
    mdp.refuse(2, 2, "have biases", "run", "--model", mdp.GOLDEN / "gpt_oss", "--tokens", tokens, "--method", "dern", "--keep-ratio", 0.5, "--out", tmp_path / "out")


def test_dry_run_foretells_memory_and_disk(tmp_path):
    mdp.tool("make-shape-model", "--experts", 4, "--hidden", 256, "--intermediate", 1024, "--layers", 1, "--vocab", 100, "--out", tmp_path / "model")
    mdp.succeed(1, "plan", "--model", tmp_path / "model", "--method", "random", "--keep", 2, "--out", tmp_path / "p.json", "--quiet")
    plan = mdp.read_json(tmp_path / "p.json")
    (layer,) = plan["layers"]
    layer["mass"] = [1.0, 2.0, 3.0, 4.0]
    for expert in layer["experts"]:
        expert.update(action="merge", weights=[1.0], takes_in=-1.0)
    (tmp_path / "p.json").write_text(json.dumps(plan))
    words = ["merge", "--model", tmp_path / "model", "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json", "--quiet"]
    estimate = json.loads(mdp.succeed(1, *words, "--dry-run", "--json").stdout)
    peak = mdp.succeed(1, *words).peaks[0] * 1024
    assert estimate["bytes_written"] <= (tmp_path / "q.h5").stat().st_size <= 1.1 * estimate["bytes_written"]
    assert 0.8 * peak <= estimate["memory_per_rank"] <= 1.4 * peak
