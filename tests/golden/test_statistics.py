"""What stats.h5 holds, and what is made of several files and categories, against sums in numpy."""
import h5py
import numpy as np
import pytest

import mdp

MODEL = mdp.GOLDEN / "mixtral"
LAYERS = range(3)
SUMS = ["gate_sum", "norm_sum", "gate_norm_sum", "norm2_sum", "turn_sum", "shift_sum", "routed_p_sum", "all_p_sum"]


def observe(folder, name, categories, ranks=2):
    tokens = mdp.write_tokens(folder / f"{name}-tokens.h5", categories)
    mdp.succeed(ranks, "observe", "--model", MODEL, "--tokens", tokens, "--out", folder / f"{name}.h5")
    return folder / f"{name}.h5"


@pytest.fixture(scope="module")
def texts():
    """Four categories of 8,192 tokens that differ in the tokens they use: the first two are a block of 16,384."""
    random = np.random.default_rng(11)
    return {name: list(random.integers(64 * i, 64 * i + 128, (64, 128))) for i, name in enumerate(["c", "json", "math", "prose"])}


@pytest.fixture(scope="module")
def files(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stats")
    half = {"left": ["c", "json"], "right": ["math", "prose"]}
    made = {name: observe(folder, name, {c: texts[c] for c in half[name]}) for name in half}
    made["all"] = observe(folder, "all", texts)
    # Halves that cut categories, and not where a block ends.
    made["odd"] = observe(folder, "odd", {c: text[:21] for c, text in texts.items()})
    made["rest"] = observe(folder, "rest", {c: text[21:] for c, text in texts.items()})
    return made


def scores(folder, method, *words, ranks=1):
    out = folder / "plan.json"
    mdp.succeed(ranks, "plan", "--method", *method.split(), "--keep", 4, "--out", out, "--overwrite", *words)
    return np.array([layer["scores"] for layer in mdp.read_json(out)["layers"]])


def read(path, layer, name):
    with h5py.File(path) as stats:
        return stats[f"layers/{layer}/{name}"][...]


# ---- the file


def test_the_limbs_are_the_sums(files):
    weights = [2.0**(32 * i - 160) for i in range(10)], [2.0**(32 * i - 64) for i in range(3)]
    for layer in LAYERS:
        for name in SUMS:
            assert np.allclose(read(files["all"], layer, name), read(files["all"], layer, f"{name}_limbs") @ weights[0], rtol=1e-14, atol=0)
        ours, limbs = read(files["all"], layer, "output_sum"), read(files["all"], layer, "output_sum_limbs")
        assert np.allclose(ours, limbs @ weights[1], rtol=1e-12, atol=1e-12)


def test_every_statistic_says_what_it_is(files):
    with h5py.File(files["all"]) as stats:
        for name in [*SUMS, "max_abs", "output_sum"]:
            attributes = stats[f"layers/0/{name}"].attrs
            assert all(len(attributes[key]) > 0 for key in ("meaning", "unit", "source"))
            assert attributes["merges"] == (b"max" if name == "max_abs" else b"sum")
            assert attributes["n_samples"] == 32768 * (1 if name == "all_p_sum" else 2)


def test_sums_that_are_known(files):
    for layer in LAYERS:
        assert np.allclose(read(files["all"], layer, "gate_sum").sum(1), 8192)  # normalised weights
        assert np.allclose(read(files["all"], layer, "all_p_sum").sum(1), 8192)  # probabilities
        assert (read(files["all"], layer, "counts").sum(1) == 2 * 8192).all()


def test_max_abs_and_output_sum_equal_numpy(tmp_path):
    """On the golden text, from the inputs of every layer that transformers computed."""
    import safetensors.numpy
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    mdp.succeed(3, "observe", "--model", MODEL, "--tokens", tokens, "--out", tmp_path / "stats.h5")
    tensors = {key: value.astype(float) for key, value in safetensors.numpy.load_file(MODEL / "model.safetensors").items()}
    with h5py.File(MODEL / "golden.h5") as golden:
        for layer in LAYERS:
            parts = [golden[f"seq{i}/layer{layer}"] for i in range(int(golden.attrs["num_sequences"]))]
            x = np.concatenate([part["moe_input"][...] for part in parts]).astype(float)
            chosen = np.concatenate([part["dense_weight"][...] for part in parts]) != 0
            largest, total = [], []
            for e in range(8):
                w1, w2, w3 = (tensors[f"model.layers.{layer}.block_sparse_moe.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
                gate = x[chosen[:, e]] @ w1.T
                y = (gate / (1 + np.exp(-gate)) * (x[chosen[:, e]] @ w3.T)) @ w2.T
                largest.append(np.abs(y).max())
                total.append(y.sum(0))
            assert np.allclose(read(tmp_path / "stats.h5", layer, "max_abs")[0], largest, rtol=1e-4)
            ours = read(tmp_path / "stats.h5", layer, "output_sum")
            assert np.abs(ours - total).max() <= 1e-4 * np.abs(total).max()


# ---- several files


@pytest.mark.parametrize("method", ["frequency", "reap", "tenp", "easy", "soft --soft-mask all", "characteristic"])
def test_halves_that_end_with_a_block_add_up_to_the_last_bit(method, files, tmp_path):
    one = scores(tmp_path, method, "--stats", files["all"])
    for pair in (["left", "right"], ["right", "left"]):
        both = scores(tmp_path, method, *(word for name in pair for word in ("--stats", files[name])))
        assert np.array_equal(both, one), (method, pair)


def test_halves_of_categories_add_up(files, tmp_path):
    for method in ("frequency", "reap", "msan", "easy", "characteristic"):
        one = scores(tmp_path, method, "--stats", files["all"])
        both = scores(tmp_path, method, "--stats", files["odd"], "--stats", files["rest"], ranks=3)
        if method == "frequency":
            assert np.array_equal(both, one)
        else:
            assert np.abs(both - one).max() <= 1e-5 * np.abs(one).max(), method
    recipe = mdp.read_json(tmp_path / "plan.json")["recipe"]["calibration"]
    assert recipe["n_tokens"] == 32768 and [part["n_tokens"] for part in recipe["parts"]] == [21 * 128 * 4, 43 * 128 * 4]


def test_files_have_weights(files, tmp_path):
    for method, name, mean in (("weighted-ean", "gate_norm_sum", False), ("reap", "gate_norm_sum", True)):
        ours = scores(tmp_path, method, "--stats", f"{files['left']}:0.25", "--stats", files["right"])
        for layer in LAYERS:
            total = [factor * read(files[side], layer, name).sum(0) for side, factor in (("left", 0.25), ("right", 1))]
            count = [factor * read(files[side], layer, "counts").sum(0) for side, factor in (("left", 0.25), ("right", 1))]
            assert np.allclose(ours[layer], sum(total) / (sum(count) if mean else 1), rtol=1e-8)
    ours = scores(tmp_path, "characteristic", "--stats", f"{files['left']}:0.25", "--stats", files["right"])
    for layer in LAYERS:
        total, count = ([factor * read(files[side], layer, name) for side, factor in (("left", 0.25), ("right", 1))]
                        for name in ("output_sum", "counts"))
        mean = sum(total) / sum(part.sum(0) for part in count)[:, None]
        assert np.allclose(ours[layer], np.sqrt((mean**2).sum(1)), rtol=1e-8)


def test_files_of_another_model_are_refused(files, tmp_path):
    tokens = mdp.golden_tokens("qwen2_moe", tmp_path / "tokens.h5")
    mdp.succeed(1, "observe", "--model", mdp.GOLDEN / "qwen2_moe", "--tokens", tokens, "--out", tmp_path / "other.h5")
    mdp.refuse(2, 65, "only statistics of one model can be added", "plan", "--stats", files["all"], "--stats", tmp_path / "other.h5",
               "--method", "reap", "--keep", 4, "--out", tmp_path / "plan.json")
    mdp.refuse(1, 2, "the weight must be a positive number", "plan", "--stats", f"{files['all']}:-1", "--method", "reap", "--keep", 4,
               "--out", tmp_path / "plan.json")


# ---- categories


def test_categories_have_weights(files, tmp_path):
    factor = np.array([2.0, 0, 0.5, 0])
    ours = scores(tmp_path, "reap", "--stats", files["all"], "--categories", "math:0.5,c:2")
    for layer in LAYERS:
        total, count = (factor @ read(files["all"], layer, name) for name in ("gate_norm_sum", "counts"))
        assert np.allclose(ours[layer], total / count, rtol=1e-8)
    assert mdp.read_json(tmp_path / "plan.json")["recipe"]["options"]["categories"] == {"c": 2, "math": 0.5}


def test_one_category_of_many_is_that_category_observed_alone(files, texts, tmp_path):
    alone = observe(tmp_path, "alone", {"c": texts["c"]})  # first of all: its packs and tiles begin where they began in all
    for method in ("frequency", "reap", "easy"):
        want, ours = scores(tmp_path, method, "--stats", alone), scores(tmp_path, method, "--stats", files["all"], "--categories", "c")
        assert np.abs(ours - want).max() <= 1e-5 * np.abs(want).max()


def test_run_weighs_categories_as_plan_does(texts, tmp_path):
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", texts)
    mdp.succeed(2, "run", "--model", MODEL, "--tokens", tokens, "--categories", "c:2,math", "--method", "reap", "--keep", 4, "--out",
                tmp_path / "out")
    with h5py.File(tmp_path / "out" / "stats.h5") as stats:
        assert list(stats["categories"]) == [b"c", b"math"]
    plan = scores(tmp_path, "reap", "--stats", tmp_path / "out" / "stats.h5", "--categories", "c:2,math")
    assert np.array_equal(plan, [layer["scores"] for layer in mdp.read_json(tmp_path / "out" / "plan.json")["layers"]])
    mdp.refuse(1, 2, "weights belong to the choice of experts", "observe", "--model", MODEL, "--tokens", tokens, "--categories", "c:2",
               "--out", tmp_path / "stats.h5")


def test_run_by_characteristic_gives_the_plan_of_its_statistics(texts, tmp_path):
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"c": texts["c"][:8]})
    mdp.succeed(4, "run", "--model", MODEL, "--tokens", tokens, "--method", "characteristic", "--keep", 4, "--out", tmp_path / "out")
    mdp.succeed(1, "plan", "--stats", tmp_path / "out" / "stats.h5", "--method", "characteristic", "--keep", 4, "--out", tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "out" / "plan.json").read_bytes()


def test_worst_category_scores_by_the_category_that_needs_the_expert_most(files, tmp_path):
    ours = scores(tmp_path, "reap", "--stats", files["all"], "--worst-category")
    plan = mdp.read_json(tmp_path / "plan.json")
    for layer in LAYERS:
        single = read(files["all"], layer, "gate_norm_sum") / np.maximum(read(files["all"], layer, "counts"), 1)
        relative = single / single.max(1, keepdims=True)
        assert np.allclose(ours[layer], relative.max(0), rtol=1e-8)
        kept = {expert["from"][0] for expert in plan["layers"][layer]["experts"]}
        assert set(single.argmax(1)) <= kept  # every category keeps the expert it needs most
    some = scores(tmp_path, "reap", "--stats", files["all"], "--worst-category", "--categories", "c,math")
    joined = scores(tmp_path, "reap", "--stats", f"{files['left']}:3", "--stats", files["right"], "--worst-category", "--categories", "c,math")
    assert np.allclose(some, joined, rtol=1e-5)


@pytest.mark.parametrize("sentence, words", [
    pytest.param("the statistics have no category 'latin'; they have c, json, math, prose", ["reap", "--categories", "c,latin"], id="unknown"),
    pytest.param("the weight in 'c:x' is not a positive number", ["reap", "--categories", "c:x"], id="no-number"),
    pytest.param("the weight in 'c:0' is not a positive number", ["reap", "--categories", "c:0"], id="zero"),
    pytest.param("names 'c' twice", ["reap", "--categories", "c,math,c:2"], id="twice"),
    pytest.param("are kept for all categories together", ["characteristic", "--categories", "c"], id="vector"),
    pytest.param("method 'magnitude' does not tell apart", ["magnitude", "--worst-category"], id="worst-without"),
    pytest.param("treats all categories alike", ["reap", "--worst-category", "--categories", "c:2"], id="worst-weighted"),
    pytest.param("--soft-mask has a meaning only with --method soft", ["reap", "--soft-mask", "all"], id="mask"),
])
def test_what_makes_no_sense_is_refused(sentence, words, files, tmp_path):
    mdp.refuse(1, 2, sentence, "plan", "--stats", files["all"], "--model", MODEL, "--method", *words, "--keep", 4, "--out",
               tmp_path / "plan.json")


# ---- super experts


@pytest.fixture(scope="module")
def massive(tmp_path_factory):
    """A file with 3 layers of 8 experts cannot flag any by the 99.5th percentile; edit one that has 100 layers instead."""
    folder = tmp_path_factory.mktemp("massive")
    random = np.random.default_rng(5)
    with h5py.File(observe(folder, "few", {"c": [np.arange(100)], "d": [np.arange(100, 200)]})) as few, h5py.File(folder / "stats.h5", "w") as out:
        for key, value in few.attrs.items():
            out.attrs[key] = value
        few.copy("categories", out)
        few.copy("category_tokens", out)
        for layer in range(100):
            few.copy("layers/0", out, f"layers/{layer}")
            out[f"layers/{layer}/max_abs"][...] = random.uniform(0, 1, (2, 8))
        for layer, expert, value in ((3, 0, 50), (3, 7, 40), (74, 2, 6), (10, 1, 4.9), (75, 5, 45)):
            out[f"layers/{layer}/max_abs"][1, expert] = value
    return folder / "stats.h5"


def test_super_experts_are_named_and_protected(massive, tmp_path):
    """Of 800 experts 4 exceed the percentile, 4.9; one of them is in the last quarter of 100 layers."""
    expected = [(3, 0), (3, 7), (74, 2)]
    for protect in (False, True):
        words = ["--protect-super-experts"] if protect else []
        out = tmp_path / f"{protect}.json"
        mdp.succeed(2, "plan", "--stats", massive, "--method", "random", "--keep", 2, "--out", out, *words)
        plan = mdp.read_json(out)
        assert [(one["layer"], one["expert"]) for one in plan["recipe"]["super_experts"]] == expected
        kept = [expert in [e["from"][0] for e in plan["layers"][layer]["experts"]] for layer, expert in expected]
        assert all(kept) == protect
        assert all(len(layer["experts"]) == 2 for layer in plan["layers"])
    mdp.succeed(1, "plan", "--stats", massive, "--method", "random", "--budget", "global", "--keep", 3, "--protect-super-experts", "--out",
                tmp_path / "global.json")
    plan = mdp.read_json(tmp_path / "global.json")
    assert all(expert in [e["from"][0] for e in plan["layers"][layer]["experts"]] for layer, expert in expected)
    assert sum(len(layer["experts"]) for layer in plan["layers"]) == 100 * 3


def test_more_super_experts_than_places_are_refused(massive, tmp_path):
    with h5py.File(massive) as one, h5py.File(tmp_path / "stats.h5", "w") as out:
        for key, value in one.attrs.items():
            out.attrs[key] = value
        for key in one:
            one.copy(key, out)
        out["layers/3/max_abs"][1, 4] = 60
    mdp.refuse(1, 2, "layer 3: 3 super experts are protected, so 2 cannot be kept", "plan", "--stats", tmp_path / "stats.h5", "--method",
               "reap", "--keep", 2, "--protect-super-experts", "--out", tmp_path / "plan.json")
