"""Disks that misbehave while a command runs: full, read-only, slow to transfer; inputs that change under the reader. A sentence and
a code, nothing under a final name, never wrong bytes; and --resume goes on when the disk is well again.

MDP_FULL_DISK_RUNS sets how many sizes of free space are tried (default 4)."""
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess

import pytest

import mdp

pytestmark = pytest.mark.alone  # runs must not end before they are disturbed
NAMES = ["plan.json", "stats.h5", "model.h5", "hf"]
CANNOT_CREATE, INPUT_OUTPUT = 73, 74


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder):
        pytest.skip("cannot mount a tmpfs here (needs root with CAP_SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The command line, and what it gives on a good disk."""
    folder = tmp_path_factory.mktemp("whole")
    tokens = mdp.write_tokens(folder / "tokens.h5", {"a": [[(7 * i + j) % 100 for j in range(64)] for i in range(24)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep", 6, "--format", "both",
             "--checkpoint-every", 0]
    mdp.succeed(2, *words, "--out", folder / "out")
    return words, folder / "out"


def disturbed(ranks, words, disturb, program=mdp.PROGRAM):
    """Run, and disturb when the first layer is done; (code, what was said)."""
    process = subprocess.Popen([mdp.TESTS / "mpiexec", str(ranks), program, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               text=True, errors="replace", start_new_session=True)
    said = ""
    for line in process.stderr:
        said += line
        if re.match(r"\w+ +layer 1/", line):
            disturb()
            break
    try:
        said += process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"hangs: {said}") from None
    for noise in ("HDF5-DIAG", "MPI_Abort", "Segmentation", "Bus error", "AddressSanitizer"):
        assert noise not in said, said
    return process.returncode, said


def sentences(said):
    return re.findall(r"^moe-dist-prune: (?!warning: )(.*)$", said, re.M)


def check_present(whole, out):
    """What stands under a final name is right."""
    for name in NAMES:
        assert not (out / name).exists() or mdp.digests(out / name) == mdp.digests(whole / name), name


def check_goes_on(words, whole, out, ranks):
    mdp.succeed(ranks, *words, "--out", out, "--resume")
    for name in NAMES:
        assert mdp.digests(out / name) == mdp.digests(whole / name), name
    assert not (out / ".state").exists()


def free_sizes():
    choose = random.Random(3)
    return [0, *(int(10 ** choose.uniform(3.5, 7.2)) for _ in range(int(os.environ.get("MDP_FULL_DISK_RUNS", "4")) - 1))]


@pytest.mark.parametrize("free", free_sizes())
def test_a_disk_that_runs_full(free, whole, disk):
    """After a layer, only `free` bytes are left; the whole result has 18 MB."""
    words, result = whole

    def fill():
        space = os.statvfs(disk)
        with open(disk / "other", "wb", buffering=0) as other, contextlib.suppress(OSError):  # the run writes, too
            other.write(bytes(max(0, space.f_bavail * space.f_frsize - free)))
    code, said = disturbed(2, [*words, "--out", disk / "out"], fill)
    assert code in (CANNOT_CREATE, INPUT_OUTPUT) and len(sentences(said)) == 1, (code, said)
    assert re.search(r"[Nn]o space left|disk full|write failed|cannot (write|create)", sentences(said)[0]), said
    check_present(result, disk / "out")
    (disk / "other").unlink()
    check_goes_on(words, result, disk / "out", 3)


def test_a_disk_that_becomes_read_only(whole, disk):
    """As a kernel does that sees errors. A file that is open for writing keeps it from that: the run may get through to the next one."""
    words, result = whole
    code, said = disturbed(2, [*words, "--out", disk / "out"], lambda: [mount("-o", "remount,ro", disk) for _ in range(50)])
    assert mount("-o", "remount,rw", disk)
    if code != 0:
        assert code in (CANNOT_CREATE, INPUT_OUTPUT) and len(sentences(said)) == 1 and "ead-only" in sentences(said)[0], (code, said)
    check_present(result, disk / "out")
    check_goes_on([*words, *(["--overwrite"] if code == 0 else [])], result, disk / "out", 1)


def test_a_read_only_folder_is_refused_first(whole, disk):
    assert mount("-o", "remount,ro", disk)
    said = mdp.refuse(2, CANNOT_CREATE, "disk.*ead-only", *whole[0], "--out", disk / "out").stderr
    assert "layer 1/" not in said


@pytest.fixture(scope="module")
def short_transfers(tmp_path_factory):
    library = tmp_path_factory.mktemp("library") / "short_transfers.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, mdp.TESTS / "short_transfers.c", "-ldl"], check=True)
    return library


def test_short_and_interrupted_transfers_change_nothing(short_transfers, whole, tmp_path):
    words, result = whole
    mdp.succeed(2, *words, "--out", tmp_path / "out", within=["env", f"LD_PRELOAD={short_transfers}"])
    for name in NAMES:
        assert mdp.digests(tmp_path / "out" / name) == mdp.digests(result / name), name
    mdp.succeed(2, "verify", tmp_path / "out" / "model.h5", within=["env", f"LD_PRELOAD={short_transfers}"])


def test_what_an_mpi_library_does_not_forgive_is_an_error(short_transfers, whole, tmp_path):
    """Its own reads and writes are interrupted, too: the result is right, or there is none and a sentence."""
    words, result = whole
    ended = mdp.run(2, *words, "--out", tmp_path / "out", within=["env", "DISTURB_MPI=1", f"LD_PRELOAD={short_transfers}"])
    assert set(ended.codes) in ({0}, {INPUT_OUTPUT}) and len(ended.errors()) == (ended.codes[0] != 0), str(ended)
    check_present(result, tmp_path / "out")


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(mdp.DEMO, tmp_path / "model")


def with_model(words, model):
    words = list(words)
    words[words.index("--model") + 1] = model
    return words


def test_an_input_that_is_cut_while_it_is_read(whole, model, tmp_path):
    weights = model / "model.safetensors"
    code, said = disturbed(2, [*with_model(whole[0], model), "--out", tmp_path / "out"], lambda: os.truncate(weights, 4_000_000))
    assert code == 65 and len(sentences(said)) == 1, (code, said)
    assert re.search(r"model\.safetensors: (ends at byte [0-9,]+|was changed while)", sentences(said)[0]), said
    check_present(whole[1], tmp_path / "out")


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_an_input_that_is_changed_while_it_is_read(how, whole, model, tmp_path):
    """The same length, other numbers: nothing that was computed from both may be kept."""
    weights = model / "model.safetensors"

    def change():
        data = bytearray(weights.read_bytes())
        data[-3_000_000:-2_999_000] = bytes(1000)
        if how == "in place":
            with open(weights, "r+b") as file:
                file.write(data)
        else:
            (model / "new").write_bytes(data)
            (model / "new").rename(weights)
    code, said = disturbed(2, [*with_model(whole[0], model), "--out", tmp_path / "out"], change)
    assert code == 65 and len(sentences(said)) == 1 and re.search(r"model\.safetensors: was changed while", sentences(said)[0]), (code, said)
    assert not (tmp_path / "out" / "model.h5").exists() and not (tmp_path / "out" / "hf").exists()


def test_what_a_killed_job_left_in_shared_memory_is_no_hang(tmp_path):
    """Open MPI's semaphore of a file's name, taken by a job that was killed while it opened it."""
    name = f"left-{os.getpid()}.h5"
    mdp.write_tokens(tmp_path / "tokens.h5", {"a": [[1, 2, 3, 4]]})
    library = ctypes.CDLL(None)
    semaphores = [f"/OMPIO_{name}{end}".encode() for end in ("", ".partial")]
    for semaphore in semaphores:
        library.sem_open(semaphore, os.O_CREAT, 0o666, 0)
    try:
        mdp.succeed(2, "eval", "--model", mdp.GOLDEN / "mixtral", "--tokens", tmp_path / "tokens.h5", "--dump", tmp_path / name,
                    "--out", tmp_path / "eval.json", timeout=60)
    finally:
        for semaphore in semaphores:
            library.sem_unlink(semaphore)
