"""Peak memory of a rank, measured from outside: it does not grow with the experts, and with their width only by tiles and panels."""
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


def predicted(result):
    """MiB a rank, from the line that the program prints before it starts."""
    return float(re.search(r"^plan .* ([\d.]+) MB a rank", result.stderr, re.M).group(1)) * 1e6 / 2**20


@pytest.mark.parametrize("ranks", [1, 4])
def test_peak_does_not_grow_with_the_number_of_experts(ranks, tokens, tmp_path):
    """128 experts of a layer are 90 MiB more than 8 (bf16); the peak may move by noise and statistics only."""
    peaks = {experts: peak(tmp_path, tokens, ranks, experts, 512) for experts in (8, 32, 128)}
    print("peak per rank, MiB:", peaks, "ranks", ranks)
    assert peaks[8] > 5 and peaks[32] - peaks[8] < 6 and peaks[128] - peaks[8] < 6, peaks


def test_peak_grows_with_the_width_by_the_tiles_and_panels_of_the_formula(tokens, tmp_path):
    """Experts of 12 MiB each: the growth is what was predicted from headers, and is the same for 8 and for 32 of them (288 MiB)."""
    narrow, wide, many = (observe(tmp_path, tokens, 2, experts, f) for experts, f in ((8, 512), (8, 8192), (32, 8192)))
    growth, expected = (max(wide.peaks) - max(narrow.peaks)) / MIB, predicted(wide) - predicted(narrow)
    print("growth, MiB:", growth, "predicted:", expected, "of 32 experts over 8:", (max(many.peaks) - max(wide.peaks)) / MIB)
    assert growth <= expected + 8
    assert abs(predicted(many) - predicted(wide)) < 1
    assert (max(many.peaks) - max(wide.peaks)) / MIB < 8


def test_peak_stays_below_the_prediction_and_the_libraries(tokens, tmp_path):
    """What MPI, HDF5 and BLAS take by themselves is measured, by a run of `info`."""
    base = max(mdp.succeed(2, "info").peaks) / MIB
    result = observe(tmp_path, tokens, 2, 8, 4096)
    print("peak, MiB:", max(result.peaks) / MIB, "libraries:", base, "predicted beside them:", predicted(result))
    assert max(result.peaks) / MIB <= base + predicted(result) + 8
