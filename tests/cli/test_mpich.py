"""The program built with MPICH, its parallel HDF5 and its ScaLAPACK: the same bytes as with the MPI library of the other tests.

A short path: what rests on the MPI library is tested, not everything once more. The build is kept in build/mpich.
"""
import fcntl
import os
import re
import shutil
import signal
import subprocess

import pytest

import mdp

BUILD = mdp.ROOT / "build" / "mpich"
PROGRAM = BUILD / "moe-dist-prune"
TESTS = ["comm_agree", "comm_collective", "comm_exchange", "comm_shared", "spd", "write_checkpoint"]
MPICH = {"MPIEXEC": "mpiexec.mpich"}
JSON = ["--model", mdp.DEMO, "--tokens", mdp.CALIB, "--categories", "json"]


def build(*words):
    done = subprocess.run([str(word) for word in words], cwd=mdp.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module", autouse=True)
def program():
    compiler = shutil.which("mpicc.mpich")
    if not compiler or not shutil.which("mpiexec.mpich"):
        pytest.skip("MPICH is not installed beside another MPI library (mpicc.mpich, mpiexec.mpich)")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # another process of pytest may have tests of this file, too
        fcntl.flock(lock, fcntl.LOCK_EX)
        build("cmake", "--preset", "ci", "-B", BUILD, f"-DMPI_C_COMPILER={compiler}")
        build("cmake", "--build", BUILD, "--parallel", os.cpu_count(), "--target", "moe-dist-prune", *(f"mpi_{name}" for name in TESTS))


def test_everything_is_of_one_mpi_library():
    cache = (BUILD / "CMakeCache.txt").read_text()
    for name in ("MPI_mpich_LIBRARY", "HDF5_C_LIBRARY_hdf5", "SCALAPACK_LIBRARIES"):
        value = re.search(rf"^{name}:\w+=(.*)$", cache, re.M)
        assert value and "mpich" in value[1], (name, value)
    said = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    assert "libmpich" in said and "hdf5_mpich" in said and "libmpi.so" not in said and "openmpi" not in said, said


@pytest.mark.parametrize("ranks", [1, 3])
def test_compiled_tests(ranks):
    for name in TESTS:
        subprocess.run([mdp.TESTS / "mpiexec", str(ranks), BUILD / "tests" / f"mpi_{name}"], env={**os.environ, **MPICH}, check=True, timeout=100)


def test_same_bytes_as_with_the_other_library(tmp_path):
    words = ["run", *JSON, "--method", "reap", "--keep", 6, "--format", "both", "--out"]
    mdp.succeed(2, *words, tmp_path / "other")
    for ranks in (1, 3):
        out = tmp_path / f"mpich{ranks}"
        mdp.succeed(ranks, *words, out, program=PROGRAM, env=MPICH)
        for name in ("stats.h5", "plan.json", "model.h5", "hf"):
            assert mdp.digests(out / name) == mdp.digests(tmp_path / "other" / name), (ranks, name)


def test_an_error_is_one_sentence_and_one_code(tmp_path):
    mdp.refuse(3, 65, "no model.safetensors and no model.safetensors.index.json", "inspect", tmp_path, program=PROGRAM, env=MPICH)


@pytest.mark.alone  # the run must not end before
def test_a_signal_to_the_launcher_stops_all_ranks(tmp_path):
    """Resume points do not depend on the MPI library either.

    Each rank's own exit code is read: Hydra before 4.1 takes ranks to whom it passed a signal on for killed by itself, and now and then
    ends with 0 for their codes (MPICH's pull request 5930; 7 of 60 runs).
    """
    ranks = ["sh", "-c", 'trap : USR1; "$@"; code=$?; echo $code >"$0.$PMI_RANK"; exit $code', tmp_path / "code"]
    process = subprocess.Popen([str(word) for word in [mdp.TESTS / "mpiexec", 3, *ranks, PROGRAM, "observe", *JSON, "--out", tmp_path / "stats.h5"]],
                               env={**os.environ, **MPICH}, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("observe  layer 1/6"):
            process.send_signal(signal.SIGUSR1)
            break
    said = process.communicate(timeout=60)[1]
    assert "stopped by SIGUSR1 after layer" in said, said
    assert [(tmp_path / f"code.{rank}").read_text() for rank in range(3)] == ["75\n"] * 3, said
    version = re.search(r"Version: *(\d+)\.(\d+)", subprocess.run(["mpiexec.mpich", "--version"], capture_output=True, text=True, check=True).stdout)
    assert process.returncode == 75 or (process.returncode == 0 and (int(version[1]), int(version[2])) < (4, 1))
    mdp.succeed(2, "observe", *JSON, "--out", tmp_path / "stats.h5", "--resume")
    mdp.succeed(1, "observe", *JSON, "--out", tmp_path / "whole.h5", program=PROGRAM, env=MPICH)
    assert (tmp_path / "stats.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
