"""Runs over TCP on nodes that are namespaces of this machine: a short path; tests/campaigns/nodes, node-faults and slurm-jobs go further."""
import os
import re

import pytest

import mdp
from cluster import nodes

pytestmark = [pytest.mark.alone, pytest.mark.skipif(nodes.why_not() is not None, reason=str(nodes.why_not()))]


@pytest.fixture(scope="module")
def cluster():
    with nodes.Cluster(["n10", "n9", "b-007"]) as made:  # in no order that sorting gives
        yield made


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three texts: some rank of the first node has none, and its ranks attend together."""
    return mdp.write_tokens(tmp_path_factory.mktemp("few") / "tokens.h5", {"a": [[(7 * i + j) % 100 for j in range(600)] for i in range(3)]})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Words of a `run`, and its results on one rank."""
    folder = tmp_path_factory.mktemp("run")
    tokens = mdp.write_tokens(folder / "tokens.h5", {"a": [[(7 * i + j) % 100 for j in range(64)] for i in range(30)]})
    words = ["run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--method", "reap", "--keep", 6, "--format", "both", "--checkpoint-every", 0]
    mdp.succeed(1, *words, "--out", folder / "whole")
    return words, mdp.results(folder / "whole")


def test_nodes_make_the_bytes_of_one_rank(cluster, run, tmp_path):
    """Neighbours among the ranks are on different nodes."""
    said = cluster.succeed(cluster.nodes, 2, *run[0], "--out", tmp_path / "out", options=["--map-by", "node"])
    assert "6 ranks on 3 nodes" in said and mdp.results(tmp_path / "out") == run[1], said


def test_a_node_dies_and_the_run_goes_on_elsewhere(run, tmp_path):
    with nodes.Cluster(["n2", "n1", "n3"]) as cluster:
        out = tmp_path / "out"
        process = cluster.start(cluster.nodes, 1, *run[0], "--out", out)
        nodes.wait_for(lambda: mdp.phase_of(out) == "observe" or process.poll() is not None, 60, "resume point")
        cluster["n1"].crash()
        said = nodes.end(process, 60)
        assert process.returncode != 0 and "n1" in said, said
        said = cluster.succeed([cluster["n3"], cluster["n2"]], 2, *run[0], "--out", out, "--resume")
        assert re.search("observe +(goes on after|is done already)", said) and mdp.results(out) == run[1], said


def test_a_node_without_shared_memory_attends_alone(cluster, few, tmp_path):
    words = ["observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", few]
    mdp.succeed(1, *words, "--out", tmp_path / "whole.h5")
    cluster.nodes[0].do("sh", "-c", "dd if=/dev/zero of=/dev/shm/full bs=1M 2>/dev/null; exit 0")
    said = cluster.succeed(cluster.nodes[:2], 2, *words, "--out", tmp_path / "out.h5")
    cluster.nodes[0].do("rm", "/dev/shm/full")
    assert "warning: observe: attention to few or long texts is not shared" in said and "/dev/shm has room for" in said, said
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_nodes_of_different_processors_are_refused(cluster, few, tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("names of OpenBLAS's kernels are those of x86-64")
    other = cluster.folder / "other"
    other.write_text('#!/bin/sh\nexport OPENBLAS_CORETYPE=Haswell\n[ "$(hostname)" = n10 ] || OPENBLAS_CORETYPE=Sandybridge\nexec "$@"\n')
    other.chmod(0o755)
    process, said = cluster.run(cluster.nodes[:2], 1, "observe", "--model", mdp.DEMO, "--tokens", few, "--out", tmp_path / "out", within=[other])
    assert process.returncode == 70 and "rank 1 computes with OpenBLAS" in said and "OPENBLAS_CORETYPE" in said, said
    assert not (tmp_path / "out").exists()
