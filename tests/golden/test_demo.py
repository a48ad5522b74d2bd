"""The trained demo model: perplexity and expert usage equal those of transformers."""
import h5py
import numpy as np
import pytest

import mdp

REFERENCE = mdp.read_json(mdp.DEMO / "reference.json")


@pytest.mark.parametrize("ranks", [1, 4])
def test_perplexity_equals_transformers(ranks, tmp_path):
    mdp.succeed(ranks, "eval", "--model", mdp.DEMO, "--tokens", mdp.EVAL, "--out", tmp_path / "eval.json")
    mdp.assert_close(mdp.perplexity(tmp_path / "eval.json"), {k: v["ppl"] for k, v in REFERENCE["perplexity"].items()})
    result = mdp.read_json(tmp_path / "eval.json")
    assert result["n_ranks"] == ranks
    stream = result["streams"][0]
    assert stream["n_predicted"]["total"] == REFERENCE["perplexity"]["total"]["predicted_tokens"]
    for category, n in stream["n_predicted"]["categories"].items():
        assert n == REFERENCE["perplexity"][category]["predicted_tokens"]
    assert abs(stream["nll"]["total"] - REFERENCE["perplexity"]["total"]["nll_mean"]) <= 1e-4


def test_expert_counts_equal_transformers(demo_run):
    with h5py.File(demo_run / "stats.h5") as stats:
        for category, domain in enumerate(sorted(REFERENCE["calib_counts"]["by_domain"], key=str.encode)):
            for layer, counts in REFERENCE["calib_counts"]["by_domain"][domain].items():
                assert np.array_equal(stats[f"layers/{layer}/counts"][category], counts), (domain, layer)


def test_before_and_after_in_one_run(demo_run):
    mdp.assert_close(mdp.perplexity(demo_run / "eval.json"), {k: v["ppl"] for k, v in REFERENCE["perplexity"].items()})
    after = mdp.perplexity(demo_run / "eval.json", plan=True)
    # Two of eight experts cost something, and far less than removing the experts used most (43, by transformers).
    assert 14.4 < after["total"] < 30
