"""Peak memory of a rank, measured from outside: it does not grow with the experts, and with their width only by tiles and panels."""
import json
import re

import numpy as np
import pytest

import mdp

MIB = 1024  # of peaks, which are in KiB


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    choose = np.random.default_rng(7)
    return mdp.write_tokens(folder / "tokens.h5", {"random": [choose.integers(0, 256, 512) for _ in range(4)]})


def observe(folder, tokens, ranks, experts, intermediate):
    model = folder / f"model-{experts}-{intermediate}"
    if not model.exists():
        mdp.tool("make-shape-model", "--hidden", 256, "--intermediate", intermediate, "--layers", 2, "--experts", experts, "--vocab", 256,
                 "--sparse", "--out", model)
    return mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", folder / f"{experts}-{intermediate}-{ranks}.h5")


def peak(*shape):
    return max(observe(*shape).peaks) / MIB


def predicted(folder, tokens, ranks, experts, intermediate):
    """MiB a rank beside what it has when everything is open, as a dry run says."""
    said = mdp.succeed(1, "observe", "--model", folder / f"model-{experts}-{intermediate}", "--tokens", tokens, "--out", folder / "dry.h5",
                       "--dry-run", "--json", "--gflops-per-rank", 50, "--ranks", ranks)
    found = json.loads(said.stdout)
    return (found["memory_per_rank"] - found["memory_at_start"]) / 2**20


@pytest.mark.parametrize("ranks", [1, 4])
def test_peak_does_not_grow_with_the_number_of_experts(ranks, tokens, tmp_path):
    """128 experts of a layer are 90 MiB more than 8 (bf16); the peak may move by noise and statistics only."""
    peaks = {experts: peak(tmp_path, tokens, ranks, experts, 512) for experts in (8, 32, 128)}
    print("peak per rank, MiB:", peaks, "ranks", ranks)
    assert peaks[8] > 5 and peaks[32] - peaks[8] < 6 and peaks[128] - peaks[8] < 6, peaks


def test_peak_grows_with_the_width_by_the_tiles_and_panels_of_the_formula(tokens, tmp_path):
    """Experts of 12 MiB each: the growth is what was predicted from headers, and is the same for 8 and for 32 of them (288 MiB)."""
    narrow, wide, many = (observe(tmp_path, tokens, 2, experts, f) for experts, f in ((8, 512), (8, 8192), (32, 8192)))
    small, large, most = (predicted(tmp_path, tokens, 2, experts, f) for experts, f in ((8, 512), (8, 8192), (32, 8192)))
    growth, expected = (max(wide.peaks) - max(narrow.peaks)) / MIB, large - small
    print("growth, MiB:", growth, "predicted:", expected, "of 32 experts over 8:", (max(many.peaks) - max(wide.peaks)) / MIB)
    assert growth <= expected + 8
    assert abs(most - large) < 1
    assert (max(many.peaks) - max(wide.peaks)) / MIB < 8


def test_peak_stays_below_the_prediction_and_the_libraries(tokens, tmp_path):
    """What MPI, HDF5 and BLAS take by themselves is measured, by a run of `info`."""
    base = max(mdp.succeed(2, "info").peaks) / MIB
    result = observe(tmp_path, tokens, 2, 8, 4096)
    beside = predicted(tmp_path, tokens, 2, 8, 4096)
    print("peak, MiB:", max(result.peaks) / MIB, "libraries:", base, "predicted beside them:", beside)
    assert max(result.peaks) / MIB <= base + beside + 8


def test_memory_that_is_too_little_is_refused_with_what_would_do(tokens, tmp_path):
    """The residual streams and the losses of many tokens: more ranks have less of them."""
    choose = np.random.default_rng(8)
    text = mdp.write_tokens(tmp_path / "long.h5", {"random": [choose.integers(0, 256, 512) for _ in range(512)]})
    observe(tmp_path, tokens, 1, 8, 512)
    words = ["observe", "--model", tmp_path / "model-8-512", "--tokens", text, "--out", tmp_path / "x.h5", "--dry-run", "--json",
             "--gflops-per-rank", 50]
    whole = json.loads(mdp.succeed(1, *words).stdout)["memory_per_rank"]
    # What a process has at its start is its share of pages that others have too, so it depends on what else runs.
    margin = 40_000_000
    cut = json.loads(mdp.succeed(1, *words, "--memory", whole - margin).stdout)
    assert cut["n_batches"] > 1 and cut["memory_per_rank"] <= whole - margin
    one = [*words, "--batch-tokens", 512 * 512]
    said = mdp.refuse(1, 2, r"MB a rank are needed on 1 rank with this --batch-tokens\. Give --memory \d+, or take \d+ ranks or more",
                      *one, "--memory", whole - margin).errors()[0]
    need, ranks = map(int, re.search(r"--memory (\d+), or take (\d+) ranks", said).groups())
    assert abs(need - whole) < margin
    assert json.loads(mdp.succeed(1, *one, "--memory", need + margin).stdout)["n_batches"] == 1
    assert json.loads(mdp.succeed(1, *one, "--memory", whole - margin, "--ranks", ranks).stdout)["n_batches"] == 1
