"""Experts with fewer neurons: chosen as the reference chooses, stored where each family stores them, loaded by transformers."""
import json

import h5py
import numpy as np
import pytest

import families
import mdp

RANKS = [1, 2, 3, 4, 8]
# family, neurons that stay: with fp8 a ragged last block of 32 x 32, with MXFP4 whole runs of 32 codes
FAMILIES = {"mixtral": 40, "mixtral_bf16": 0.5, "deepseek_v2_group": 0.5, "deepseek_v3_fp8": 0.5, "gpt_oss": 0.5, "gpt_oss_mxfp4": 32, "granitemoe": 0.5,
            "olmoe": 0.75, "phimoe": 0.5, "ernie4_5_moe": 0.5, "qwen2_moe": 0.5, "qwen3_moe_bf16": 0.5, "minimax_m2": 0.5, "glm4_moe": 0.5}


def random_tokens(model, path, n=20):
    vocabulary, random = mdp.read_json(model / "config.json").get("vocab_size"), np.random.default_rng(3)
    return mdp.write_tokens(path, {"a": [random.integers(vocabulary or 100, size=50) for _ in range(n)]})


def observe(model, folder, n=20):
    tokens = random_tokens(model, folder / "t.h5", n)
    mdp.succeed(2, "observe", "--model", model, "--tokens", tokens, "--neuron-scores", "--out", folder / "s.h5", "--quiet")
    return tokens


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A folder with statistics of the golden mixtral, and the tokens that they are of."""
    folder = tmp_path_factory.mktemp("seen")
    observe(mdp.GOLDEN / "mixtral", folder)
    return folder


def plan(folder, out, *words):
    return mdp.succeed(1, "plan", "--stats", folder / "s.h5", "--out", out, *words)


def merge(ranks, model, plan_path, out, *words):
    return mdp.succeed(ranks, "merge", "--model", model, "--plan", plan_path, "--out", out, "--quiet", *words)


def kept(expert):
    """Numbers of the neurons that an expert of a plan keeps."""
    return [4 * i + j for i, digit in enumerate(expert["neurons"]) for j in range(4) if int(digit, 16) >> j & 1]


def load(folder):
    from safetensors.torch import load_file
    return {name: value.float().numpy() for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def parts_of(family, tensors, layer, expert):
    """gate, up [f, d], down [d, f] and the biases of an expert as the family stores them in floating point."""
    if family == "gpt_oss":
        key = f"model.layers.{layer}.mlp.experts."
        both, bias = tensors[key + "gate_up_proj"][expert], tensors[key + "gate_up_proj_bias"][expert]
        return {"gate": both[:, 0::2].T, "up": both[:, 1::2].T, "down": tensors[key + "down_proj"][expert].T, "gate_bias": bias[0::2][:, None],
                "up_bias": bias[1::2][:, None], "down_bias": tensors[key + "down_proj_bias"][expert][:, None]}
    if family == "granitemoe":
        key = f"model.layers.{layer}.block_sparse_moe."
        both = tensors[key + "input_linear.weight"][expert]
        return {"gate": both[: len(both) // 2], "up": both[len(both) // 2 :], "down": tensors[key + "output_linear.weight"][expert]}
    key, names = (f"model.layers.{layer}.block_sparse_moe.experts.{expert}.", ("w1", "w3", "w2")) if family.startswith("mixtral") else (
        f"model.layers.{layer}.mlp.experts.{expert}.", ("gate_proj", "up_proj", "down_proj"))
    return {part: tensors[f"{key}{name}.weight"] for part, name in zip(("gate", "up", "down"), names)}


# ---- which neurons


def test_kept_neurons_are_those_of_the_reference(tmp_path):
    model = mdp.GOLDEN / "mixtral"
    mdp.succeed(2, "observe", "--model", model, "--tokens", mdp.golden_tokens("mixtral", tmp_path / "t.h5"), "--neuron-scores", "--out", tmp_path / "s.h5")
    with h5py.File(model / "methods.h5") as methods:
        inside = methods["layer1/inside"]
        scores = {name: inside[f"neurons/{name}"][...] for name in ("enp", "act")}
        number, wanted = int(inside["expert"][()]), inside["compensate/kept"][...]
    for name, score in scores.items():
        plan(tmp_path, tmp_path / f"{name}.json", "--method", name, "--keep-neurons", 40)
        experts = mdp.read_json(tmp_path / f"{name}.json")["layers"][1]["experts"]
        assert [e["from"] for e in experts] == [[e] for e in range(8)]
        for expert, value in zip(experts, score):
            order = np.argsort(-value, kind="stable")
            if value[order[39]] - value[order[40]] > 1e-5 * np.abs(value).max():
                assert kept(expert) == sorted(order[:40].tolist())
    assert kept(mdp.read_json(tmp_path / "enp.json")["layers"][1]["experts"][number]) == wanted.tolist()


@pytest.mark.parametrize("words, width", [(["--keep-neurons", "0.75"], 60), (["--keep-neurons", "0.75", "--width-multiple-of", "32"], 32), (["--keep-neurons", "7"], 7),
                                          (["--keep-neurons", "1"], None)])
def test_the_width_is_what_was_asked_for(words, width, seen, tmp_path):
    plan(seen, tmp_path / "p.json", "--neurons", "act", "--method", "reap", "--keep", 6, *words)
    found = mdp.read_json(tmp_path / "p.json")
    assert {len(layer["experts"]) for layer in found["layers"]} == {6}
    experts = [e for layer in found["layers"] for e in layer["experts"]]
    if width:
        assert {len(kept(e)) for e in experts} == {width} and {e["action"] for e in experts} == {"neurons"}
        assert found["recipe"]["neurons"]["keep"] == width and found["recipe"]["neurons"]["score"] == "act"
    else:
        assert {e["action"] for e in experts} == {"keep"} and found["recipe"]["neurons"]["keep"] == 80


# ---- what becomes of them


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_measured_is_what_is_written_in_every_type(family, tmp_path):
    model = mdp.GOLDEN / family
    tokens = observe(model, tmp_path)
    plan(tmp_path, tmp_path / "p.json", "--method", "enp", "--keep-neurons", FAMILIES[family])
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "q.json", "--tokens", tokens, "--out", tmp_path / "e.json", "--quiet")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "both", "--quiet")
    cut = mdp.measures(tmp_path / "e.json")[1]
    assert cut["kl_to_original"]["total"] > 0
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == cut["nll"]
    assert sum(f.stat().st_size for f in (tmp_path / "out" / "hf").glob("*.safetensors")) < sum(f.stat().st_size for f in model.glob("*.safetensors"))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "granitemoe", "olmoe", "qwen3_moe_bf16"])
def test_every_value_stands_where_the_family_stores_it(family, tmp_path):
    """Experts dropped and cut: rows and columns of the original, to the bit."""
    model = mdp.GOLDEN / family
    observe(model, tmp_path)
    plan(tmp_path, tmp_path / "p.json", "--method", "reap", "--keep-ratio", 0.75, "--neurons", "enp", "--keep-neurons", 0.5)
    merge(3, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.succeed(1, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "safetensors", "--quiet")
    before, after = load(model), load(tmp_path / "out" / "hf")
    for layer in mdp.read_json(tmp_path / "q.json")["layers"]:
        for number, expert in enumerate(layer["experts"]):
            old, new = parts_of(family, before, layer["layer"], expert["from"][0]), parts_of(family, after, layer["layer"], number)
            for part, value in old.items():
                wanted = value[:, kept(expert)] if part == "down" else value if part == "down_bias" else value[kept(expert)]
                assert np.array_equal(new[part], wanted), (layer["layer"], number, part)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "granitemoe", "qwen3_moe", "deepseek_v3"])
def test_transformers_loads_the_result_and_computes_the_same(family, tmp_path):
    model = mdp.GOLDEN / family
    tokens = observe(model, tmp_path)
    mdp.succeed(2, "run", "--model", model, "--tokens", tokens, "--method", "act", "--keep-neurons", 0.5, "--format", "safetensors", "--out", tmp_path / "run",
                "--quiet")
    before, after = (mdp.read_json(folder / "config.json") for folder in (model, tmp_path / "run" / "hf"))
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed <= {"intermediate_size", "moe_intermediate_size", "n_shared_experts", "num_nextn_predict_layers"} and changed
    seen_by_both = families.write_tokens(mdp.read_json(model / "config.json")["vocab_size"], tmp_path / "text.h5")
    families.assert_same_logits(tmp_path / "run" / "hf", seen_by_both, tmp_path, 2)


def test_the_same_bytes_on_any_number_of_ranks(tmp_path):
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [np.random.default_rng(1).integers(1000, size=100) for _ in range(6)]})
    found = set()
    for ranks in RANKS:
        out = tmp_path / str(ranks)
        mdp.succeed(ranks, "run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep", 6, "--neurons", "enp",
                    "--keep-neurons", 0.75, "--refit", "joint", "--ridge", "1e-2", "--format", "hdf5", "--quiet", "--out", out)
        found.add(tuple((out / name).read_bytes() for name in ("plan.json", "plan.h5", "model.h5")))
    assert len(found) == 1
    mdp.succeed(2, "verify", tmp_path / "2" / "model.h5", "--model", mdp.DEMO, "--quiet")
    mdp.succeed(2, "export", "--model", tmp_path / "2" / "model.h5", "--out", tmp_path / "hf", "--quiet")
    mdp.succeed(2, "eval", "--model", tmp_path / "hf", "--tokens", tokens, "--out", tmp_path / "e.json", "--quiet")
    assert mdp.measures(tmp_path / "e.json")[0]["nll"] == mdp.measures(tmp_path / "2" / "eval.json")[1]["nll"]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3_fp8", "gpt_oss"])
def test_cut_experts_are_refitted(family, tmp_path):
    """What was measured after both is what is written, and nearer to the original than the cut alone."""
    model = mdp.GOLDEN / family
    tokens = observe(model, tmp_path, 40)
    plan(tmp_path, tmp_path / "p.json", "--method", "act", "--keep-neurons", 0.5)
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.succeed(3, "refit", "--model", model, "--plan", tmp_path / "q.json", "--tokens", tokens, "--ridge", "1e-2", "--out", tmp_path / "r.json", "--quiet")
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "q.json", "--plan", tmp_path / "r.json", "--tokens", tokens, "--out", tmp_path / "e.json",
                "--quiet")
    _, cut, fitted = mdp.measures(tmp_path / "e.json")
    assert fitted["kl_to_original"]["total"] < 0.8 * cut["kl_to_original"]["total"]
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "r.json", "--out", tmp_path / "out", "--format", "both", "--quiet")
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == fitted["nll"]


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [np.random.default_rng(2).integers(1000, size=100) for _ in range(6)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--method", "enp", "--keep-neurons", 0.5, "--refit", "diagonal", "--ridge", "1e-2", "--format", "hdf5",
             "--quiet"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    whole = mdp.results(tmp_path / "whole"), (tmp_path / "whole" / "plan.h5").read_bytes()
    for stop in (3, 8, 14):
        out = tmp_path / str(stop)
        assert mdp.run(3, *words, "--out", out, "--stop-at", stop).codes == [75] * 3
        mdp.succeed(stop % 3 + 1, *words, "--out", out, "--resume")
        assert (mdp.results(out), (out / "plan.h5").read_bytes()) == whole, stop


def test_dry_run_foretells_the_result(tmp_path):
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"a": [np.random.default_rng(2).integers(1000, size=100) for _ in range(20)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "enp", "--keep-neurons", 0.5, "--format", "hdf5", "--out",
             tmp_path / "out"]
    estimate = json.loads(mdp.succeed(2, *words, "--dry-run", "--json").stdout)
    assert {"observe", "eval", "merge"} <= {p["pass"] for p in estimate["passes"]}
    mdp.succeed(2, *words, "--quiet", "--profile")
    written = sum((tmp_path / "out" / name).stat().st_size for name in ("model.h5", "plan.h5", "stats.h5"))
    assert 0.8 * written <= estimate["bytes_written"] <= 1.2 * written
    done = sum(phase["flop"]["total"] for path in (tmp_path / "out").glob("*profile*.json") for p in mdp.read_json(path)["passes"]
               for phase in p["phases"].values())
    assert done == pytest.approx(estimate["flop"], rel=0.05)


# ---- what cannot be


@pytest.mark.parametrize("words, sentence", [
    (["--keep-neurons", "0"], "neither a number of neurons nor a part of them"),
    (["--keep-neurons", "-0.5"], "neither a number of neurons nor a part of them"),
    (["--keep-neurons", "half"], "neither a number of neurons nor a part of them"),
    (["--keep-neurons", "1.5"], "it is a number of neurons, which is whole"),
    (["--keep-neurons", "81"], "--keep-neurons 81 is more than the 80 neurons of an expert"),
    (["--keep-neurons", "0.5", "--width-multiple-of", "64"], "rounded down to a multiple of 64 .--width-multiple-of. none"),
    (["--keep-neurons", "0.001"], "leaves 0 of 80 neurons"),
    ([], "--neurons needs --keep-neurons"),
    (["--keep-neurons", "0.5", "--merge", "mean", "--keep", "4"], "--merge does not go with it"),
    (["--keep-neurons", "0.5", "--pruned-route", "zero", "--keep", "4"], "does not go with it"),
    (["--keep-neurons", "0.5", "--categories", "a:2"], "kept for all categories together"),
])
def test_what_cannot_be_cut_is_refused_in_one_sentence(words, sentence, seen, tmp_path):
    mdp.refuse(2, 2, sentence, "plan", "--stats", seen / "s.h5", "--neurons", "enp", "--method", "frequency", "--out", tmp_path / "p.json", *words)
    assert not (tmp_path / "p.json").exists()


def test_a_run_refuses_before_it_observes(tmp_path):
    tokens = random_tokens(mdp.GOLDEN / "mixtral", tmp_path / "t.h5")
    for words, sentence in [(["--keep-neurons", 81], "more than the 80 neurons"), (["--keep-neurons", 0.5, "--width-multiple-of", 64], "none")]:
        mdp.refuse(2, 2, sentence, "run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--method", "enp", "--out", tmp_path / "out", *words)
    tokens = random_tokens(mdp.GOLDEN / "gpt_oss_mxfp4", tmp_path / "u.h5")
    mdp.refuse(2, 2, "keep a multiple of 32", "run", "--model", mdp.GOLDEN / "gpt_oss_mxfp4", "--tokens", tokens, "--method", "enp", "--keep-neurons", 40, "--out",
               tmp_path / "out")
    mdp.refuse(2, 2, "--keep-neurons has no meaning without --neurons", "plan", "--stats", tmp_path / "s.h5", "--method", "reap", "--keep", 4, "--keep-neurons", 8,
               "--out", tmp_path / "p.json")


def first(plan):
    return plan["layers"][0]["experts"][0]


@pytest.mark.parametrize("change, sentence", [
    (lambda p: first(p).update(neurons="f" * 19), "the model's experts have 80 neurons, which are 20 digits"),
    (lambda p: first(p).update(neurons="0" * 20), "that keep one or more"),
    (lambda p: first(p).update(neurons="F" * 20), "must be hex digits"),
    (lambda p: first(p).update(neurons="f" + "0" * 19), "so all are cut to the same number of neurons"),
    (lambda p: (first(p).pop("neurons"), first(p).update(action="keep")), "and others are"),
    (lambda p: first(p).update(action="keep"), "action 'keep' has no 'neurons'"),
])
def test_bad_plans_are_refused_in_one_sentence(change, sentence, seen, tmp_path):
    model = mdp.GOLDEN / "mixtral"
    plan(seen, tmp_path / "p.json", "--method", "enp", "--keep-neurons", 0.5)
    found = mdp.read_json(tmp_path / "p.json")
    change(found)
    (tmp_path / "p.json").write_text(json.dumps(found))
    mdp.refuse(2, 65, sentence, "merge", "--model", model, "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json")


def test_what_is_not_cut_yet_is_refused(seen, tmp_path):
    model, tokens = mdp.GOLDEN / "mixtral", seen / "t.h5"
    plan(seen, tmp_path / "p.json", "--method", "enp", "--keep-neurons", 0.5)
    evaluate = ["eval", "--model", model, "--tokens", tokens, "--out", tmp_path / "e.json", "--plan"]
    mdp.refuse(2, 2, "the command merge makes", *evaluate, tmp_path / "p.json")
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    found = mdp.read_json(tmp_path / "q.json")
    del first(found)["arrays"]["up"]
    (tmp_path / "q.json").write_text(json.dumps(found))
    mdp.refuse(2, 65, "has no 'up' for it", *evaluate, tmp_path / "q.json")


def test_cut_experts_are_not_trained_or_widened(seen, tmp_path):
    model, tokens, fp8 = mdp.GOLDEN / "mixtral", seen / "t.h5", mdp.GOLDEN / "deepseek_v3_fp8"
    plan(seen, tmp_path / "p.json", "--method", "enp", "--keep-neurons", 0.5)
    wide = ["--changed-type", "bf16", "--out", tmp_path / "w.json"]
    mdp.refuse(2, 2, "does not go with cut experts", "merge", "--model", model, "--plan", tmp_path / "p.json", *wide)
    mdp.refuse(2, 2, "does not go with cut experts", "run", "--model", fp8, "--tokens", mdp.golden_tokens("deepseek_v3_fp8", tmp_path / "t8.h5"),
               "--method", "enp", "--keep-neurons", 0.5, *wide)
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.refuse(2, 2, "is cut, and such experts cannot be trained", "recover", "--model", model, "--plan", tmp_path / "q.json", "--tokens", tokens,
               "--out", tmp_path / "r.json")
