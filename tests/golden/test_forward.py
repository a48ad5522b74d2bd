"""The forward pass equals that of transformers: logits, hidden states and routing of every golden file."""
import h5py
import numpy as np
import pytest

import mdp


NAMES = ["mixtral", "mixtral_bf16", "qwen2_moe", "qwen3_moe", "qwen3_moe_bf16", "olmoe", "granitemoe", "phimoe", "phimoe_long",
         "glm4_moe", "ernie4_5_moe", "minimax_m2", "deepseek_v2", "deepseek_v2_group", "deepseek_v3", "deepseek_v3_fp8", "gpt_oss",
         "gpt_oss_mxfp4"]
# The third sequence of phimoe_long is longer than the original length: there the library keeps the short frequencies, and we do as
# the authors' own code does (test_other_families.py).
LIMIT = {"phimoe_long": 2}


def assert_same_datasets(one, other):
    """Every dataset of a dump is in the other, and has the same values."""
    found = [[], []]
    for names, file in zip(found, (one, other)):
        file.visititems(lambda name, item, names=names: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert found[0] == found[1] and len(found[0]) > 10
    for name in found[0]:
        assert np.array_equal(one[name][...], other[name][...]), name


def test_every_golden_file_is_compared():
    assert sorted(NAMES) == sorted(path.parent.name for path in mdp.GOLDEN.glob("*/golden.h5"))


@pytest.mark.parametrize("name", NAMES)
def test_dump_equals_transformers_on_1_and_4_ranks(name, tmp_path):
    tokens = mdp.golden_tokens(name, tmp_path / "tokens.h5")
    for ranks in (1, 4):
        mdp.succeed(ranks, "eval", "--model", mdp.GOLDEN / name, "--tokens", tokens, "--dump", tmp_path / f"dump{ranks}.h5",
                    "--out", tmp_path / f"eval{ranks}.json")
    with h5py.File(tmp_path / "dump1.h5") as one, h5py.File(tmp_path / "dump4.h5") as four:
        assert_same_datasets(one, four)
    scale = mdp.read_json(mdp.GOLDEN / name / "config.json").get("routed_scaling_factor", 1.0)
    with h5py.File(mdp.GOLDEN / name / "golden.h5") as golden, h5py.File(tmp_path / "dump4.h5") as dump:
        def check(ours, theirs, quantity, where):
            allowed = float(golden.attrs[f"advice_abs_{quantity}"])
            assert ours.shape == theirs.shape, where
            assert np.abs(ours.astype(np.float64) - theirs).max() <= allowed, (where, np.abs(ours - theirs).max(), allowed)

        assert list(dump) == ["original"]
        for i in range(LIMIT.get(name, int(golden.attrs["num_sequences"]))):
            seq, ours = golden[f"seq{i}"], dump[f"original/golden/{i}"]
            check(ours["logits"][...], seq["logits"][...], "logits", f"seq{i} logits")
            check(ours["final_hidden"][...], seq["final_hidden"][...], "final_hidden", f"seq{i} final_hidden")
            layers = sorted(int(key[5:]) for key in seq if f"{key}/moe_input" in seq)
            assert sorted(map(int, ours["layers"])) == layers
            for layer in layers:
                theirs, mine, where = seq[f"layer{layer}"], ours[f"layers/{layer}"], f"seq{i} layer {layer} "
                # Same sizes go into the block as come out of it, so moe_input has the allowance of the last norm's output.
                check(mine["moe_input"][...], theirs["moe_input"][...], "final_hidden", where + "moe_input")
                check(mine["moe_output"][...], theirs["moe_output"][...], "moe_output", where + "moe_output")
                check(mine["router_logits"][...], theirs["router_logits"][...], "router_logits", where + "router_logits")
                index = mine["topk_index"][...]
                assert index.dtype == np.int32
                assert np.array_equal(np.sort(index, axis=1), np.sort(theirs["topk_index"][...], axis=1)), where + "chosen experts"
                dense = np.zeros(theirs["dense_weight"].shape)
                np.put_along_axis(dense, index.astype(np.int64), mine["topk_weight"][...], axis=1)
                # Weights are these probabilities times the model's factor.
                check(dense / scale, theirs["dense_weight"][...] / scale, "router_logits", where + "dense_weight")


@pytest.mark.parametrize("name, n_moe_layer", [("mixtral", 3), ("deepseek_v3", 2)])
def test_dump_is_the_same_on_any_number_of_ranks(name, n_moe_layer, tmp_path):
    tokens = mdp.golden_tokens(name, tmp_path / "tokens.h5")
    for ranks in (1, 3):
        mdp.succeed(ranks, "eval", "--model", mdp.GOLDEN / name, "--tokens", tokens, "--dump", tmp_path / f"{ranks}.h5",
                    "--out", tmp_path / f"{ranks}.json")
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "3.h5") as three:
        found = []
        one.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(found) == 3 * (2 + n_moe_layer * 5)
        assert_same_datasets(one, three)
