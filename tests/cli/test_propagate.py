"""--propagate pruned against the slow way: prune a layer, write the model, observe it, go on to the next layer."""
import json

import h5py
import numpy as np
import pytest

import mdp

USAGE = 2
MODEL = mdp.GOLDEN / "mixtral"  # 3 layers of 8 experts, top-2
KEEP = {"uniform": [4, 4, 4], "list": [6, 3, 5]}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return mdp.golden_tokens("mixtral", tmp_path_factory.mktemp("propagate") / "tokens.h5")


def keep_file(path, counts):
    path.write_text(json.dumps({str(layer): n for layer, n in enumerate(counts)}), encoding="utf-8")
    return path


def propagate(folder, ranks, tokens, *words):
    mdp.succeed(ranks, "run", "--model", MODEL, "--tokens", tokens, "--propagate", "pruned", *words, "--out", folder)
    return mdp.read_json(folder / "plan.json")


def layer_arrays(path, layer):
    with h5py.File(path) as file:
        return {name: data[...] for name, data in file[f"layers/{layer}"].items()}


def one_after_the_other(tokens, method, counts, folder):
    """Kept experts of every layer, numbered as in the model, and the statistics that each was decided by."""
    model, kept, seen = MODEL, [], []
    for layer, n in enumerate(counts):
        stats, plan, out = folder / f"{layer}.h5", folder / f"{layer}.json", folder / f"{layer}"
        mdp.succeed(2, "observe", "--model", model, "--tokens", tokens, "--out", stats)
        left = keep_file(folder / f"{layer}-keep.json", [*counts[:layer], n, *[8] * (len(counts) - layer - 1)])
        mdp.succeed(1, "plan", "--stats", stats, "--method", method, "--keep-file", left, "--out", plan)
        mdp.succeed(1, "apply", "--model", model, "--plan", plan, "--out", out)
        kept.append([e["from"][0] for e in mdp.read_json(plan)["layers"][layer]["experts"]])
        seen.append(layer_arrays(stats, layer))
        model = out / "model.h5"
    return kept, seen


@pytest.mark.parametrize("method, budget", [("reap", "uniform"), ("easy", "list")])
def test_equals_pruning_writing_and_observing_layer_by_layer(method, budget, tokens, tmp_path):
    counts = KEEP[budget]
    words = ["--keep", counts[0]] if budget == "uniform" else ["--keep-file", keep_file(tmp_path / "keep.json", counts)]
    plan = propagate(tmp_path / "out", 3, tokens, "--method", method, *words)
    assert plan["recipe"]["options"]["propagate"] == "pruned"
    kept, seen = one_after_the_other(tokens, method, counts, tmp_path)
    assert [[e["from"][0] for e in layer["experts"]] for layer in plan["layers"]] == kept
    for layer, slow in enumerate(seen):
        fast = layer_arrays(tmp_path / "out" / "stats.h5", layer)
        assert fast.keys() == slow.keys()
        for name in fast:
            assert np.array_equal(fast[name], slow[name]), (layer, name)
    original = layer_arrays(tmp_path / "0.h5", 2)
    assert not np.array_equal(original["gate_sum"], fast["gate_sum"])  # the pruned layers before it do change what it sees


def test_does_not_depend_on_ranks(tokens, tmp_path):
    for ranks in (1, 2, 4):
        propagate(tmp_path / str(ranks), ranks, tokens, "--method", "reap", "--keep", 3)
    for name in ("plan.json", "stats.h5", "model.h5"):
        assert len({str(mdp.digests(tmp_path / str(ranks) / name)) for ranks in (1, 2, 4)}) == 1, name


def test_says_what_it_takes_and_what_it_is(tokens, tmp_path):
    words = ["run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 3, "--out", tmp_path / "out", "--dry-run"]
    once, twice = (mdp.succeed(1, *words, "--json", *more) for more in ([], ["--propagate", "pruned"]))
    assert "experts twice" in mdp.succeed(1, *words, "--propagate", "pruned").stdout
    assert '"flop"' in once.stdout and once.stdout != twice.stdout
    propagate(tmp_path / "pruned", 1, tokens, "--method", "reap", "--keep", 3)
    mdp.succeed(1, "observe", "--model", MODEL, "--tokens", tokens, "--out", tmp_path / "original.h5")
    mdp.refuse(2, 65, "pruned.h5|stats.h5.*pruned inputs", "plan", "--stats", tmp_path / "original.h5", "--stats",
               tmp_path / "pruned" / "stats.h5", "--method", "reap", "--keep", 3, "--out", tmp_path / "p.json")


@pytest.mark.parametrize("sentence, words", [
    ("--budget global compares all layers", ["--method", "reap", "--budget", "global"]),
    ("nothing for method 'magnitude'", ["--method", "magnitude"]),
    ("method 'characteristic'", ["--method", "characteristic"]),
    ("--protect-super-experts compares all layers", ["--method", "reap", "--protect-super-experts"]),
    ("--rounds and --propagate pruned", ["--method", "reap", "--rounds", 2]),
    ("one batch", ["--method", "reap", "--batch-tokens", 1]),
])
def test_is_refused_where_layers_cannot_be_decided_one_by_one(sentence, words, tokens, tmp_path):
    many = tokens
    if "--batch-tokens" in words:  # a batch holds at least one block
        many = mdp.write_tokens(tmp_path / "many.h5", {"all": [np.arange(3000) % 500] * 12})
    mdp.refuse(2, USAGE, sentence, "run", "--model", MODEL, "--tokens", many, "--keep", 4, "--propagate", "pruned", "--out",
               tmp_path / "out", *words)
