"""How alike experts are: against the reference in float64, against numpy on random checkpoints, and the same bytes however it is run."""
import json

import h5py
import numpy as np
import pytest

import mdp

MODEL = mdp.GOLDEN / "mixtral"
LAYERS = range(3)
PROBED = ["output-mean-euclidean", "output-mean-cosine", "output-cosine", "cka-linear", "cka-rbf"]
NAMES = [*PROBED[:2], "output-routed-mean-euclidean", "output-routed-mean-cosine", *PROBED[2:], "weight-euclidean", "weight-cosine",
         "weight-aligned-euclidean", "weight-aligned-cosine", "weight-surrogate", "router-logit", "router-row", "co-activation"]
ALL = ",".join(NAMES)


def observe(out, tokens, *words, ranks=2, names=ALL, model=MODEL):
    mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out, "--similarity", names, *words)
    return out


def matrices(path, layer):
    with h5py.File(path) as stats:
        return {name: dataset[...] for name, dataset in stats[f"layers/{layer}/similarity"].items()}


def surrogates(name, layer):
    with h5py.File(mdp.GOLDEN / name / "surrogate.h5") as reference:
        return reference[f"layer{layer}/weight-surrogate"][...]


def vector(path, layer, name):
    with h5py.File(path) as stats:
        return stats[f"layers/{layer}/{name}"][...]


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similarity")
    tokens = mdp.golden_tokens("mixtral", folder / "tokens.h5")
    return tokens, observe(folder / "stats.h5", tokens)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two categories, in blocks of 16,384 tokens, so that there can be several batches."""
    choose = np.random.default_rng(5)
    return mdp.write_tokens(tmp_path_factory.mktemp("text") / "tokens.h5", {
        "a": [choose.integers(0, 100, 200) for _ in range(80)], "b": [choose.integers(0, 100, 100) for _ in range(20)]})


# ---- the numbers


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name, layer, golden):
    if name == "weight-surrogate":
        kind, want = "similarity", surrogates("mixtral", layer)
    else:
        with h5py.File(mdp.GOLDEN / "mixtral" / "methods.h5") as methods:
            want = methods[f"layer{layer}/similarity/{name}"]
            kind, want = want.attrs["kind"], want[...]
    with h5py.File(golden[1]) as stats:
        ours = stats[f"layers/{layer}/similarity/{name}"]
        assert ours.attrs["kind"] == kind.encode() or ours.attrs["kind"] == kind
        ours = ours[...]
    assert np.abs(ours - want).max() <= 1e-4 * np.abs(want).max()
    assert np.array_equal(ours, ours.T)


def test_weighted_outputs_and_logits_are_those_of_numpy(golden, tmp_path):
    """Experts in float64 on the inputs, weights and logits that transformers has."""
    from safetensors.numpy import load_file
    stats = observe(tmp_path / "stats.h5", golden[0], names="gated-output-logit", ranks=3)
    tensors = {name: value.astype(np.float64) for name, value in load_file(MODEL / "model.safetensors").items()}
    with h5py.File(MODEL / "golden.h5") as file:
        for layer in LAYERS:
            sequences = [file[f"seq{i}/layer{layer}"] for i in range(int(file.attrs["num_sequences"]))]
            x, g, z = (np.concatenate([s[name][...] for s in sequences]).astype(np.float64) for name in ("moe_input", "dense_weight", "router_logits"))
            means = []
            for e in range(g.shape[1]):
                w1, w2, w3 = (tensors[f"model.layers.{layer}.block_sparse_moe.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
                a = x @ w1.T
                means.append((g[:, e] @ ((a / (1 + np.exp(-a)) * (x @ w3.T)) @ w2.T)) / (g[:, e] > 0).sum())
            means = np.array(means)
            unit, column = means / np.linalg.norm(means, axis=1)[:, None], z / np.linalg.norm(z, axis=0)
            far = np.linalg.norm(column.T[:, None] - column.T[None], axis=2)
            wanted = ((1 + unit @ unit.T) / 2 + 1 - far / far.max()) / 2
            assert np.abs(matrices(stats, layer)["gated-output-logit"] - wanted).max() <= 1e-5


def test_the_limbs_are_the_sums(golden):
    weights = [2.0**(32 * i - 64) for i in range(3)]
    for name in ("pair_count", "logit_product", "router_product", "weight_product", "aligned_product", "surrogate_product", "probe_output_sum",
                 "probe_cosine_sum", "cka_linear_product", "cka_rbf_product"):
        ours, limbs = vector(golden[1], 1, name), vector(golden[1], 1, f"{name}_limbs")
        assert np.allclose(ours, limbs @ weights, rtol=1e-12, atol=1e-12), name


def test_biases_are_no_part_of_logits(tmp_path):
    """gpt_oss adds a bias to its logits; biases of experts are part of their outputs."""
    stats = observe(tmp_path / "stats.h5", mdp.golden_tokens("gpt_oss", tmp_path / "tokens.h5"), model=mdp.GOLDEN / "gpt_oss",
                    names="router-logit,output-mean-cosine", ranks=3)
    import safetensors.numpy
    tensors = {}
    for path in (mdp.GOLDEN / "gpt_oss").glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            tensors.update({key: file.get_tensor(key).float().numpy().astype(float) for key in file.keys() if ".mlp." in key})
    for layer in LAYERS:
        prefix = f"model.layers.{layer}.mlp."
        with h5py.File(mdp.GOLDEN / "gpt_oss" / "golden.h5") as golden:
            parts = [golden[f"seq{i}/layer{layer}"] for i in range(int(golden.attrs["num_sequences"]))]
            x = np.concatenate([part["moe_input"][...] for part in parts]).astype(float)
        z = x @ tensors[prefix + "router.weight"].T
        unit = z / np.linalg.norm(z, axis=0)
        assert np.abs(matrices(stats, layer)["router-logit"] - (1 + unit.T @ unit) / 2).max() <= 1e-4
        both = np.einsum("td,edf->etf", x, tensors[prefix + "experts.gate_up_proj"]) + tensors[prefix + "experts.gate_up_proj_bias"][:, None]
        gate, up = np.minimum(both[..., ::2], 7.0), np.clip(both[..., 1::2], -7.0, 7.0)
        h = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
        mean = (np.einsum("etf,efd->etd", h, tensors[prefix + "experts.down_proj"]) + tensors[prefix + "experts.down_proj_bias"][:, None]).mean(1)
        unit = mean / np.linalg.norm(mean, axis=1)[:, None]
        assert np.abs(matrices(stats, layer)["output-mean-cosine"] - unit @ unit.T).max() <= 1e-4


def test_stored_types_and_groups_of_experts(tmp_path):
    """Weights of FP8 in blocks: as they are decoded."""
    name = "deepseek_v3_fp8"
    stats = observe(tmp_path / "stats.h5", mdp.golden_tokens(name, tmp_path / "tokens.h5"), model=mdp.GOLDEN / name, ranks=3)
    cosine, euclidean = (matrices(stats, 1)[f"weight-{kind}"] for kind in ("cosine", "euclidean"))
    products = vector(stats, 1, "weight_product")
    assert np.allclose(np.diag(cosine), 1) and np.allclose(euclidean**2, np.add.outer(np.diag(products), np.diag(products)) - 2 * products)
    assert set(matrices(stats, 1)) == set(NAMES) and all(np.isfinite(matrix).all() for matrix in matrices(stats, 2).values())


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_surrogates_of_other_families(name, tmp_path):
    stats = observe(tmp_path / "stats.h5", mdp.golden_tokens(name, tmp_path / "tokens.h5"), model=mdp.GOLDEN / name, ranks=3, names="weight-surrogate")
    with h5py.File(stats) as file:
        layers = [int(layer) for layer in file["layers"]]
    assert layers == [1, 2]
    for layer in layers:
        want = surrogates(name, layer)
        assert np.abs(matrices(stats, layer)["weight-surrogate"] - want).max() <= 1e-4 * np.abs(want).max()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """40 experts of a layer: expert 33 is expert 2 with other neurons first, and a little noise; so is 34 of 5."""
    folder = tmp_path_factory.mktemp("many")
    mdp.tool("make-shape-model", "--hidden", 96, "--intermediate", 24, "--layers", 1, "--experts", 40, "--vocab", 64, "--dtype", "f32", "--out",
             folder / "model")
    import safetensors.numpy
    choose, (path,) = np.random.default_rng(7), (folder / "model").glob("*.safetensors")
    tensors = safetensors.numpy.load_file(path)
    experts = [[tensors[f"model.layers.0.block_sparse_moe.experts.{e}.w{i}.weight"].astype(float) for i in (1, 3, 2)] for e in range(40)]
    for copy, of in ((33, 2), (34, 5)):
        order = np.concatenate([np.arange(8), 8 + choose.permutation(16)])
        for i, part in enumerate(experts[of]):
            moved = part[:, order] if i == 2 else part[order]
            experts[copy][i] = moved + 0.05 * part.std() * choose.standard_normal(part.shape)
            tensors[f"model.layers.0.block_sparse_moe.experts.{copy}.w{(1, 3, 2)[i]}.weight"] = experts[copy][i].astype("f4")
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    experts = [[part.astype("f4").astype(float) for part in expert] for expert in experts]
    return folder / "model", experts, mdp.write_tokens(folder / "tokens.h5", {"a": [np.arange(60)]})


def largest_assignment(gain):
    """Exchanges along the cycle that gains most (Floyd and Warshall's longest paths) until none gains."""
    order = np.arange(len(gain))
    while True:
        length = gain[:, order] - np.diag(gain[:, order])[:, None]  # row i takes the column of row j
        then, n = np.tile(np.arange(len(gain)), (len(gain), 1)), len(gain)
        for k in range(n):
            longer = length[:, k, None] + length[k] > length + 1e-12
            length, then = np.where(longer, length[:, k, None] + length[k], length), np.where(longer, then[:, k, None], then)
            if np.diag(length).max() > 1e-9:
                break
        else:
            return gain[np.arange(n), order].sum()
        start = at = int(np.diag(length).argmax())
        cycle = [start]
        while (at := int(then[at, start])) not in cycle:
            cycle.append(at)
        cycle = cycle[cycle.index(at):]
        order[cycle] = order[cycle[1:] + cycle[:1]]


def test_of_many_experts_those_near_each_other_are_matched(many, tmp_path):
    """The best assignment for pairs of which one is among the other's 8 nearest by cosine; the others as they stand."""
    model, experts, tokens = many
    rows = np.stack([np.concatenate([gate, up, down.T], axis=1) for gate, up, down in experts])
    flat = rows.reshape(40, -1)
    product = flat @ flat.T
    cosine = product / np.sqrt(np.outer(np.diag(product), np.diag(product)))
    near = np.zeros((40, 40), bool)
    for e in range(40):
        near[e, [i for i in np.argsort(-cosine[e], kind="stable") if i != e][:8]] = True
    near |= near.T
    for i, j in zip(*np.nonzero(near)):
        product[i, j] = largest_assignment(rows[i] @ rows[j].T)
    assert near.sum() < 40 * 16 and near[33, 2] and near[34, 5]
    length = np.sqrt(np.diag(product))
    for ranks in (1, 3):
        found = matrices(observe(tmp_path / f"{ranks}.h5", tokens, model=model, names="weight-aligned-cosine,weight-aligned-euclidean", ranks=ranks), 0)
        assert np.abs(found["weight-aligned-cosine"] - product / np.outer(length, length)).max() < 1e-5
        distance = np.sqrt(np.maximum(length[:, None]**2 + length**2 - 2 * product, 0))
        assert np.abs(found["weight-aligned-euclidean"] - distance).max() < 1e-4 * distance.max()
    assert found["weight-aligned-cosine"][33, 2] > 0.99 > 2 * cosine[33, 2]
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "3.h5").read_bytes()


def test_surrogates_do_not_change_with_the_order_of_neurons(many, tmp_path):
    found = matrices(observe(tmp_path / "stats.h5", many[2], model=many[0], names="weight-surrogate"), 0)["weight-surrogate"]
    product = np.stack([down @ (gate * up) for gate, up, down in many[1]])
    want = -((product[:, None] - product[None])**2).mean(axis=(2, 3))
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()
    assert np.argsort(found[33])[-2] == 2 and np.argsort(found[34])[-2] == 5


def test_a_probe_is_a_sample(text, tmp_path):
    """Drawn by seed: other tokens with another seed, the same with the same; all tokens when it is as large as the text."""
    def made(name, *words):
        return matrices(observe(tmp_path / f"{name}.h5", text, *words, names="output-mean-euclidean,co-activation"), 1)
    whole, one, same, other = made("whole", "--probe-tokens", 18000), made("one", "--probe-tokens", 600), made(
        "same", "--probe-tokens", 600, "--seed", 0), made("other", "--probe-tokens", 600, "--seed", 1)
    assert np.array_equal(one["output-mean-euclidean"], same["output-mean-euclidean"])
    largest = whole["output-mean-euclidean"].max()
    for sample in (one, other):
        difference = np.abs(sample["output-mean-euclidean"] - whole["output-mean-euclidean"]).max()
        assert 1e-4 * largest < difference < 0.5 * largest
        assert np.array_equal(sample["co-activation"], whole["co-activation"])
    assert not np.array_equal(one["output-mean-euclidean"], other["output-mean-euclidean"])


# ---- the same bytes


def test_ranks_threads_and_batches_do_not_show(text, tmp_path):
    first = observe(tmp_path / "1.h5", text, "--probe-tokens", 600, ranks=1).read_bytes()
    for ranks, words in ((2, ["--threads", 2]), (3, []), (4, []), (8, ["--batch-tokens", 16384]), (2, ["--batch-tokens", 16384])):
        out = tmp_path / f"{ranks}-{len(words)}.h5"
        observe(out, text, "--probe-tokens", 600, "--overwrite", *words, ranks=ranks)
        assert out.read_bytes() == first, (ranks, words)


def test_stopped_anywhere(text, tmp_path):
    """In batches: what the first has shown of the probe waits for the last."""
    whole = observe(tmp_path / "whole.h5", text, "--probe-tokens", 600)
    words = ["observe", "--model", MODEL, "--tokens", text, "--out", tmp_path / "parts.h5", "--similarity", ALL, "--probe-tokens", 600,
             "--batch-tokens", 16384]
    resume, codes = [], []
    for ranks in (2, 3, 1, 4, 2, 3, 1):
        codes.append(set(mdp.run(ranks, *words, "--stop-at", 1, *resume).codes))
        resume = ["--resume"]
        if codes[-1] == {0}:
            break
    assert codes == [{75}] * 6 + [{0}]
    assert (tmp_path / "parts.h5").read_bytes() == whole.read_bytes()


def test_run_keeps_them_too(golden, tmp_path):
    tokens, stats = golden
    mdp.succeed(2, "run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 4, "--similarity", ALL, "--out", tmp_path / "out",
                "--format", "hdf5")
    assert (tmp_path / "out" / "stats.h5").read_bytes() == stats.read_bytes()


def test_layers_are_compared_on_what_pruned_layers_give(golden, tmp_path):
    """--propagate pruned: the first layer sees what it ever saw, the others other inputs, weights are what they are."""
    for ranks in (1, 3):
        mdp.succeed(ranks, "run", "--model", MODEL, "--tokens", golden[0], "--method", "reap", "--keep", 4, "--propagate", "pruned", "--similarity", ALL,
                    "--out", tmp_path / str(ranks), "--format", "hdf5")
    one, other = (tmp_path / str(ranks) / "stats.h5" for ranks in (1, 3))
    assert one.read_bytes() == other.read_bytes()
    same = {name for name, value in matrices(golden[1], 2).items() if np.array_equal(value, matrices(one, 2)[name])}
    assert same == {name for name in NAMES if name.startswith("weight-")} | {"router-row"}
    assert all(np.array_equal(value, matrices(one, 0)[name]) for name, value in matrices(golden[1], 0).items())


def test_statistics_without_are_as_ever(golden, tmp_path):
    mdp.succeed(2, "observe", "--model", MODEL, "--tokens", golden[0], "--out", tmp_path / "plain.h5")
    with h5py.File(tmp_path / "plain.h5") as plain, h5py.File(golden[1]) as full:
        assert not {"similarities", "probe_tokens"} & set(plain.attrs) and "similarity" not in plain["layers/0"]
        for name in plain["layers/1"]:
            assert np.array_equal(plain[f"layers/1/{name}"][...], full[f"layers/1/{name}"][...])


def test_inspect_names_them(golden):
    said = json.loads(mdp.succeed(1, "inspect", golden[1], "--json").stdout)
    assert said["similarities"] == NAMES and said["probe_tokens"] == said["n_tokens"] == 104


# ---- what it takes


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_dry_run_foretells_what_is_counted(ranks, golden, tmp_path):
    words = ["observe", "--model", MODEL, "--tokens", golden[0], "--similarity", ALL, "--out", tmp_path / "stats.h5"]
    foretold = json.loads(mdp.succeed(ranks, *words, "--dry-run", "--json", "--gflops-per-rank", 10).stdout)["passes"]
    foretold = next(one["all_ranks"] for one in foretold if one["pass"] == "similarity")
    mdp.succeed(ranks, *words, "--profile")
    counted = mdp.read_json(tmp_path / "stats.h5.profile.json")["passes"][0]["phases"]["similarity"]
    assert counted["bytes_read"]["total"] == foretold["bytes_read"] and counted["bytes_sent"]["total"] == foretold["bytes_sent"]
    assert counted["flop"]["total"] == pytest.approx(foretold["flop"], rel=1e-3)


# ---- what is refused


def test_an_unknown_name_is_refused_with_those_that_there_are(golden, tmp_path):
    mdp.refuse(2, 2, f"'cka' is none of the similarities that there are: none,{ALL}.", "observe", "--model", MODEL, "--tokens", golden[0], "--out",
               tmp_path / "stats.h5", "--similarity", "router-row,cka")


def test_finished_statistics_of_other_similarities_are_not_these(golden, tmp_path):
    tokens, _ = golden
    out = observe(tmp_path / "stats.h5", tokens, names="router-row")
    words = ["observe", "--model", MODEL, "--tokens", tokens, "--out", out, "--resume"]
    mdp.succeed(1, *words, "--similarity", "router-row")
    assert set(mdp.run(1, *words, "--similarity", "co-activation").codes) == {73}
