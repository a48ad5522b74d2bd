"""Sums for neurons: against the reference in float64, the same bytes however the pass was run, joined and gone on with."""
import json

import h5py
import numpy as np
import pytest

import mdp

MODEL = mdp.GOLDEN / "mixtral"
NAMES = ["neuron_share_sum", "neuron_square_sum", "neuron_column"]


def observe(ranks, out, tokens, *words, model=MODEL):
    return mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out, "--neuron-scores", "--quiet", *words)


def scores(path, layer):
    """The two scores of every neuron [expert, neuron] from the sums."""
    with h5py.File(path) as file:
        group = file[f"layers/{layer}"]
        n = group["counts"][...].sum(0)[:, None]
        share, square, column = (group[name][...] for name in NAMES)
    return {"enp": share / n, "act": square / n * column}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two categories, in blocks of 16,384 tokens, so that there can be several batches."""
    choose = np.random.default_rng(5)
    return mdp.write_tokens(tmp_path_factory.mktemp("text") / "tokens.h5", {
        "a": [choose.integers(0, 100, 200) for _ in range(80)], "b": [choose.integers(0, 100, 100) for _ in range(20)]})


def test_scores_are_those_of_the_reference(tmp_path):
    observe(2, tmp_path / "s.h5", mdp.golden_tokens("mixtral", tmp_path / "t.h5"))
    with h5py.File(MODEL / "methods.h5") as methods:
        for name, ours in scores(tmp_path / "s.h5", 1).items():
            wanted = methods[f"layer1/inside/neurons/{name}"][...]
            assert np.abs(ours - wanted).max() <= 1e-4 * np.abs(wanted).max(), name
        wanted = methods["layer1/inside/neurons/enp"][...]
    assert (wanted < 0).any()  # signed


def test_biases_of_experts_are_part_of_their_outputs(tmp_path):
    """gpt_oss, against its block computed in float64 from the inputs that transformers saw."""
    from safetensors.torch import load_file
    model = mdp.GOLDEN / "gpt_oss"
    observe(3, tmp_path / "s.h5", mdp.golden_tokens("gpt_oss", tmp_path / "t.h5"), model=model)
    tensors = {name: value.double().numpy() for name, value in load_file(model / "model.safetensors").items()}
    with h5py.File(model / "golden.h5") as golden:
        runs = sorted(golden, key=lambda name: int("".join(filter(str.isdigit, name)) or 0))
        runs = [name for name in runs if "layer1" in golden[name]]
        x = np.concatenate([golden[f"{name}/layer1/moe_input"][...].reshape(-1, golden[f"{name}/layer1/moe_input"].shape[-1]) for name in runs]).astype(float)
        g = np.concatenate([golden[f"{name}/layer1/dense_weight"][...].reshape(len(golden[f"{name}/layer1/dense_weight"]), -1) for name in runs])
    key = "model.layers.1.mlp.experts."
    ours = scores(tmp_path / "s.h5", 1)
    for e in range(g.shape[1]):
        rows = x[g[:, e] != 0]
        both = rows @ tensors[key + "gate_up_proj"][e] + tensors[key + "gate_up_proj_bias"][e]
        gate, up = np.minimum(both[:, 0::2], 7), np.clip(both[:, 1::2], -7, 7)
        h = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
        down = tensors[key + "down_proj"][e]  # [f, d]
        y = h @ down + tensors[key + "down_proj_bias"][e]
        wanted = {"enp": (h * (y @ down.T) / np.linalg.norm(y, axis=1)[:, None]).mean(0), "act": (h * h).mean(0) * (down * down).sum(1)}
        for name, value in wanted.items():
            assert np.abs(ours[name][e] - value).max() <= 1e-4 * np.abs(value).max(), (e, name)


def test_the_same_bytes_on_any_number_of_ranks_threads_and_batches(text, tmp_path):
    found = set()
    for ranks, words in [(1, ["--threads", 2]), (2, []), (3, []), (4, ["--batch-tokens", 16384]), (8, [])]:
        observe(ranks, tmp_path / "s.h5", text, "--overwrite", *words)
        found.add((tmp_path / "s.h5").read_bytes())
    assert len(found) == 1


def test_stopped_it_goes_on_with_the_same_bytes(text, tmp_path):
    observe(2, tmp_path / "whole.h5", text)
    for stop in (2, 4):
        out = tmp_path / f"parts-{stop}.h5"
        words = ["observe", "--model", MODEL, "--tokens", text, "--out", out, "--neuron-scores", "--batch-tokens", 16384, "--quiet"]
        assert mdp.run(3, *words, "--stop-at", stop).codes == [75] * 3
        mdp.succeed(2, *words, "--resume")
        assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
        mdp.succeed(2, *words, "--resume")  # nothing is left to do


def test_two_texts_are_joined_as_one(tmp_path):
    choose = np.random.default_rng(7)
    parts = {c: [choose.integers(0, 100, 64) for _ in range(10)] for c in "ab"}
    for name, categories in [("a", {"a": parts["a"]}), ("b", {"b": parts["b"]}), ("both", parts)]:
        observe(2, tmp_path / f"{name}.h5", mdp.write_tokens(tmp_path / f"{name}-t.h5", categories))
    words = ["--method", "enp", "--keep-neurons", 0.5, "--out"]
    mdp.succeed(1, "plan", "--stats", tmp_path / "both.h5", *words, tmp_path / "both.json")
    mdp.succeed(1, "plan", "--stats", tmp_path / "a.h5", "--stats", tmp_path / "b.h5", *words, tmp_path / "joined.json")
    assert mdp.read_json(tmp_path / "both.json")["layers"] == mdp.read_json(tmp_path / "joined.json")["layers"]
    mdp.succeed(2, "observe", "--model", MODEL, "--tokens", tmp_path / "b-t.h5", "--out", tmp_path / "without.h5", "--quiet")
    mdp.refuse(2, 65, "observe with --neuron-scores", "plan", "--stats", tmp_path / "a.h5", "--stats", tmp_path / "without.h5", *words, tmp_path / "x.json")


def test_dry_run_foretells_work_and_memory(text, tmp_path):
    words = ["observe", "--model", mdp.DEMO, "--tokens", text, "--out", tmp_path / "s.h5", "--neuron-scores"]
    estimate = json.loads(mdp.succeed(2, *words, "--dry-run", "--json").stdout)
    plain = json.loads(mdp.succeed(2, *words[:-1], "--dry-run", "--json").stdout)
    real = mdp.succeed(2, *words, "--quiet", "--profile")
    passes = mdp.read_json(tmp_path / "s.h5.profile.json")["passes"]
    assert sum(phase["flop"]["total"] for p in passes for phase in p["phases"].values()) == pytest.approx(estimate["flop"], rel=0.01)
    assert estimate["flop"] > 1.1 * plain["flop"] and estimate["memory_per_rank"] > plain["memory_per_rank"]
    peak = max(real.peaks) * 1024
    assert 0.85 * peak <= estimate["memory_per_rank"] <= 1.2 * peak


def test_products_in_bfloat16_are_refused(text, tmp_path):
    result = mdp.run(2, "observe", "--model", MODEL, "--tokens", text, "--out", tmp_path / "s.h5", "--neuron-scores", "--compute", "bf16")
    if "built without oneDNN" in result.stderr or "cannot multiply in bf16 here" in result.stderr:
        pytest.skip("no products in bfloat16 here")
    assert result.codes == [2, 2] and "products in bfloat16 cannot" in result.stderr
