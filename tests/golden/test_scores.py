"""The plan's scores equal those of the reference in float64, for every criterion, from one pass of observation."""
import h5py
import numpy as np
import pytest

import mdp

LAYERS = {"mixtral": [0, 1, 2], "qwen2_moe": [1, 2], "deepseek_v3": [1, 2]}  # those with experts
KEEP = {"mixtral": 4, "qwen2_moe": 4, "deepseek_v3": 8}
GROUPS = {"deepseek_v3": 4}  # of experts, each of which keeps equally many
# Method and its options: the dataset of methods.h5, where it has another name.
STATISTICS = {"soft --soft-mask routed-p": None, "soft --soft-mask all": "soft-all", "easy": "easy-residual",
              **{name: name for name in [*mdp.CRITERIA, "man", "msan", "characteristic", "tenp", "tenp-mean"]}}
WEIGHTS = {name: name for name in ["magnitude", "aimer", "router-norm"]}


@pytest.fixture(scope="module")
def stats_of(tmp_path_factory):
    """{name of a golden model: its stats.h5}"""
    folder, made = tmp_path_factory.mktemp("stats"), {}
    for name in LAYERS:
        tokens, made[name] = mdp.golden_tokens(name, folder / f"{name}-tokens.h5"), folder / f"{name}.h5"
        mdp.succeed(3, "observe", "--model", mdp.GOLDEN / name, "--tokens", tokens, "--out", made[name])
    return made


@pytest.fixture
def stats(stats_of):
    return stats_of["mixtral"]


def routed_p(layer, name):
    """Sum over the routed tokens of p, which methods.h5 lacks, from the router logits that transformers computes."""
    with h5py.File(mdp.GOLDEN / name / "golden.h5") as golden:
        parts = [golden[f"seq{i}/layer{layer}"] for i in range(int(golden.attrs["num_sequences"]))]
        z = np.concatenate([part["router_logits"][...] for part in parts]).astype(float)
        chosen = np.concatenate([part["dense_weight"][...] for part in parts]) != 0
    if name == "deepseek_v3":
        return (chosen / (1 + np.exp(-z))).sum(0)
    p = np.exp(z - z.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True) * chosen).sum(0)


def expected(layer, method, name="mixtral"):
    dataset = {**STATISTICS, **WEIGHTS}[method]
    if dataset is None:
        return routed_p(layer, name)
    with h5py.File(mdp.GOLDEN / name / "methods.h5") as methods:
        return methods[f"layer{layer}/saliency/{dataset}"][...] * (-1 if method == "aimer" else 1)


def check(plan, method, name):
    assert [layer["layer"] for layer in plan["layers"]] == LAYERS[name]
    for layer in plan["layers"]:
        want, scores = expected(layer["layer"], method, name), np.array(layer["scores"])
        if method == "frequency":
            assert np.array_equal(scores, want)
        else:
            assert np.abs(scores - want).max() <= 1e-4 * np.abs(want).max(), (method, layer["layer"])
        # Numbers of the reference that differ by more than their tolerance leave one possible choice; of equal counts the
        # lower expert goes first.
        kept = [expert["from"][0] for expert in layer["experts"]]
        groups = np.split(np.arange(len(want)), GROUPS.get(name, 1))
        each = KEEP[name] // len(groups)
        assert kept == sorted(int(e) for group in groups for e in group[np.argsort(want[group], kind="stable")[-each:]])
        assert sorted(kept + [expert["expert"] for expert in layer["dropped"]]) == list(range(len(want)))


@pytest.mark.parametrize("method", STATISTICS)
@pytest.mark.parametrize("name", LAYERS)
def test_scores_equal_the_reference(name, method, stats_of, tmp_path):
    mdp.succeed(2, "plan", "--stats", stats_of[name], "--method", *method.split(), "--keep", KEEP[name], "--out",
                tmp_path / "plan.json")
    check(mdp.read_json(tmp_path / "plan.json"), method, name)


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize("name", LAYERS)
def test_scores_of_weights_equal_the_reference(name, method, tmp_path):
    for ranks, threads in ((1, 2), (3, 1)):
        mdp.succeed(ranks, "plan", "--model", mdp.GOLDEN / name, "--method", method, "--keep", KEEP[name], "--threads", threads,
                    "--out", tmp_path / f"{ranks}.json")
        check(mdp.read_json(tmp_path / f"{ranks}.json"), method, name)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "3.json").read_bytes()


@pytest.mark.parametrize("name", LAYERS)
def test_counts_are_exact(name, stats_of):
    with h5py.File(stats_of[name]) as ours:
        assert sorted(map(int, ours["layers"])) == LAYERS[name]
        for layer in LAYERS[name]:
            counts = ours[f"layers/{layer}/counts"][...].sum(axis=0)
            assert np.array_equal(counts, expected(layer, "frequency", name))


def test_random_depends_on_the_seed_alone(stats, tmp_path):
    scores = []
    for ranks, seed in ((1, 1), (3, 1), (1, 2)):
        out = tmp_path / f"{ranks}-{seed}.json"
        mdp.succeed(ranks, "plan", "--stats", stats, "--method", "random", "--seed", seed, "--keep", 4, "--out", out)
        scores.append([layer["scores"] for layer in mdp.read_json(out)["layers"]])
    assert scores[0] == scores[1] and scores[0] != scores[2]


def reference_global(method, keep, least, normalise):
    """Experts kept per layer when all are ranked together: the lowest score goes first, no layer under `least`."""
    scores = [expected(layer, method) for layer in range(3)]
    if normalise == "layer-sum":
        scores = [s / s.sum() for s in scores]
    elif normalise == "layer-max":
        scores = [s / s.max() for s in scores]
    elif normalise == "layer-z":
        scores = [(s - s.mean()) / s.std() for s in scores]
    kept = [set(range(8)) for _ in scores]
    for _, layer, expert in sorted((s, layer, e) for layer, row in enumerate(scores) for e, s in enumerate(row)):
        if sum(map(len, kept)) > 3 * keep and len(kept[layer]) > least:
            kept[layer].remove(expert)
    return [sorted(one) for one in kept]


@pytest.mark.parametrize("normalise", ["none", "layer-sum", "layer-max", "layer-z"])
def test_global_budget_ranks_all_layers_together(normalise, stats, tmp_path):
    mdp.succeed(2, "plan", "--stats", stats, "--method", "weighted-ean", "--budget", "global", "--min-keep", 3, "--normalise",
                normalise, "--keep", 4, "--out", tmp_path / "plan.json")
    plan = mdp.read_json(tmp_path / "plan.json")
    kept = [[expert["from"][0] for expert in layer["experts"]] for layer in plan["layers"]]
    assert kept == reference_global("weighted-ean", 4, 3, normalise)
    assert plan["uniform"] == (len({len(one) for one in kept}) == 1)
