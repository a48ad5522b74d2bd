"""Channel norms and masks: against a forward pass in numpy (methods.h5), numpy's own masks, and transformers."""
import json
import re

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

import mdp

MODEL = mdp.GOLDEN / "mixtral"
NORMS = {"moe-pruner": ("gated_input_square", "gated_hidden_square"), "wanda": ("input_square", "hidden_square")}


def observe(out, tokens, *words, ranks=2, model=MODEL, norms="both"):
    mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out, "--channel-norms", norms, *words)
    return out


def read(path, layer, name):
    with h5py.File(path) as stats:
        return stats[f"layers/{layer}/{name}"][...]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return mdp.golden_tokens("mixtral", tmp_path_factory.mktemp("tokens") / "tokens.h5")


@pytest.fixture(scope="module")
def stats(tokens, tmp_path_factory):
    return observe(tmp_path_factory.mktemp("norms") / "stats.h5", tokens)


# ---- channel norms


@pytest.mark.parametrize("method", NORMS)
def test_norms_are_those_of_the_reference(method, stats):
    with h5py.File(MODEL / "methods.h5") as golden:
        inside = golden["layer1/inside"]
        expert = int(inside["expert"][()])
        for matrix, name in zip(("W_g", "W_u", "W_d"), (NORMS[method][0], *NORMS[method])):
            theirs = inside[f"{matrix}/{method}/a"][...] ** 2
            ours = read(stats, 1, name)[expert]
            assert np.abs(ours - theirs).max() <= 1e-5 * theirs.max()


def test_ranks_threads_and_batches_do_not_show(tmp_path):
    random = np.random.default_rng(5)
    text = mdp.write_tokens(tmp_path / "tokens.h5", {"a": list(random.integers(0, 256, (140, 128))), "b": list(random.integers(0, 256, (8, 128)))})
    first = observe(tmp_path / "1.h5", text, ranks=1).read_bytes()
    for ranks, words in ((2, ["--threads", 2]), (3, []), (4, []), (8, ["--batch-tokens", 16384]), (2, ["--batch-tokens", 16384])):
        assert observe(tmp_path / f"{ranks}-{len(words)}.h5", text, *words, "--overwrite", ranks=ranks).read_bytes() == first, (ranks, words)
    words = ["observe", "--model", MODEL, "--tokens", text, "--out", tmp_path / "parts.h5", "--channel-norms", "both", "--batch-tokens", 16384]
    resume = []
    for ranks in (2, 3, 1, 4, 2, 3, 1):
        codes = set(mdp.run(ranks, *words, "--stop-at", 1, *resume).codes)
        resume = ["--resume"]
        if codes == {0}:
            break
    assert codes == {0} and (tmp_path / "parts.h5").read_bytes() == first


def test_one_kind_is_half_of_both(tokens, stats, tmp_path):
    """And what else is in the file is what it is without."""
    for kind, method in (("gated", "moe-pruner"), ("plain", "wanda"), ("none", None)):
        one = observe(tmp_path / f"{kind}.h5", tokens, norms=kind)
        with h5py.File(one) as part, h5py.File(stats) as whole:
            assert part.attrs.get("channel_norms", b"none").decode() == kind
            there = {name for name in part["layers/1"] if "square" in name and not name.endswith("limbs")}
            assert there == set(NORMS.get(method, ()))
            for name in part["layers/1"]:
                assert np.array_equal(part[f"layers/1/{name}"][...], whole[f"layers/1/{name}"][...])
            assert set(whole["layers/1"]) - set(part["layers/1"]) >= {f"{n}{e}" for m in NORMS if m != method for n in NORMS[m] for e in ("", "_limbs")}


def test_weights_below_1_make_norms_smaller(tmp_path):
    """And experts without tokens have none, in a model of biased experts, by the counts beside them."""
    text = mdp.golden_tokens("gpt_oss", tmp_path / "tokens.h5")
    out = observe(tmp_path / "stats.h5", text, model=mdp.GOLDEN / "gpt_oss", ranks=3)
    gated, plain, gates = read(out, 0, "gated_input_square"), read(out, 0, "input_square"), read(out, 0, "gate_sum").sum(0)
    counts = read(out, 0, "counts").sum(0)
    assert gated.shape == plain.shape and (gated <= plain * (1 + 1e-6)).all()
    assert ((gated.sum(1) > 0) == (counts > 0)).all() and (gates <= counts).all()


def test_finished_statistics_without_norms_are_not_these(tokens, tmp_path):
    out = observe(tmp_path / "stats.h5", tokens, norms="plain")
    words = ["observe", "--model", MODEL, "--tokens", tokens, "--out", out, "--resume", "--channel-norms"]
    mdp.succeed(1, *words, "plain")
    assert set(mdp.run(1, *words, "gated").codes) == {73}


# ---- masks


def plan(out, stats, *words, ranks=1):
    mdp.succeed(ranks, "plan", "--stats", stats, "--out", out, *words)
    return out


def logits(ranks, model, tokens, out, *words):
    """Of the last stream: the plan where one is given, else the model."""
    mdp.succeed(ranks, "eval", "--model", model, "--tokens", tokens, "--dump", out, "--out", out.with_suffix(".json"), *words)
    with h5py.File(out) as dump:
        stream = dump[sorted(dump, key=lambda name: name == "original")[0]]
        return [value["logits"][...] for category in stream.values() for value in category.values()]


def norms_of(path, layer, kept):
    with h5py.File(path.with_suffix(".h5")) as arrays:
        return [arrays[f"layers/{layer}/experts/{kept}/{name}"][...] for name in ("input_norm", "hidden_norm")]


def kept_by(weights, norm, rule):
    """What numpy keeps of rows [n_row, n_col]."""
    score = np.abs(weights.astype(np.float64)) * norm.astype(np.float64)
    n_row, n_col = score.shape
    run, n_drop = (n_col, int(rule * n_col)) if isinstance(rule, float) else (rule[1], rule[1] - rule[0])
    parts = score.reshape(n_row, n_col // run, run)
    keep = np.ones(parts.shape, bool)
    np.put_along_axis(keep, np.argsort(parts, axis=2, kind="stable")[..., :n_drop], False, axis=2)
    return keep.reshape(n_row, n_col)


@pytest.mark.parametrize("method", NORMS)
@pytest.mark.parametrize("name, words", [("mask-50", ["--sparsity", 0.5]), ("mask-2-4", ["--nm", "2:4"])])
def test_masks_are_those_of_the_reference(method, name, words, stats, tmp_path):
    made = plan(tmp_path / "plan.json", stats, "--method", method, *words)
    mdp.succeed(2, "apply", "--model", MODEL, "--plan", made, "--out", tmp_path / "out", "--format", "safetensors")
    written, source = load_file(tmp_path / "out" / "hf" / "model.safetensors"), load_file(MODEL / "model.safetensors")
    with h5py.File(MODEL / "methods.h5") as golden:
        inside = golden["layer1/inside"]
        expert = int(inside["expert"][()])
        for matrix, short in (("W_g", "w1"), ("W_u", "w3"), ("W_d", "w2")):
            keep = inside[f"{matrix}/{method}/{name}"][...]
            tensor = f"model.layers.1.block_sparse_moe.experts.{expert}.{short}.weight"
            assert np.array_equal(written[tensor], source[tensor] * keep)


def test_of_equal_weights_those_of_lower_columns_go(tmp_path):
    """bf16 weights have many equals; by size alone no statistics are needed."""
    model = mdp.GOLDEN / "mixtral_bf16"
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--mask", "magnitude", "--sparsity", 0.3, "--out", tmp_path / "plan.json")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out", "--format", "safetensors")
    written, source = ({name: value.float().numpy() for path in folder.glob("*.safetensors") for name, value in load_torch(path).items()}
                       for folder in (tmp_path / "out" / "hf", model))
    assert written.keys() == source.keys()
    for name, value in source.items():
        keep = kept_by(value, np.ones(value.shape[-1]), 0.3) if ".experts." in name else 1
        assert np.array_equal(written[name], value * keep), name


CASES = [("mixtral", ["--method", "moe-pruner", "--sparsity", 0.3, "--keep", 6]), ("mixtral_bf16", ["--method", "wanda", "--nm", "2:4"]),
         ("deepseek_v3_fp8", ["--method", "moe-pruner", "--sparsity", 0.5]), ("gpt_oss", ["--method", "moe-pruner", "--nm", "2:4"]),
         ("gpt_oss_mxfp4", ["--method", "moe-pruner", "--sparsity", 0.5]),
         ("qwen3_moe_bf16", ["--method", "reap", "--mask", "magnitude", "--sparsity", 0.5, "--keep", 8])]


@pytest.mark.parametrize("name, words", CASES, ids=[name for name, _ in CASES])
def test_what_is_measured_is_what_is_written(name, words, tmp_path):
    """To the last bit, in every layout and type, also after experts were dropped, from a folder and from model.h5."""
    model, text = mdp.GOLDEN / name, mdp.golden_tokens(name, tmp_path / "tokens.h5")
    observe(tmp_path / "stats.h5", text, model=model)
    made = plan(tmp_path / "plan.json", tmp_path / "stats.h5", *words)
    virtual = logits(2, model, text, tmp_path / "virtual.h5", "--plan", made)
    whole = logits(1, model, text, tmp_path / "whole.h5")
    assert not all(np.array_equal(a, b) for a, b in zip(virtual, whole))
    mdp.succeed(3, "apply", "--model", model, "--plan", made, "--out", tmp_path / "out", "--format", "both")
    for result in ("hf", "model.h5"):
        written = logits(1, tmp_path / "out" / result, text, tmp_path / f"{result}-dump.h5")
        assert len(written) == len(virtual) and all(np.array_equal(a, b) for a, b in zip(virtual, written)), result
        mdp.succeed(2, "verify", tmp_path / "out" / result)
        mdp.refuse(2, 2, "a masked model cannot be traced", "verify", tmp_path / "out" / result, "--model", model)


def test_masks_of_interleaved_and_turned_weights_are_those_of_numpy(tmp_path):
    """gpt_oss: rows of gate and up are every second column of a stored matrix."""
    model, text, rule = mdp.GOLDEN / "gpt_oss", mdp.golden_tokens("gpt_oss", tmp_path / "tokens.h5"), (2, 4)
    observe(tmp_path / "stats.h5", text, model=model)
    made = plan(tmp_path / "plan.json", tmp_path / "stats.h5", "--method", "moe-pruner", "--nm", "2:4")
    mdp.succeed(2, "apply", "--model", model, "--plan", made, "--out", tmp_path / "out", "--format", "safetensors")
    written, source = (load_torch(folder / "model.safetensors") for folder in (tmp_path / "out" / "hf", model))
    for layer, entry in enumerate(mdp.read_json(made)["layers"]):
        for kept, expert in enumerate(entry["experts"]):
            read, hidden = norms_of(made, layer, kept) if "arrays" in expert else (np.ones(1, np.float32), np.ones(1, np.float32))
            base = f"model.layers.{layer}.mlp.experts."
            fused, down = (source[base + name][expert["from"][0]].float().numpy() for name in ("gate_up_proj", "down_proj"))
            theirs = np.empty_like(fused)
            for part in range(2):
                theirs[:, part::2] = fused[:, part::2] * kept_by(fused[:, part::2].T, read, rule).T
            assert np.array_equal(written[base + "gate_up_proj"][kept].float().numpy(), theirs)
            assert np.array_equal(written[base + "down_proj"][kept].float().numpy(), down * kept_by(down.T, hidden, rule).T)


def test_a_masked_folder_loads_in_transformers(tokens, stats, tmp_path):
    import torch
    import transformers
    made = plan(tmp_path / "plan.json", stats, "--method", "moe-pruner", "--sparsity", 0.5, "--keep", 6)
    mdp.succeed(2, "apply", "--model", MODEL, "--plan", made, "--out", tmp_path / "out", "--format", "safetensors")
    ours = logits(1, MODEL, tokens, tmp_path / "dump.h5", "--plan", made)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf", dtype=torch.float32).eval()
    with h5py.File(MODEL / "golden.h5") as golden:
        ids = golden["seq0/input_ids"][...].astype(np.int64)
    with torch.no_grad():
        theirs = model(torch.tensor(ids)[None]).logits[0].numpy()
    assert np.abs(ours[0] - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_an_expert_without_tokens_is_masked_by_size_and_listed(tmp_path):
    """The same text in two files adds up to the same masks as in one."""
    text = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [[5] * 9]})
    out = observe(tmp_path / "stats.h5", text)
    content = mdp.read_json(plan(tmp_path / "plan.json", out, "--method", "wanda", "--sparsity", 0.5))
    counts = [read(out, layer, "counts").sum(0) for layer in range(3)]
    without = [{"layer": layer, "expert": int(e)} for layer in range(3) for e in np.flatnonzero(counts[layer] == 0)]
    assert without and content["recipe"]["mask"] == {"by": "wanda", "sparsity": 0.5, "unrouted": without}
    assert [{"layer": l, "expert": e["from"][0]} for l, entry in enumerate(content["layers"]) for e in entry["experts"] if "arrays" not in e] == without
    mdp.succeed(1, "apply", "--model", MODEL, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out", "--format", "safetensors")
    written, source = load_file(tmp_path / "out" / "hf" / "model.safetensors"), load_file(MODEL / "model.safetensors")
    tensor = f"model.layers.{without[0]['layer']}.block_sparse_moe.experts.{without[0]['expert']}.w2.weight"
    assert np.array_equal(written[tensor], source[tensor] * kept_by(source[tensor], np.ones(1), 0.5))


def test_run_does_it_all_and_goes_on_after_a_stop(tokens, stats, tmp_path):
    """The same plan as in steps, on other ranks; what is foretold is written; the report says the mask and its share."""
    words = ["run", "--model", MODEL, "--tokens", tokens, "--eval-tokens", tokens, "--method", "moe-pruner", "--nm", "2:4", "--keep", 6, "--out"]
    steps = plan(tmp_path / "plan.json", stats, "--method", "moe-pruner", "--nm", "2:4", "--keep", 6)
    foretold = json.loads(mdp.succeed(2, *words, tmp_path / "dry", "--dry-run", "--json", "--gflops-per-rank", 10).stdout)
    assert {one["pass"] for one in foretold["passes"]} >= {"observe", "eval", "write model.h5"}
    mdp.succeed(3, *words, tmp_path / "whole")
    assert (tmp_path / "whole" / "plan.json").read_bytes() == steps.read_bytes()
    assert (tmp_path / "whole" / "plan.h5").read_bytes() == steps.with_suffix(".h5").read_bytes()
    resume, codes = [], []
    for ranks in (2, 1, 3, 2, 1, 2, 3, 1, 2, 3, 1, 2):
        codes.append(set(mdp.run(ranks, *words, tmp_path / "parts", "--stop-at", 1, *resume).codes))
        resume = ["--resume"]
        if codes[-1] == {0}:
            break
    assert len(codes) > 1 and codes[-1] == {0}
    assert mdp.results(tmp_path / "parts") == mdp.results(tmp_path / "whole")
    report = mdp.read_json(tmp_path / "whole" / "report.json")
    assert report["masked_share"] == 0.5 and ", 50% of the weights of those that stay set to 0" in report["sentence"]
    assert report["recipe"]["mask"] == {"by": "moe-pruner", "keep": 2, "of": 4}
    with h5py.File(tmp_path / "whole" / "model.h5") as result:
        assert json.loads(bytes(result["provenance"][()]))["recipe"]["mask"] == report["recipe"]["mask"]
    said = json.loads(mdp.succeed(1, "inspect", steps, "--json").stdout)
    assert all(layer["masked"] == layer["kept"] and len(layer["kept"]) == 6 for layer in said["layers"])


def test_run_with_norms_of_both_kinds_takes_those_of_its_mask(tokens, stats, tmp_path):
    steps = plan(tmp_path / "plan.json", stats, "--method", "wanda", "--sparsity", 0.5)
    mdp.succeed(1, "run", "--model", MODEL, "--tokens", tokens, "--method", "wanda", "--sparsity", 0.5, "--channel-norms", "both", "--out", tmp_path / "out",
                "--format", "hdf5")
    assert (tmp_path / "out" / "plan.h5").read_bytes() == steps.with_suffix(".h5").read_bytes()


def test_files_of_one_model_add(stats, tmp_path):
    """Sequences of the text in two files; a magnitude mask needs neither."""
    with h5py.File(MODEL / "golden.h5") as golden:
        sequences = [golden[f"seq{i}/input_ids"][...] for i in range(int(golden.attrs["num_sequences"]))]
    halves = [mdp.write_tokens(tmp_path / f"{i}-tokens.h5", {"golden": part}) for i, part in enumerate((sequences[:1], sequences[1:]))]
    parts = [observe(tmp_path / f"{i}.h5", text, norms="gated") for i, text in enumerate(halves)]
    words = ["--method", "moe-pruner", "--sparsity", 0.5, "--out"]
    mdp.succeed(1, "plan", "--stats", parts[0], "--stats", parts[1], *words, tmp_path / "sum.json")
    whole = plan(tmp_path / "whole.json", stats, *words[:-1])
    for layer in range(3):
        for kept in range(8):
            for ours, theirs in zip(norms_of(tmp_path / "sum.json", layer, kept), norms_of(whole, layer, kept)):
                assert np.abs(ours - theirs).max() <= 1e-5 * theirs.max()
    mdp.succeed(1, "plan", "--model", MODEL, "--method", "random", "--mask", "magnitude", "--nm", "2:4", "--out", tmp_path / "size.json")
    assert not (tmp_path / "size.h5").exists()


def test_ranks_do_not_show_in_plans_and_results(stats, tmp_path):
    seen = set()
    for ranks in (1, 2, 4):
        out = tmp_path / str(ranks)
        out.mkdir()
        plan(out / "plan.json", stats, "--method", "wanda", "--sparsity", 0.25, ranks=ranks)
        mdp.succeed(ranks, "apply", "--model", MODEL, "--plan", out / "plan.json", "--out", out / "out", "--format", "hdf5")
        seen.add(tuple((out / name).read_bytes() for name in ("plan.json", "plan.h5", "out/model.h5")))
    assert len(seen) == 1


# ---- what is refused


@pytest.mark.parametrize("words, sentence", [
    (["--method", "moe-pruner"], "--mask moe-pruner needs --sparsity R or --nm N:M"),
    (["--method", "moe-pruner", "--sparsity", 1], "--sparsity '1' is not a ratio between 0 and 1"),
    (["--method", "moe-pruner", "--sparsity", 0], "--sparsity '0' is not a ratio between 0 and 1"),
    (["--method", "wanda", "--nm", "2:5"], "keeps 2 of 5 columns does not go with hidden states of 64, which 5 does not divide"),
    (["--method", "wanda", "--nm", "2:32"], "does not go with neurons of experts of 80, which 32 does not divide"),
    (["--method", "wanda", "--nm", "4:4"], "--nm: '4:4' is not N:M"),
    (["--method", "wanda", "--nm", "0:4"], "--nm: a mask that keeps 0 of 4"),
    (["--method", "wanda", "--nm", "half"], "--nm: 'half' is not N:M"),
    (["--method", "wanda", "--nm", "2:4", "--sparsity", 0.5], "exclude each other"),
    (["--method", "reap", "--keep", 4, "--sparsity", 0.5], "--sparsity has no meaning without --mask"),
    (["--method", "reap", "--keep", 4, "--nm", "2:4"], "--nm has no meaning without --mask"),
    (["--method", "moe-pruner", "--keep", 4, "--merge", "mean", "--sparsity", 0.5], "--mask and --merge do not go together"),
    (["--method", "moe-pruner", "--sparsity", 0.5, "--categories", "a:2"], "channel norms are kept for all categories together"),
])
def test_options_that_cannot_be_are_refused(words, sentence, stats, tmp_path):
    mdp.refuse(1, 2, re.escape(sentence), "plan", "--stats", stats, "--out", tmp_path / "plan.json", *words)


@pytest.mark.parametrize("words", [["--refit", "auto"], ["--rounds", 2], ["--propagate", "pruned"], ["--neurons", "enp", "--keep-neurons", 0.5]], ids=lambda words: words[0])
def test_run_refuses_what_does_not_go_with_masks(words, tokens, tmp_path):
    mdp.refuse(1, 2, f"--mask and {words[0]} do not go together", "run", "--model", MODEL, "--tokens", tokens, "--method", "moe-pruner", "--sparsity",
               0.5, "--keep", 4, "--out", tmp_path / "out", *words)


def test_plans_that_do_not_fit_are_refused(tokens, stats, tmp_path):
    made = plan(tmp_path / "plan.json", stats, "--method", "moe-pruner", "--sparsity", 0.5)
    with h5py.File(tmp_path / "no-norms.h5", "w"):
        pass
    plain = tmp_path / "plain.h5"
    mdp.succeed(1, "observe", "--model", MODEL, "--tokens", tokens, "--out", plain)
    mdp.refuse(1, 65, "does not hold gated channel norms; observe with --channel-norms gated", "plan", "--stats", plain, "--method", "moe-pruner",
               "--sparsity", 0.5, "--out", tmp_path / "other.json")
    mdp.refuse(2, 65, "is for another model", "apply", "--model", mdp.GOLDEN / "mixtral_bf16", "--plan", made, "--out", tmp_path / "out")
    mdp.refuse(2, 2, "is masked, and a fitted down projection would have no zeros left", "refit", "--model", MODEL, "--tokens", tokens, "--plan", made,
               "--out", tmp_path / "fitted.json")
    mdp.refuse(2, 2, "is masked, and such experts cannot be trained", "recover", "--model", MODEL, "--tokens", tokens, "--plan", made, "--out",
               tmp_path / "trained.json")
    content = mdp.read_json(made)
    for expert in content["layers"][1]["experts"]:
        expert["mask"] = {"keep": 2, "of": 5}
    made.write_text(json.dumps(content))
    mdp.refuse(2, 65, "layer 1, expert 0: a mask that keeps 2 of 5 columns does not go with hidden states of 64", "apply", "--model", MODEL, "--plan",
               made, "--out", tmp_path / "out")
