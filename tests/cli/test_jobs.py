"""The job scripts: run for real under mpirun -n 2, and with launchers that only record how they were called."""
import os
import subprocess

import pytest

import mdp

JOBS = mdp.ROOT / "jobs"
ARGUMENTS = ["--model", mdp.DEMO, "--tokens", mdp.CALIB, "--method", "frequency", "--keep", "6", "--out"]


def start(script, *words, **env):
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return subprocess.run(["bash", str(script), *map(str, words)], capture_output=True, text=True, check=False, timeout=300,
                          env={**os.environ, **root, "MDP_PROGRAM": str(mdp.PROGRAM), **env})


@pytest.mark.parametrize("name", ["slurm.sbatch", "mpirun.sh"])
def test_script_prunes_the_demo(name, tmp_path):
    result = start(JOBS / name, *ARGUMENTS, tmp_path / "out", LAUNCH="mpirun -n 2 --oversubscribe --bind-to none")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "model.h5").is_file()
    assert "placement by: mpirun -n 2" in result.stdout


def test_exit_code_of_the_program_is_the_scripts(tmp_path):
    result = start(JOBS / "slurm.sbatch", "--keep", "1", *ARGUMENTS, tmp_path / "out", LAUNCH="mpirun -n 2 --oversubscribe --bind-to none")
    assert result.returncode == 2, result.stdout + result.stderr


@pytest.fixture
def recorder(tmp_path):
    """Launchers in a folder of their own that print their arguments; lscpu shows 2 sockets of 4 cores, 2 threads each, 2 domains."""
    folder = tmp_path / "bin"
    folder.mkdir()
    cpus = [(core, core // 4) for _ in range(2) for core in range(8)]
    rows = {"CORE,SOCKET": [f"{core},{socket}" for core, socket in cpus], "NODE": [str(socket) for _, socket in cpus]}
    scripts = {"srun": 'printf "[%s]" "$OMP_NUM_THREADS threads" srun "$@"', "nproc": "echo 16",
               "mpirun": 'case "$1" in --version) echo "mpirun (Open MPI) 4.1.4";; *) printf "[%s]" "$OMP_NUM_THREADS threads" mpirun "$@";; esac',
               "lscpu": "case \"$1\" in " + " ".join(f"-p={key}) printf '%s\\n' {' '.join(lines)};;" for key, lines in rows.items()) + " esac"}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("placement, ranks, threads", [("numa", 2, 4), ("core", 8, 1)])
def test_placement_under_srun_and_mpirun(placement, ranks, threads, recorder):
    said = start(JOBS / "slurm.sbatch", "--out", "x y", PLACEMENT=placement, SLURM_JOB_NUM_NODES="3", **recorder).stdout
    for word in (f"--ntasks-per-node={ranks}", f"--ntasks={3 * ranks}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=1", "x y",
                 f"{threads} threads"):
        assert f"[{word}]" in said, said
    said = start(JOBS / "mpirun.sh", "--out", "x y", PLACEMENT=placement, **recorder).stdout
    for word in (f"ppr:{ranks}:node:pe={threads}", "x y", f"{threads} threads"):
        assert f"[{word}]" in said, said


def test_wrong_placement_is_refused(recorder):
    result = start(JOBS / "mpirun.sh", PLACEMENT="socket", **recorder)
    assert result.returncode == 2 and "PLACEMENT=socket" in result.stderr


def test_a_copy_of_the_script_finds_its_library(tmp_path, recorder):
    """Slurm runs a copy from its spool folder."""
    (tmp_path / "spooled").write_text((JOBS / "slurm.sbatch").read_text())
    result = start(tmp_path / "spooled", "--help", SLURM_SUBMIT_DIR=str(mdp.ROOT), **recorder)
    assert result.returncode == 0 and "[srun]" in result.stdout, result.stdout + result.stderr
