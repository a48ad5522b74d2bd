"""What sets of experts lose (method naee): against the reference in float64, against written models, and the same bytes however it is run."""
import itertools
import json

import h5py
import numpy as np
import pytest

import mdp
import random_checkpoints

MODEL = mdp.GOLDEN / "mixtral"
FAMILIES = ["mixtral", "qwen2_moe", "deepseek_v3"]


def observe(out, tokens, *words, ranks=1, model=MODEL):
    mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out, *words)
    return out


def sets_of(n_expert, keep, n_group=1):
    """In lexicographic order; in groups, equally many of each."""
    size = n_expert // n_group
    groups = [[[g * size + e for e in part] for part in itertools.combinations(range(size), keep // n_group)] for g in range(n_group)]
    return [sum(parts, []) for parts in itertools.product(*groups)]


def found(path, layer, keep):
    """{dataset: values} and {attribute: value} of the sets of one size."""
    with h5py.File(path) as stats:
        group = stats[f"layers/{layer}/subsets/{keep}"]
        return {name: group[name][...] for name in group}, {name: value.decode() if isinstance(value, bytes) else value
                                                            for name, value in group.attrs.items()}


def layers_of(path):
    with h5py.File(path) as stats:
        return sorted(map(int, stats["layers"]))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return {name: mdp.golden_tokens(name, folder / f"{name}.h5") for name in FAMILIES}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two categories, in blocks of 16,384 tokens, so that there can be several batches."""
    choose = np.random.default_rng(5)
    return mdp.write_tokens(tmp_path_factory.mktemp("text") / "tokens.h5", {
        "a": [choose.integers(0, 100, 200) for _ in range(80)], "b": [choose.integers(0, 100, 100) for _ in range(20)]})


@pytest.fixture(scope="module")
def golden(tokens, tmp_path_factory):
    """Statistics with batches of one sequence, and of all."""
    folder = tmp_path_factory.mktemp("subsets")
    return {"by-sequence": observe(folder / "1.h5", tokens["mixtral"], "--subsets", 4),
            "one-batch": observe(folder / "all.h5", tokens["mixtral"], "--subsets", "6,4", "--naee-batch", 1000)}


# ---- the numbers


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("batches", ["by-sequence", "one-batch"])
def test_every_loss_and_the_choice_equal_the_reference(batches, layer, golden):
    ours, said = found(golden[batches], layer, 4)
    with h5py.File(MODEL / "methods.h5") as methods:
        theirs, subsets = methods[f"layer{layer}/naee/{batches}"], methods[f"layer{layer}/naee/subsets"][...]
        losses, best = theirs["loss"][...], theirs["best"][...]
        second = theirs["best"].attrs["loss_of_second_best"]
    assert subsets.tolist() == sets_of(8, 4) and said == {"search": "every", "n_tried": 70}
    assert np.abs(ours["losses"] - losses).max() <= 1e-5 * losses.max()
    assert ours["kept"].tolist() == best.tolist()
    assert ours["best"] == pytest.approx([losses.min(), second], rel=1e-5)
    without = [min(loss for loss, kept in zip(losses, subsets) if e not in kept) for e in range(8)]
    assert ours["without"] == pytest.approx(without, rel=1e-5)


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_search_equals_the_reference(search, tokens, golden, tmp_path):
    out = observe(tmp_path / "stats.h5", tokens["mixtral"], "--subsets", 4, "--max-subsets", 69, "--subset-search", search, ranks=3)
    for layer in range(3):
        (ours, said), (every, _) = found(out, layer, 4), found(golden["by-sequence"], layer, 4)
        assert said["search"] == search and "losses" not in ours and 5 <= said["n_tried"] < 70
        loss = every["losses"][sets_of(8, 4).index(ours["kept"].tolist())]
        assert ours["best"][0] == pytest.approx(loss, rel=1e-9)
        with h5py.File(MODEL / "methods.h5") as methods:
            greedy = methods[f"layer{layer}/naee/by-sequence/greedy"]
            if search == "greedy":
                assert ours["kept"].tolist() == greedy[...].tolist() and said["n_tried"] == 5
            else:
                assert ours["best"][0] <= greedy.attrs["loss"] * (1 + 1e-6)


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_search_leaves_every_group_its_part(search, tokens, tmp_path):
    """Four groups of four: two of each stay, although they go one by one; what a set loses is as when all are tried."""
    model = mdp.GOLDEN / "deepseek_v3"
    every = observe(tmp_path / "every.h5", tokens["deepseek_v3"], "--subsets", 8, model=model)
    out = observe(tmp_path / "stats.h5", tokens["deepseek_v3"], "--subsets", 8, "--max-subsets", 5, "--subset-search", search, model=model)
    for layer in layers_of(out):
        (ours, _), (all_of_them, _) = found(out, layer, 8), found(every, layer, 8)
        assert [expert // 4 for expert in ours["kept"]] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert ours["best"][0] == pytest.approx(all_of_them["losses"][sets_of(16, 8, 4).index(ours["kept"].tolist())], rel=1e-9)
    mdp.succeed(1, "plan", "--stats", out, "--method", "naee", "--keep", 8, "--out", tmp_path / "plan.json")
    kept = [[expert["from"][0] for expert in layer["experts"]] for layer in mdp.read_json(tmp_path / "plan.json")["layers"]]
    assert kept == [found(out, layer, 8)[0]["kept"].tolist() for layer in layers_of(out)]


@pytest.mark.parametrize("name", FAMILIES)
def test_other_rules_of_routing(name, tokens, tmp_path):
    """Weights that do not add up to 1 (qwen2_moe); sigmoid, groups and a bias (deepseek_v3): squared errors of sets that the reference names."""
    model = mdp.GOLDEN / name
    with h5py.File(model / "scores2.h5") as scores, h5py.File(model / "golden.h5") as golden:
        layers = [int(key[5:]) for key in scores if key.startswith("layer")]
        parts = [golden[f"seq{i}"] for i in range(int(golden.attrs["num_sequences"]))]
        norms = {layer: sum((part[f"layer{layer}/routed_output"][...].astype(float)**2).sum() for part in parts) for layer in layers}
        want = {layer: {key: scores[f"layer{layer}/sensitivity/{key}"][...] for key in ("m", "error", "kept")} for layer in layers}
    sizes = [int(m) for m in want[layers[0]]["m"] if m < want[layers[0]]["kept"].shape[1]]
    n_group = 4 if name == "deepseek_v3" else 1
    out = observe(tmp_path / "stats.h5", tokens[name], "--subsets", ",".join(map(str, sizes)), "--naee-batch", 100, model=model, ranks=3)
    for layer in layers:
        for m, error, kept in zip(*(want[layer][key] for key in ("m", "error", "kept"))):
            if m == kept.size:
                continue
            sets = sets_of(kept.size, int(m), n_group)
            losses = found(out, layer, m)[0]["losses"]
            assert len(losses) == len(sets)
            assert losses[sets.index(np.flatnonzero(kept).tolist())] == pytest.approx((error * norms[layer])**0.5, rel=1e-4), (layer, m)


@pytest.mark.parametrize("name, keep", [("gpt_oss", 3), ("phimoe", 3), ("granitemoe", 3), ("ernie4_5_moe", 4), ("minimax_m2", 4),
                                        ("deepseek_v2_group", 8), ("olmoe", 5), ("glm4_moe", 4), ("mixtral_bf16", 3), ("deepseek_v3_fp8", 4)])
def test_a_loss_is_what_the_plan_really_loses(name, keep, tmp_path):
    """In the first layer with experts both see the same: the outputs of the block with and without the others."""
    check_what_is_lost(mdp.GOLDEN / name, mdp.golden_tokens(name, tmp_path / "tokens.h5"), keep, tmp_path)


def test_weights_may_multiply_what_experts_read(tmp_path):
    """llama4, two experts a token of six."""
    model = random_checkpoints.write(random_checkpoints.draw(45), 45, tmp_path / "model")
    ids = np.random.default_rng(3).integers(0, 60, 150)
    check_what_is_lost(model, mdp.write_tokens(tmp_path / "tokens.h5", {"golden": [ids[:70], ids[70:]]}), 3, tmp_path)


def check_what_is_lost(model, text, keep, tmp_path):
    stats = observe(tmp_path / "stats.h5", text, "--subsets", keep, "--naee-batch", 100, model=model)
    mdp.succeed(1, "plan", "--stats", stats, "--method", "naee", "--keep", keep, "--out", tmp_path / "plan.json")
    mdp.succeed(1, "eval", "--model", model, "--tokens", text, "--plan", tmp_path / "plan.json", "--out", tmp_path / "eval.json", "--dump",
                tmp_path / "dump.h5")
    layer = layers_of(stats)[0]
    with h5py.File(tmp_path / "dump.h5") as dump:
        outputs = [np.concatenate([part[f"layers/{layer}/moe_output"][...] for part in dump[f"{stream}/golden"].values()]).astype(float)
                   for stream in dump]
    assert len(outputs) == 2
    ours, _ = found(stats, layer, keep)
    assert ours["best"][0] == pytest.approx(np.linalg.norm(outputs[0] - outputs[1]), rel=1e-4)
    kept = [expert["from"][0] for expert in mdp.read_json(tmp_path / "plan.json")["layers"][0]["experts"]]
    assert kept == ours["kept"].tolist()


def test_batches_of_sequences_are_cut_by_number(text, tmp_path):
    """The same sets from losses of single sequences, which a batch of one sequence gives for a text of one sequence."""
    with h5py.File(text) as file:
        ids, offsets = file["b/input_ids"][...], file["b/offsets"][...]
    squares = []
    for i in range(5):
        one = mdp.write_tokens(tmp_path / f"{i}-tokens.h5", {"b": [ids[offsets[i]:offsets[i + 1]]]})
        squares.append(found(observe(tmp_path / f"{i}.h5", one, "--subsets", 6), 1, 6)[0]["losses"]**2)
    five = mdp.write_tokens(tmp_path / "tokens.h5", {"b": [ids[offsets[i]:offsets[i + 1]] for i in range(5)]})
    for batch in (1, 2, 3, 5):
        losses = found(observe(tmp_path / f"of-{batch}.h5", five, "--subsets", 6, "--naee-batch", batch, ranks=3), 1, 6)[0]["losses"]
        want = sum(np.sqrt(sum(squares[first:first + batch])) for first in range(0, 5, batch))
        assert losses == pytest.approx(want, rel=1e-5), batch


def test_a_sample_is_of_whole_sequences(tokens, tmp_path):
    """Of 7, 33 and 64 tokens: losses are sums over those that were drawn, as the seed says."""
    with h5py.File(MODEL / "golden.h5") as golden:
        parts = [golden[f"seq{i}/input_ids"][...] for i in range(3)]
    each = [found(observe(tmp_path / f"{i}.h5", mdp.write_tokens(tmp_path / f"{i}-tokens.h5", {"golden": [part]}), "--subsets", 6), 0, 6)[0]["losses"]
            for i, part in enumerate(parts)]
    drawn = set()
    for seed in range(4):
        out = observe(tmp_path / f"seed-{seed}.h5", tokens["mixtral"], "--subsets", 6, "--naee-tokens", 34, "--seed", seed, ranks=1 + seed % 3)
        losses = found(out, 0, 6)[0]["losses"]
        fits = [chosen for n in (1, 2, 3) for chosen in itertools.combinations(range(3), n)
                if np.allclose(losses, sum(each[i] for i in chosen), rtol=1e-5)]
        assert len(fits) == 1 and sum(len(parts[i]) for i in fits[0]) >= 34, (seed, fits)
        drawn.add(fits[0])
    assert len(drawn) > 1


# ---- the same bytes


@pytest.mark.parametrize("words", [["--subsets", "3,6", "--naee-batch", 7], ["--subsets", 4, "--max-subsets", 10, "--subset-search", "beam"]],
                         ids=["every", "beam"])
def test_ranks_threads_and_batches_do_not_show(words, text, tmp_path):
    first = observe(tmp_path / "1.h5", text, *words, ranks=1).read_bytes()
    batches = ["--batch-tokens", 16384] if "beam" not in words else []
    for ranks, more in ((2, ["--threads", 2]), (3, []), (4, []), (8, batches), (2, batches)):
        out = observe(tmp_path / f"{ranks}-{len(more)}.h5", text, *words, *more, "--overwrite", ranks=ranks)
        assert out.read_bytes() == first, (ranks, more)


@pytest.mark.parametrize("search", [[], ["--max-subsets", 10]], ids=["every", "greedy"])
def test_stopped_anywhere(search, text, tmp_path):
    whole = observe(tmp_path / "whole.h5", text, "--subsets", 6, "--naee-batch", 3, *search)
    words = ["observe", "--model", MODEL, "--tokens", text, "--out", tmp_path / "parts.h5", "--subsets", 6, "--naee-batch", 3, *search,
             *([] if search else ["--batch-tokens", 16384])]
    resume, codes = [], []
    for ranks in (2, 3, 1, 4, 2, 3, 1, 2, 4, 3, 1, 2, 3):
        codes.append(set(mdp.run(ranks, *words, "--stop-at", 1, *resume).codes))
        resume = ["--resume"]
        if codes[-1] == {0}:
            break
    assert codes == [{75}] * (len(codes) - 1) + [{0}] and len(codes) > (5 if search else 10)
    assert (tmp_path / "parts.h5").read_bytes() == whole.read_bytes()


def test_run_measures_what_it_needs(tokens, golden, tmp_path):
    """The same statistics and the same plan as in steps, for the numbers of its budget."""
    mdp.succeed(1, "run", "--model", MODEL, "--tokens", tokens["mixtral"], "--method", "naee", "--keep", 4, "--out", tmp_path / "out", "--format", "hdf5")
    assert (tmp_path / "out" / "stats.h5").read_bytes() == golden["by-sequence"].read_bytes()
    mdp.succeed(1, "plan", "--stats", golden["by-sequence"], "--method", "naee", "--keep", 4, "--out", tmp_path / "plan.json")
    assert (tmp_path / "out" / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    plan = mdp.read_json(tmp_path / "plan.json")
    for layer, said in zip(plan["layers"], plan["recipe"]["subsets"]["layers"]):
        ours, _ = found(golden["by-sequence"], layer["layer"], 4)
        assert [expert["from"][0] for expert in layer["experts"]] == ours["kept"].tolist()
        assert layer["scores"] == pytest.approx(ours["without"], rel=1e-8)
        assert (said["search"], said["n_tried"]) == ("every", 70) and [said["loss"], said["next"]] == pytest.approx(ours["best"], rel=1e-8)
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({"0": 6, "1": 4, "2": 8}))
    mdp.succeed(2, "run", "--model", MODEL, "--tokens", tokens["mixtral"], "--method", "naee", "--keep-file", sizes, "--naee-batch", 1000, "--out",
                tmp_path / "list", "--format", "hdf5")
    assert (tmp_path / "list" / "stats.h5").read_bytes() == golden["one-batch"].read_bytes()
    assert [len(layer["experts"]) for layer in mdp.read_json(tmp_path / "list" / "plan.json")["layers"]] == [6, 4, 8]


def test_statistics_without_are_as_ever(tokens, golden, tmp_path):
    observe(tmp_path / "plain.h5", tokens["mixtral"])
    with h5py.File(tmp_path / "plain.h5") as plain, h5py.File(golden["by-sequence"]) as full:
        assert "subsets" not in plain.attrs and "subsets" not in plain["layers/0"]
        for name in plain["layers/1"]:
            assert np.array_equal(plain[f"layers/1/{name}"][...], full[f"layers/1/{name}"][...])


# ---- what it takes


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_dry_run_foretells_what_is_counted(ranks, text, tmp_path):
    words = ["observe", "--model", MODEL, "--tokens", text, "--subsets", 4, "--out", tmp_path / "stats.h5"]
    foretold = json.loads(mdp.succeed(ranks, *words, "--dry-run", "--json", "--gflops-per-rank", 10).stdout)
    one = next(one["all_ranks"] for one in foretold["passes"] if one["pass"] == "subsets")
    result = mdp.succeed(ranks, *words, "--profile")
    counted = next(one for one in mdp.read_json(tmp_path / "stats.h5.profile.json")["passes"] if one["pass"] == "subsets")
    totals = {key: sum(phase[key]["total"] for phase in counted["phases"].values() if key in phase) for key in ("flop", "bytes_read")}
    assert totals["flop"] == pytest.approx(one["flop"], rel=1e-6) and totals["bytes_read"] == pytest.approx(one["bytes_read"], rel=0.02)
    assert max(result.peaks) <= foretold["memory_per_rank"] * 1.05


# ---- what is refused


def test_what_cannot_be(tokens, text, golden, tmp_path):
    def plan(code, sentence, *words, stats=golden["by-sequence"]):
        mdp.refuse(1, code, sentence, "plan", "--stats", stats, "--method", "naee", "--out", tmp_path / "plan.json", *words)
    plan(2, "do not say what sets of 5 experts lose; observe one text with --subsets 5", "--keep", 5)
    plan(2, "--budget global ranks all layers together", "--keep", 4, "--budget", "global")
    plan(2, "--top-k does not go with it", "--keep", 4, "--top-k", 1)
    plan(2, "--protect-super-experts does not go", "--keep", 4, "--protect-super-experts")

    def measure(sentence, *words, name="mixtral"):
        mdp.refuse(1, 2, sentence, "observe", "--model", mdp.GOLDEN / name, "--tokens", tokens[name], "--out", tmp_path / "stats.h5", *words)
    measure("--subsets 4;6: must be numbers of experts to keep", "--subsets", "4;6")
    measure("keeping 1 experts is less than the 2 that each token uses", "--subsets", "1,4")
    measure("9 experts cannot be kept of 8", "--subsets", "9")
    measure("--max-subsets has no meaning without --subsets", "--max-subsets", 10)
    measure("6 experts to keep are not a multiple of 4", "--subsets", 6, name="deepseek_v3")
    mdp.refuse(1, 2, "a search for sets of experts judges a layer from all 18000 tokens .* leave --batch-tokens out", "observe", "--model", MODEL,
               "--tokens", text, "--out", tmp_path / "stats.h5", "--subsets", 4, "--max-subsets", 2, "--batch-tokens", 16384)


def test_finished_statistics_of_other_sets_are_not_these(golden, tokens, tmp_path):
    out = observe(tmp_path / "stats.h5", tokens["mixtral"], "--subsets", 4)
    words = ["observe", "--model", MODEL, "--tokens", tokens["mixtral"], "--out", out, "--resume"]
    mdp.succeed(1, *words, "--subsets", 4)
    assert set(mdp.run(1, *words, "--subsets", 6).codes) == {73} and set(mdp.run(1, *words).codes) == {73}
