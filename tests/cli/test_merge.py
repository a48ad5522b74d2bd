"""Merged experts: weighted sums of aligned members against numpy, in every stored type, on any number of ranks."""
import json

import h5py
import numpy as np
import pytest

import mdp

RANKS = [1, 2, 3, 4, 8]
FAMILIES = ["deepseek_v2_group", "deepseek_v3_fp8", "gpt_oss", "gpt_oss_mxfp4", "granitemoe", "mixtral_bf16", "olmoe", "phimoe", "ernie4_5_moe",
            "qwen3_moe_bf16", "minimax_m2", "glm4_moe"]


def write_plan(model, path, members, **how):
    """A plan in which every layer's experts are `members(n)`: lists of which several become one."""
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", path)
    plan = mdp.read_json(path)
    for layer in plan["layers"]:
        groups = members(len(layer["experts"]) + len(layer["dropped"]))
        layer["dropped"] = []
        layer["experts"] = []
        for group in groups:
            entry = {"from": group, "action": "keep"}
            if len(group) > 1:
                raw = np.arange(1, len(group) + 1)[::-1] ** 0.5
                entry = {"from": group, "action": "merge", "weights": list(raw / raw.sum()), "align": "weight", "router": "mean", **how}
            layer["experts"].append(entry)
    plan["uniform"] = True
    path.write_text(json.dumps(plan))
    return path


def halves(n):
    return [[2 * i, 2 * i + 1] for i in range(n // 2)]


def thirds(n):
    """Of three neighbours, which a group of the router holds, two become one."""
    return [group for i in range(0, n, 3) for group in ([i, i + 1], [i + 2])]


def random_tokens(model, path, n=20):
    vocabulary, random = mdp.read_json(model / "config.json").get("vocab_size"), np.random.default_rng(3)
    return mdp.write_tokens(path, {"a": [random.integers(vocabulary or 100, size=50) for _ in range(n)]})


def merge(ranks, model, plan, out, *words):
    return mdp.succeed(ranks, "merge", "--model", model, "--plan", plan, "--out", out, "--quiet", *words)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_measured_is_what_is_written_in_every_type(family, tmp_path):
    model = mdp.GOLDEN / family
    tokens = random_tokens(model, tmp_path / "t.h5")
    write_plan(model, tmp_path / "p.json", thirds if family == "deepseek_v2_group" else halves)
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "q.json", "--tokens", tokens, "--out", tmp_path / "e.json", "--quiet")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "both", "--quiet")
    merged = mdp.measures(tmp_path / "e.json")[1]
    assert merged["kl_to_original"]["total"] > 0
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == merged["nll"]


@pytest.mark.parametrize("rule", ["mean", "sum", "dominant"])
@pytest.mark.parametrize("case", ["frequency-none", "frequency-weight", "mean-none"])
def test_merged_weights_are_those_of_the_reference(case, rule, tmp_path):
    """Layer 1 of the golden checkpoint, where experts are noisy copies of others with neurons in another order."""
    model = mdp.GOLDEN / "mixtral"
    with h5py.File(model / "methods.h5") as file:
        label = file["layer1/grouping/hierarchical-average-4"][...]
        found = {name: value[...] for name, value in file["layer1/merge"][case].items()}
    groups = sorted(np.flatnonzero(label == g).tolist() for g in set(label))
    write_plan(model, tmp_path / "p.json", lambda n: groups)
    plan = mdp.read_json(tmp_path / "p.json")
    for expert, dominant in zip(plan["layers"][1]["experts"], found["dominant"]):
        if expert["action"] == "merge":
            expert.update(weights=found["a"][expert["from"]].tolist(), align=case.split("-")[1], dominant=int(dominant), router=rule)
    (tmp_path / "p.json").write_text(json.dumps(plan))
    merge(3, model, tmp_path / "p.json", tmp_path / "q.json")
    n_merged = 0
    for number, expert in enumerate(plan["layers"][1]["experts"]):
        if expert["action"] != "merge":
            continue
        n_merged += 1
        for ours, theirs in [("gate", found["W_g"]), ("up", found["W_u"]), ("down", found["W_d"]), ("router", found[f"router_{rule}"])]:
            value = mdp.plan_array(tmp_path / "q.json", 1, number, ours)
            assert np.abs(value - theirs[number]).max() <= 1e-6 * np.abs(theirs[number]).max(), (number, ours)
    assert n_merged > 0


def halves_of(family, tensors, layer, expert):
    """gate, up [f, d], down [d, f] and the biases of an expert as the family stores them in floating point."""
    if family == "gpt_oss":
        key = f"model.layers.{layer}.mlp.experts."
        both, bias = tensors[key + "gate_up_proj"][expert], tensors[key + "gate_up_proj_bias"][expert]
        return {"gate": both[:, 0::2].T, "up": both[:, 1::2].T, "down": tensors[key + "down_proj"][expert].T, "gate_bias": bias[0::2], "up_bias": bias[1::2],
                "down_bias": tensors[key + "down_proj_bias"][expert]}
    if family == "granitemoe":
        key = f"model.layers.{layer}.block_sparse_moe."
        both = tensors[key + "input_linear.weight"][expert]
        return {"gate": both[: len(both) // 2], "up": both[len(both) // 2 :], "down": tensors[key + "output_linear.weight"][expert]}
    key = f"model.layers.{layer}.mlp.experts.{expert}."
    return {name: tensors[f"{key}{name}_proj.weight"] for name in ("gate", "up", "down")}


@pytest.mark.parametrize("family", ["gpt_oss", "granitemoe", "olmoe"])
def test_every_value_stands_where_the_family_stores_it(family, tmp_path):
    """Fused, interleaved and transposed tensors of the result against sums of those of the original."""
    from safetensors.torch import load_file
    model = mdp.GOLDEN / family
    write_plan(model, tmp_path / "p.json", halves, align="none")
    merge(3, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.succeed(1, "apply", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "out", "--format", "safetensors", "--quiet")

    def load(folder):
        return {name: value.float().numpy() for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}

    before, after = load(model), load(tmp_path / "out" / "hf")
    for layer in mdp.read_json(tmp_path / "q.json")["layers"]:
        for number, expert in enumerate(layer["experts"]):
            found = halves_of(family, after, layer["layer"], number)
            members = [halves_of(family, before, layer["layer"], e) for e in expert["from"]]
            for part, value in found.items():
                wanted = sum(weight * member[part].astype(np.float64) for weight, member in zip(expert["weights"], members))
                assert np.abs(wanted).max() > 0 and np.abs(value - wanted).max() <= 5e-3 * np.abs(wanted).max(), (layer["layer"], number, part)


def test_the_same_bytes_on_any_number_of_ranks(tmp_path):
    write_plan(mdp.DEMO, tmp_path / "p.json", lambda n: [[0, 3, 5], [1], [2, 7], [4, 6]])
    found = set()
    for ranks in RANKS:
        for threads in [1, 2] if ranks < 3 else [1]:
            out = tmp_path / f"q-{ranks}-{threads}.json"
            merge(ranks, mdp.DEMO, tmp_path / "p.json", out, "--threads", threads)
            found.add((out.read_bytes(), out.with_suffix(".h5").read_bytes()))
    assert len(found) == 1


def shuffled_copy(model, out, layer=0, expert=1, copy=2):
    """A checkpoint in which an expert is another with its neurons in another order."""
    from safetensors.numpy import load_file, save_file
    out.mkdir()
    tensors = load_file(model / "model.safetensors")
    order = np.random.default_rng(2).permutation(tensors[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"].shape[0])
    for name in ("w1", "w3", "w2"):
        key = f"model.layers.{layer}.block_sparse_moe.experts.{{}}.{name}.weight"
        value = tensors[key.format(expert)]
        tensors[key.format(copy)] = np.ascontiguousarray(value[:, order] if name == "w2" else value[order])
    key = f"model.layers.{layer}.block_sparse_moe.gate.weight"
    tensors[key][copy] = tensors[key][expert]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_bytes((model / "config.json").read_bytes())
    return out


def test_aligned_twins_are_one_expert_and_unaligned_ones_are_not(tmp_path):
    model = shuffled_copy(mdp.GOLDEN / "mixtral", tmp_path / "model")
    write_plan(model, tmp_path / "p.json", lambda n: [[0], [1, 2], *[[e] for e in range(3, n)]])
    plan = mdp.read_json(tmp_path / "p.json")
    for layer in plan["layers"][1:]:
        layer["experts"] = [{"from": [e], "action": "keep"} for e in range(8)]
    plan["uniform"] = False
    for align in ("weight", "none"):
        plan["layers"][0]["experts"][1]["align"] = align
        (tmp_path / f"{align}.json").write_text(json.dumps(plan))
        merge(2, model, tmp_path / f"{align}.json", tmp_path / f"{align}-made.json")
    from safetensors.numpy import load_file
    tensors = load_file(model / "model.safetensors")
    for align in ("weight", "none"):
        worst = max(np.abs(mdp.plan_array(tmp_path / f"{align}-made.json", 0, 1, part) - tensors[f"model.layers.0.block_sparse_moe.experts.1.{name}.weight"]).max()
                    for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")))
        assert (worst <= 1e-6) == (align == "weight"), (align, worst)


def test_stopped_anywhere_it_goes_on_with_the_same_bytes(tmp_path):
    model = mdp.GOLDEN / "mixtral"
    write_plan(model, tmp_path / "p.json", halves)
    merge(2, model, tmp_path / "p.json", tmp_path / "whole.json")
    wanted = ((tmp_path / "whole.json").read_bytes(), (tmp_path / "whole.h5").read_bytes())
    for stop in (1, 2):
        out = tmp_path / f"parts-{stop}.json"
        words = ["merge", "--model", model, "--plan", tmp_path / "p.json", "--out", out, "--quiet"]
        assert mdp.run(3, *words, "--stop-at", stop).codes == [75] * 3
        assert not out.exists()
        mdp.succeed(stop, *words, "--resume")
        assert (out.read_bytes(), out.with_suffix(".h5").read_bytes()) == wanted
        mdp.succeed(2, *words, "--resume")  # nothing is left to do
    assert mdp.run(2, *words, "--stop-at", 1, "--overwrite").codes == [75] * 2


def first(plan):
    return plan["layers"][0]["experts"][0]


@pytest.mark.parametrize("code, change, sentence", [
    (65, lambda p: first(p).update(weights=[0.5, 0.4]), "the weights add up to 0.9, not to 1"),
    (65, lambda p: first(p).update(weights=[1.5, -0.5]), "not a number from 0 on"),
    (65, lambda p: first(p).update(dominant=3), "'dominant' is 3, which is not in 'from'"),
    (65, lambda p: first(p).update(router="best"), "mean, sum, max and dominant are possible"),
    (65, lambda p: first(p).update({"from": [0, 2]}), "expert 2 is named twice"),
    (2, lambda p: first(p).update(align="activation"), "are aligned by"),
    (65, lambda p: p["layers"][0]["experts"].__setitem__(0, {"from": [0], "action": "keep", "router": "mean"}), "has no 'router'"),
])
def test_bad_plans_are_refused_in_one_sentence(code, change, sentence, tmp_path):
    model = mdp.GOLDEN / "mixtral"
    plan = mdp.read_json(write_plan(model, tmp_path / "p.json", halves))
    change(plan)
    (tmp_path / "p.json").write_text(json.dumps(plan))
    mdp.refuse(2, code, sentence, "merge", "--model", model, "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json")
    assert not (tmp_path / "q.json").exists() and not (tmp_path / "q.h5").exists()


def test_what_is_not_made_or_not_whole_is_refused(tmp_path):
    model = mdp.GOLDEN / "mixtral"
    tokens = random_tokens(model, tmp_path / "t.h5")
    write_plan(model, tmp_path / "p.json", halves)
    evaluate = ["eval", "--model", model, "--tokens", tokens, "--out", tmp_path / "e.json", "--plan"]
    mdp.refuse(2, 2, "the command merge makes", *evaluate, tmp_path / "p.json")
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    mdp.refuse(2, 2, "has been made already", "merge", "--model", model, "--plan", tmp_path / "q.json", "--out", tmp_path / "r.json")
    plan = mdp.read_json(tmp_path / "q.json")
    del first(plan)["arrays"]["up"]
    (tmp_path / "q.json").write_text(json.dumps(plan))
    mdp.refuse(2, 65, "has no 'up' for it", *evaluate, tmp_path / "q.json")
    plan = mdp.read_json(write_plan(mdp.GOLDEN / "deepseek_v2_group", tmp_path / "g.json", lambda n: [[0], [1], [2, 3], *[[e] for e in range(4, n)]]))
    mdp.refuse(2, 65, "in other groups of the router", "merge", "--model", mdp.GOLDEN / "deepseek_v2_group", "--plan", tmp_path / "g.json", "--out",
               tmp_path / "h.json")


def test_dry_run_foretells_reading_and_disk(tmp_path):
    write_plan(mdp.DEMO, tmp_path / "p.json", halves)
    words = ["merge", "--model", mdp.DEMO, "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json"]
    estimate = json.loads(mdp.succeed(2, *words, "--dry-run", "--json").stdout)
    assert [p["pass"] for p in estimate["passes"]] == ["merge"] and not (tmp_path / "q.json").exists()
    real = mdp.succeed(2, *words, "--quiet", "--profile")
    profile = mdp.read_json(tmp_path / "q.json.profile.json")["passes"][0]
    assert profile["pass"] == "merge"
    assert sum(phase["flop"]["total"] for phase in profile["phases"].values()) == pytest.approx(estimate["flop"], rel=0.05)
    size = (tmp_path / "q.h5").stat().st_size
    assert estimate["bytes_written"] <= size <= 1.1 * estimate["bytes_written"]
    peak = max(real.peaks) * 1024
    assert estimate["memory_per_rank"] <= 1.2 * peak


@pytest.mark.parametrize("align", ["none", "weight"])
def test_dry_run_foretells_memory(align, tmp_path):
    mdp.tool("make-shape-model", "--experts", 4, "--hidden", 512, "--intermediate", 2048, "--layers", 1, "--vocab", 100, "--out", tmp_path / "model")
    write_plan(tmp_path / "model", tmp_path / "p.json", halves, align=align)
    words = ["merge", "--model", tmp_path / "model", "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json", "--quiet"]
    estimate = json.loads(mdp.succeed(1, *words, "--dry-run", "--json").stdout)
    peak = mdp.succeed(1, *words).peaks[0] * 1024
    assert 0.9 * peak <= estimate["memory_per_rank"] <= 1.15 * peak


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3_fp8", "gpt_oss", "qwen3_moe_bf16"])
def test_merged_experts_are_refitted(family, tmp_path):
    """What was measured after both is what is written, and nearer to the original than the merge alone."""
    model = mdp.GOLDEN / family
    tokens = random_tokens(model, tmp_path / "t.h5", 30)
    write_plan(model, tmp_path / "p.json", halves)
    merge(2, model, tmp_path / "p.json", tmp_path / "q.json")
    found = set()
    for ranks in (1, 3):
        mdp.succeed(ranks, "refit", "--model", model, "--plan", tmp_path / "q.json", "--tokens", tokens, "--ridge", "1e-2", "--out", tmp_path / f"r{ranks}.json",
                    "--quiet")
        found.add(((tmp_path / f"r{ranks}.json").read_bytes(), (tmp_path / f"r{ranks}.h5").read_bytes()))
    assert len(found) == 1
    for part in ("gate", "router"):
        assert (mdp.plan_array(tmp_path / "r1.json", 0, 1, part) == mdp.plan_array(tmp_path / "q.json", 0, 1, part)).all()
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "q.json", "--plan", tmp_path / "r1.json", "--tokens", tokens, "--out", tmp_path / "e.json",
                "--quiet")
    _, merged, fitted = mdp.measures(tmp_path / "e.json")
    assert fitted["kl_to_original"]["total"] < 0.8 * merged["kl_to_original"]["total"]
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "r1.json", "--out", tmp_path / "out", "--format", "both", "--quiet")
    for name in ["model.h5", "hf"]:
        mdp.succeed(3, "verify", tmp_path / "out" / name, "--model", model, "--quiet")
        mdp.succeed(1, "eval", "--model", tmp_path / "out" / name, "--tokens", tokens, "--out", tmp_path / "f.json", "--quiet", "--overwrite")
        assert mdp.measures(tmp_path / "f.json")[0]["nll"] == fitted["nll"]
    mdp.refuse(2, 2, "refitted already", "refit", "--model", model, "--plan", tmp_path / "r1.json", "--tokens", tokens, "--out", tmp_path / "s.json")


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Statistics of the golden text with similarities over all of its tokens."""
    folder = tmp_path_factory.mktemp("observed")
    tokens = mdp.golden_tokens("mixtral", folder / "tokens.h5")
    mdp.succeed(2, "observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--similarity",
                "output-mean-euclidean,cka-rbf,cka-linear,weight-cosine,weight-surrogate,router-logit,output-routed-mean-euclidean", "--probe-tokens", 4096,
                "--out", folder / "stats.h5")
    return folder


def groups_of(layer):
    return sorted(expert["from"] for expert in layer["experts"])


def plan(folder, out, *words):
    return mdp.succeed(1, "plan", "--stats", folder / "stats.h5", "--out", out, "--method", "frequency", "--merge", "frequency", *words)


@pytest.mark.parametrize("keep", [3, 4, 6])
@pytest.mark.parametrize("name, words", [
    ("hierarchical-average", ["--group", "hierarchical", "--group-by", "output-mean-euclidean"]),
    ("hierarchical-complete", ["--group", "hierarchical", "--linkage", "complete", "--group-by", "output-mean-euclidean"]),
    ("hierarchical-single", ["--group", "hierarchical", "--linkage", "single", "--group-by", "output-mean-euclidean"]),
    ("partition-cka-rbf-per-member", ["--group", "partition", "--group-by", "cka-rbf"]),
    ("partition-weight-cosine-per-member", ["--group", "partition", "--group-by", "weight-cosine"]),
])
def test_groups_are_those_of_the_reference(name, words, keep, observed, tmp_path):
    plan(observed, tmp_path / "p.json", *words, "--keep", keep)
    found = mdp.read_json(tmp_path / "p.json")
    n = 0
    with h5py.File(mdp.GOLDEN / "mixtral" / "methods.h5") as file:
        for layer in found["layers"]:
            wanted = file[f"layer{layer['layer']}/grouping/{name}-{keep}"]
            if "value_of_second_best" in wanted.attrs and wanted.attrs["value"] - wanted.attrs["value_of_second_best"] < 1e-4:
                continue
            label, n = wanted[...], n + 1
            assert groups_of(layer) == sorted(np.flatnonzero(label == g).tolist() for g in set(label)), layer["layer"]
            for expert in layer["experts"]:
                if expert["action"] == "merge":
                    assert sum(expert["weights"]) == pytest.approx(1) and expert["dominant"] in expert["from"]
    assert n >= 2


@pytest.mark.parametrize("words", [["--group", "kmeans", "--group-by", "output-mean-euclidean"], ["--group", "spectral", "--group-by", "router-logit"],
                                   ["--group", "dominant", "--group-by", "router-logit", "--budget", "global", "--min-keep", 2],
                                   ["--group", "centroid", "--group-by", "router-logit", "--max-group", 3, "--keep-whole", 0.5],
                                   ["--group", "hierarchical", "--linkage", "ward", "--group-by", "output-routed-mean-euclidean", "--frequency-penalty"]])
def test_every_way_to_group_names_each_expert_once(words, observed, tmp_path):
    plan(observed, tmp_path / "p.json", *words, "--keep", 4)
    found = mdp.read_json(tmp_path / "p.json")
    for layer in found["layers"]:
        assert sorted(sum(groups_of(layer), [])) == list(range(8)) and not layer["dropped"]
        if "--max-group" in words:
            assert max(map(len, groups_of(layer))) <= 3 and sum(len(g) == 1 for g in groups_of(layer)) >= 2
    assert sum(len(layer["experts"]) for layer in found["layers"]) == 4 * len(found["layers"])
    assert found["recipe"]["merge"]["group"] == words[1]


def test_a_representative_is_the_best_of_its_group(observed, tmp_path):
    words = ["--group", "hierarchical", "--group-by", "output-mean-euclidean", "--keep", 4]
    plan(observed, tmp_path / "groups.json", *words)
    mdp.succeed(1, "plan", "--stats", observed / "stats.h5", "--out", tmp_path / "p.json", "--method", "reap", "--merge", "representative", *words)
    for layer, groups in zip(mdp.read_json(tmp_path / "p.json")["layers"], mdp.read_json(tmp_path / "groups.json")["layers"]):
        best = sorted(max(group, key=lambda e: layer["scores"][e]) for group in groups_of(groups))
        assert [e["from"] for e in layer["experts"]] == [[e] for e in best] and all(e["action"] == "keep" for e in layer["experts"])
        assert [d["expert"] for d in layer["dropped"]] == [e for e in range(8) if e not in best]


def entropy(groups, n):
    return -sum(len(group) / n * np.log(len(group) / n) for group in groups)


def between(matrix, one, other):
    return np.mean([matrix[i, j] for i in one for j in other])


def counts_by_turns(matrices, total, least, gamma=0.1):
    """Step by step: the layer with the most similarity left between its groups joins its most similar two."""
    layers = [[[e] for e in range(len(matrix))] for matrix in matrices]
    start, frozen = [entropy(groups, 8) for groups in layers], set()
    while sum(map(len, layers)) > total:
        may = [l for l, groups in enumerate(layers) if l not in frozen and len(groups) > least]
        if not may:
            frozen, start = set(), [entropy(groups, 8) for groups in layers]
            continue
        pairs = [[(between(matrices[l], a, b), a, b) for i, a in enumerate(groups) for b in groups[i + 1:]] for l, groups in enumerate(layers)]
        best = max(may, key=lambda l: sum(pair[0] for pair in pairs[l]))
        _, one, other = max(pairs[best], key=lambda pair: pair[0])
        one += other
        layers[best].remove(other)
        if entropy(layers[best], 8) < (1 - gamma) * start[best]:
            frozen.add(best)
    return [len(groups) for groups in layers]


@pytest.mark.parametrize("keep, least", [(3, 2), (4, 2), (5, 3), (6, 2)])
@pytest.mark.parametrize("name", ["cka-rbf", "output-mean-euclidean", "weight-surrogate"])
def test_layers_that_are_most_alike_merge_most(name, keep, least, observed, tmp_path):
    plan(observed, tmp_path / "p.json", "--group-by", name, "--budget", "grape", "--keep", keep, "--min-keep", least)
    found = mdp.read_json(tmp_path / "p.json")
    with h5py.File(observed / "stats.h5") as file:
        matrices = [file[f"layers/{layer['layer']}/similarity/{name}"][...] for layer in found["layers"]]
    if name != "cka-rbf":
        matrices = [1 - np.abs(matrix) / np.abs(matrix).max() for matrix in matrices]
    wanted = counts_by_turns(matrices, keep * len(matrices), least)
    assert [len(layer["experts"]) for layer in found["layers"]] == wanted and sum(wanted) == keep * len(matrices)
    assert found["uniform"] == (len(set(wanted)) == 1) and found["recipe"]["budget"] == "grape" and found["recipe"]["options"]["min_keep"] == least
    assert all(sorted(sum(groups_of(layer), [])) == list(range(8)) for layer in found["layers"])


def test_unequal_merges_are_written_as_unequal_layers_are(tmp_path):
    random = np.random.default_rng(6)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [random.integers(1000, size=120) for _ in range(8)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--method", "grape", "--keep", 4, "--quiet", "--out"]
    mdp.refuse(2, 2, "layers differ", *words, tmp_path / "both", "--format", "both")
    mdp.succeed(3, *words, tmp_path / "out", "--format", "hdf5")
    found = mdp.read_json(tmp_path / "out" / "plan.json")
    assert not found["uniform"] and sum(len(layer["experts"]) for layer in found["layers"]) == 24
    assert found["recipe"]["merge"]["similarity"] == "output-cosine" and found["recipe"]["budget"] == "grape"
    mdp.succeed(2, "verify", tmp_path / "out" / "model.h5", "--model", mdp.DEMO, "--quiet")


@pytest.mark.parametrize("code, words, sentence", [
    (2, ["--budget", "grape"], "--budget grape is for merges"),
    (2, ["--merge", "mean", "--budget", "grape", "--group-by", "router-logit", "--keep-multiple-of", 2], "--keep-multiple-of does not go with it"),
    (2, ["--merge", "mean", "--group", "spectral", "--group-by", "weight-surrogate"], "--group spectral needs similarities above 0"),
    (2, ["--merge", "none", "--align", "weight"], "--align has no meaning without --merge"),
    (2, ["--merge", "mean", "--pruned-route", "zero"], "does not go with it"),
    (2, ["--merge", "mean", "--group", "kmeans", "--group-by", "router-logit"], "means of vectors are needed"),
    (65, ["--merge", "mean", "--group-by", "co-activation"], "co-activation"),
    (2, ["--merge", "mean", "--group", "centroid", "--max-group", 1, "--group-by", "router-logit"], ""),
    (2, ["--merge", "mean", "--max-group", 3], "--max-group has a meaning with --group centroid"),
    (2, ["--merge", "mean", "--group", "spectral", "--linkage", "single", "--group-by", "router-logit"], "--linkage has a meaning"),
    (2, ["--merge", "mean", "--group", "kmeans", "--frequency-penalty"], "--group kmeans has none"),
    (2, ["--merge", "mean", "--protect-super-experts"], "does not go with it"),
])
def test_what_cannot_be_grouped_is_refused(code, words, sentence, observed, tmp_path):
    mdp.refuse(2, code, sentence, "plan", "--stats", observed / "stats.h5", "--method", "frequency", "--keep", 4, "--out", tmp_path / "p.json", *words)
    assert not (tmp_path / "p.json").exists()


def test_a_run_merges_refits_and_goes_on_where_it_was_stopped(tmp_path):
    random = np.random.default_rng(5)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {c: [random.integers(1000, size=120) for _ in range(8)] for c in "ab"})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "m-smoe", "--keep", 4, "--refit", "joint", "--ridge", "1e-2",
             "--format", "hdf5", "--quiet"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    whole, arrays = mdp.results(tmp_path / "whole"), (tmp_path / "whole" / "plan.h5").read_bytes()
    recipe = mdp.read_json(tmp_path / "whole" / "plan.json")["recipe"]
    assert recipe["merge"]["group"] == "dominant" and recipe["refit"]["layers"]
    for stop in (7, 9, 11, 14):
        out = tmp_path / f"parts-{stop}"
        assert mdp.run(3, *words, "--out", out, "--stop-at", stop).codes == [75] * 3
        mdp.succeed(stop % 3 + 1, *words, "--out", out, "--resume")
        assert mdp.results(out) == whole and (out / "plan.h5").read_bytes() == arrays, stop
    mdp.succeed(2, "verify", tmp_path / "whole" / "model.h5", "--model", mdp.DEMO, "--quiet")


def test_a_run_that_only_merges_writes_what_it_has_measured(tmp_path):
    random = np.random.default_rng(6)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [random.integers(1000, size=120) for _ in range(8)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "hc-smoe", "--keep", 4, "--format", "both", "--quiet", "--out"]
    for ranks in (1, 3):
        mdp.succeed(ranks, *words, tmp_path / str(ranks))
    assert mdp.digests(tmp_path / "1" / "hf") == mdp.digests(tmp_path / "3" / "hf")
    measured = mdp.measures(tmp_path / "1" / "eval.json")[1]
    mdp.succeed(2, "eval", "--model", tmp_path / "1" / "hf", "--tokens", tokens, "--out", tmp_path / "e.json", "--quiet")
    assert mdp.measures(tmp_path / "e.json")[0]["nll"] == measured["nll"]
    report = mdp.read_json(tmp_path / "1" / "report.json")
    assert any(layer["merged"] for layer in report["layers"])
