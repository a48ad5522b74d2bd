"""Channel norms of observe, against a forward pass in numpy (methods.h5) and against numpy's sums of what the golden files hold."""
import h5py
import numpy as np
import pytest

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
