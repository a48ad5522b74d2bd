"""Ranks that go apart: in debug builds a sentence names both places, where there would be a hang or a wrong result."""
import re
import subprocess

import pytest

import mdp

ORDER = mdp.PROGRAM.parent / "tests" / "mpi_comm_order"


@pytest.mark.parametrize("ranks", [2, 5])
@pytest.mark.parametrize("mistake", ["leave-early", "agree-twice", "agree-elsewhere"])
def test_a_rank_that_leaves_the_common_order_is_named(mistake, ranks):
    result = subprocess.run([mdp.TESTS / "mpiexec", str(ranks), ORDER, mistake], capture_output=True, text=True, check=False, timeout=60)
    said = re.findall(r"^moe-dist-prune: the ranks went apart: rank 0 is at comm_order.c:(\d+) in its collective call (\d+), "
                      r"rank (\d+) at comm_order.c:(\d+) in its call (\d+)\.", result.stderr, re.M)
    assert len(said) == 1 and result.returncode == 70, result.stderr
    here, _, rank, there, _ = said[0]
    assert int(rank) == ranks - 1 and here != there
