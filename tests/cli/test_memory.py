"""Peak memory of a rank, measured from outside: it does not grow with the experts, and with their width only by tiles and panels."""
import pytest

import mdp

MIB = 1024  # of peaks, which are in KiB


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    import numpy as np
    choose = np.random.default_rng(7)
    return mdp.write_tokens(folder / "tokens.h5", {"random": [choose.integers(0, 256, 512) for _ in range(4)]})


def peak(folder, tokens, ranks, experts, intermediate):
    model = folder / f"model-{experts}-{intermediate}"
    if not model.exists():
        mdp.tool("make-shape-model", "--hidden", 256, "--intermediate", intermediate, "--layers", 2, "--experts", experts, "--vocab", 256,
                 "--sparse", "--out", model)
    result = mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", folder / f"{experts}-{intermediate}-{ranks}.h5")
    return max(result.peaks)


@pytest.mark.parametrize("ranks", [1, 4])
def test_peak_does_not_grow_with_the_number_of_experts(ranks, tokens, tmp_path):
    """128 experts of a layer are 94 MiB more than 8 (bf16); the peak may move by noise and statistics only."""
    peaks = {experts: peak(tmp_path, tokens, ranks, experts, 512) for experts in (8, 32, 128)}
    print("peak per rank, MiB:", {experts: round(value / MIB, 1) for experts, value in peaks.items()}, "ranks", ranks)
    assert min(peaks.values()) > 5 * MIB
    assert peaks[32] - peaks[8] < 6 * MIB and peaks[128] - peaks[8] < 6 * MIB, peaks


def test_peak_grows_with_the_width_by_tiles_and_panels_only(tokens, tmp_path):
    """f from 512 to 8192: tiles of H grow by 512 x 7680 x 4 bytes = 15 MiB (gate and up: twice), a panel of W_d rows likewise."""
    narrow, wide = (peak(tmp_path, tokens, 2, 8, f) for f in (512, 8192))
    print("peak per rank, MiB:", round(narrow / MIB, 1), round(wide / MIB, 1))
    # H of a tile, its second factor, and three panels in flight; the experts themselves are 12 MiB each, 90 MiB more a layer.
    assert wide - narrow < 6 * 15 * MIB
