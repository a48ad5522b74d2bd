"""Runs within limits: few inodes, few descriptors, little memory, short files, few threads. What must hold: the run ends in time, on all
ranks alike, with the result or with one sentence and a code that fits; and nothing of the MPI library's lies beside the output."""
import contextlib
import shutil
import subprocess

import mdp

CODES = {"inodes": {73, 74}, "descriptors": {65, 71, 73, 74}, "memory": {71, 73, 74}, "file-size": {73, 74}, "threads": {71}}
NOISE = ("HDF5-DIAG", "Segmentation", "libgomp:", "OpenBLAS :", "OpenBLAS blas_thread_init", "backtrace", "File size limit")
# Drivers of Open MPI that would make a file beside each parallel output, where nothing else has been chosen.
HELPERS = {"OMPI_MCA_sharedfp": "^sm,lockedfile"}


@contextlib.contextmanager
def few_inodes(folder, n):
    """A file system with n inodes; None where none can be mounted."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"nr_inodes={n},size=64m", "tmpfs", str(folder)], capture_output=True, check=False)
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def limited(rank, command):
    """Words before the program: a limit of the shell on one rank, or on all (None)."""
    when = "true" if rank is None else f'[ "${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}" = {rank} ]'
    return ["sh", "-c", f'if {when}; then {command}; fi; exec "$@"', "sh"]


def judge(kind, result, out, whole=None):
    """What is wrong with such a run."""
    wrong = []
    if len(set(result.codes)) != 1 or result.codes[0] not in CODES[kind] | {0}:
        wrong.append(f"codes {result.codes}")
    if len(result.errors()) != (result.codes[0] != 0):
        wrong.append(f"{len(result.errors())} sentences")
    wrong += [f"'{noise}' is said" for noise in NOISE if noise in result.stderr + result.stdout]
    if out.exists():
        wrong += [f"{path.name} is left" for path in out.parent.rglob("*") if ".data." in path.name or ".metadata." in path.name]
    if whole and result.codes[0] == 0 and mdp.results(out) != whole:
        wrong.append("another result")
    return wrong


def step(kind, ranks, words, out, limit, rank, whole):
    """One run with a limit that goes up to nothing being wrong; what was wrong, and how it looked."""
    within = {"inodes": (), "descriptors": limited(rank, f"ulimit -n {limit}"), "memory": limited(rank, f"ulimit -v {limit}"),
              "file-size": limited(rank, f"ulimit -f {limit}"), "threads": limited(rank, f"ulimit -u {limit}")}[kind]
    try:
        result = mdp.run(ranks, *words, "--out", out, within=within, env=HELPERS, timeout=90)
    except AssertionError as hang:
        return ["hang"], str(hang)
    wrong = judge(kind, result, out, whole)
    shutil.rmtree(out, ignore_errors=True)
    return wrong, str(result)
