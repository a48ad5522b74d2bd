"""A short walk of faulted runs: an operation fails on one rank or more; error yes; hang, damaged output or crash no.

MDP_FAULT_RUNS sets how many runs (default 36: three of each command). fault_walk.py is the long walk.
"""
import os

import pytest

import fault_walk
import mdp

RUNS = int(os.environ.get("MDP_FAULT_RUNS", "36"))


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return fault_walk.Walk(tmp_path_factory.mktemp("walk"))


@pytest.mark.parametrize("case", list(fault_walk.cases(RUNS, seed=20251)), ids=lambda case: f"{case.number}-{case.command}-{case.kinds}")
def test_faulted_run_ends_with_an_error_and_no_damage(case, walk):
    wrong, _, shown = walk.step(case)
    assert not wrong, f"{wrong}\n{case}\n{shown}"


@pytest.mark.parametrize("command", fault_walk.Walk.COMMANDS)
def test_the_hook_bites(command, walk, tmp_path):
    """Every operation failing means failure: the walk above tests something."""
    result = mdp.run(2, *walk.words(command, tmp_path / "out", 1), "--fault-every", 1)
    assert set(result.codes) <= {70, 71, 73, 74} and len(set(result.codes)) == 1, str(result)


def test_interrupted_calls_and_partial_transfers_change_nothing(walk, tmp_path):
    for command in ("run", "export"):
        out = tmp_path / command
        mdp.succeed(2, *walk.words(command, out, 2), "--fault-every", 1, "--fault-kinds", "short")
        for name in walk.COMMANDS[command]:
            assert walk.equal(command, out, name), name


def test_unknown_kinds_and_ranks_are_refused():
    mdp.refuse(2, 2, "'disk' is no kind of fault; there are io, alloc, short, enospc, eio", "info", "--fault-kinds", "io,disk")
    mdp.refuse(2, 2, "--fault-rank 0;1: expected ranks like 0,2, or -1 for all", "info", "--fault-rank", "0;1")


@pytest.fixture(scope="module")
def long_text(tmp_path_factory):
    """Rows of experts for four rounds on 2 ranks, two on 4; the rank's own tokens take an operation each before."""
    path = tmp_path_factory.mktemp("long") / "tokens.h5"
    return mdp.write_tokens(path, {"text": [[(7 * i + j * j) % 100 for j in range(256)] for i in range(64)]})


@pytest.mark.parametrize("ranks, layout", [(2, {}), (4, {"MDP_RANKS_PER_NODE": "2"})], ids=["one-node", "two-nodes"])
@pytest.mark.parametrize("beyond", [50, 100, 150, 200])
def test_a_rank_that_fails_between_rounds_ends_all(ranks, layout, beyond, long_text, tmp_path):
    """Others have not heard of it: they go on to the end of the wave, and all end alike."""
    operation = 16384 // ranks + beyond
    result = mdp.run(ranks, "observe", "--model", mdp.DEMO, "--tokens", long_text, "--out", tmp_path / "stats.h5", "--fault-every", operation,
                     "--fault-rank", 1, "--fault-kinds", "io", env=layout, timeout=60)
    assert result.codes == [74] * ranks and f"operation {operation} (" in result.stderr, str(result)
    assert not (tmp_path / "stats.h5").exists()
