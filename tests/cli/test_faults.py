"""A walk of faulted runs: an operation fails on one rank or on all; error yes; hang, damaged output or crash no.

MDP_FAULT_RUNS sets how many runs (default 24; 200 take some minutes).
"""
import os
import random

import pytest

import mdp

RUNS = int(os.environ.get("MDP_FAULT_RUNS", "24"))
CODES = {0, 65, 70, 73, 74}
RESULTS = ["plan.json", "stats.h5", "model.h5", "hf"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return mdp.golden_tokens("mixtral", tmp_path_factory.mktemp("faults") / "tokens.h5")


def words(tokens, out):
    return ["run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--method", "reap", "--keep", 4, "--format", "both", "--out", out]


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    mdp.succeed(1, *words(tokens, out))
    return {name: mdp.digests(out / name) for name in RESULTS}


def cases():
    """(number, ranks, every, seed, rank or None): one fault early or late, or many; on one rank or on every rank."""
    choose = random.Random(20251)
    for number in range(RUNS):
        ranks = choose.choice([1, 2, 3])
        every = int(10 ** choose.uniform(0, 3.5))
        yield number, ranks, every, choose.randrange(1000), choose.choice([None, *range(ranks)])


@pytest.mark.parametrize("number, ranks, every, seed, rank", list(cases()))
def test_faulted_run_ends_with_an_error_and_no_damage(number, ranks, every, seed, rank, tokens, whole, tmp_path):
    out = tmp_path / "out"
    alone = [] if rank is None else ["--fault-rank", rank]
    result = mdp.run(ranks, *words(tokens, out), "--fault-every", every, "--fault-seed", seed, *alone, timeout=60)
    assert len(set(result.codes)) == 1 and result.codes[0] in CODES, str(result)
    assert len(result.errors()) == (result.codes[0] != 0), str(result)
    for name in RESULTS:  # complete and right, or absent
        if (out / name).exists():
            assert mdp.digests(out / name) == whole[name], f"{name} is damaged: {result}"
        else:
            assert result.codes[0] != 0, f"{name} is missing after success: {result}"


def test_the_hook_bites(tokens, tmp_path):
    """Every operation failing means failure: the walk above tests something."""
    result = mdp.run(2, *words(tokens, tmp_path / "out"), "--fault-every", 1)
    assert set(result.codes) <= CODES - {0}, str(result)
