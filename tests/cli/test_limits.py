"""Limits of the system, and inputs that would make a reader wait or write where it should not: a sentence and a code, in time."""
import os
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

import limits
import mdp

BAD_INPUT = 65


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Words of a run, and its results without limits."""
    folder = tmp_path_factory.mktemp("run")
    tokens = mdp.write_tokens(folder / "tokens.h5", {"a": [[(7 * i + j) % 100 for j in range(64)] for i in range(12)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", tokens, "--method", "reap", "--keep", 6, "--format", "both", "--quiet", "--checkpoint-every", 0]
    mdp.succeed(2, *words, "--out", folder / "whole")
    return words, mdp.results(folder / "whole")


@pytest.mark.parametrize("n", [6, 12, 18, 24])
@pytest.mark.parametrize("ranks", [1, 3])
def test_few_inodes(n, ranks, run, tmp_path):
    with limits.few_inodes(tmp_path / "disk", n) as disk:
        if disk is None:
            pytest.skip("cannot mount a tmpfs here (needs root with CAP_SYS_ADMIN)")
        wrong, shown = limits.step("inodes", ranks, run[0], disk / "out", n, None, run[1])
    assert not wrong, f"{wrong}\n{shown}"


@pytest.mark.parametrize("kind, limit", [("descriptors", 20), ("descriptors", 26), ("memory", 400000), ("memory", 800000), ("file-size", 10000),
                                         ("file-size", 16000)])
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_limits_of_a_process(kind, limit, rank, run, tmp_path):
    wrong, shown = limits.step(kind, 2, run[0], tmp_path / "out", limit, rank, run[1])
    assert not wrong, f"{wrong}\n{shown}"


@pytest.mark.parametrize("option", ["--model", "--tokens", "--eval-tokens", "--tasks", "--keep-file", "--config"])
def test_an_input_that_is_no_file_is_refused_at_once(option, run, tmp_path):
    words = [str(word) for word in run[0]]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    if option in words:
        words[words.index(option) + 1] = str(fifo)
    else:
        words += [option, str(fifo)]
        if option == "--keep-file":
            del words[words.index("--keep"):words.index("--keep") + 2]
    result = mdp.run(2, *words, "--out", tmp_path / "out", timeout=20)
    assert set(result.codes) <= {2, BAD_INPUT} and len(set(result.codes)) == 1 and len(result.errors()) == 1, str(result)
    assert "FIFO" in result.errors()[0] or "pipe" in result.errors()[0], str(result)


def spoil_format(file, _):
    file.attrs["format"] = np.array([b"x" * 99] * 50, "S99")


def link_out(file, folder):
    del file["t/input_ids"]
    os.mkfifo(folder / "fifo")
    file["t/input_ids"] = h5py.ExternalLink(str(folder / "fifo"), "/x")


def values_elsewhere(file, folder):
    del file["t/input_ids"]
    os.mkfifo(folder / "fifo")
    file.create_dataset("t/input_ids", (64,), "u4", external=[(str(folder / "fifo"), 0, 256)])


def onto_itself(file, _):
    del file["t/input_ids"]
    layout = h5py.VirtualLayout((64,), "u4")
    layout[:] = h5py.VirtualSource(".", "t/input_ids", (64,))
    file.create_virtual_dataset("t/input_ids", layout)


def nest(file, _):
    group = file["t"]
    for i in range(2000):
        group = group.create_group("g")


def round_and_round(file, _):
    file["t/again"] = file["t"]


def shape_without_values(file, _):
    del file["t/input_ids"]
    file.create_dataset("t/input_ids", (1 << 40,), "u4", chunks=(1024,))


@pytest.mark.parametrize("spoil", [spoil_format, link_out, values_elsewhere, onto_itself, nest, round_and_round, shape_without_values])
def test_hdf5_that_leads_elsewhere_or_nowhere(spoil, tmp_path):
    """No reader waits for a pipe, follows a circle, or takes memory for values that nobody wrote."""
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"t": [list(range(64))]})
    with h5py.File(tokens, "a") as file:
        spoil(file, tmp_path)
    result = mdp.run(2, "observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--out", tmp_path / "s.h5", timeout=30)
    harmless = spoil in (spoil_format, round_and_round, nest)
    assert result.codes in ([[0, 0], [BAD_INPUT] * 2] if harmless else [[BAD_INPUT] * 2]), str(result)
    assert len(result.errors()) == (result.codes[0] != 0), str(result)


@pytest.mark.parametrize("name", ["format", "version", "compute"])
def test_attributes_are_looked_at_before_they_are_read(name, tmp_path):
    tokens = mdp.write_tokens(tmp_path / "t.h5", {"t": [list(range(64))]})
    mdp.succeed(1, "observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--out", tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file.attrs[name] = np.array([b"x" * 99] * 50, "S99")
    mdp.refuse(2, BAD_INPUT, f"attribute '{name}'|seal|format", "plan", "--stats", tmp_path / "s.h5", "--method", "reap", "--keep", 4, "--out", tmp_path / "p.json")


def has_begun(pid):
    """Has a process ignored SIGXFSZ? The program's first step does so, and holds SIGUSR1 back."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            ignored = next(line.split()[1] for line in status if line.startswith("SigIgn"))
    except (OSError, StopIteration):
        return False
    return int(ignored, 16) >> (signal.SIGXFSZ - 1) & 1


def test_a_signal_before_mpi_has_started_saves_and_stops(run, tmp_path):
    """The time from the start of a program to its first line is not the batch system's to know."""
    process = subprocess.Popen([mdp.PROGRAM, *map(str, run[0]), "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    while not has_begun(process.pid) and process.poll() is None:
        time.sleep(0.0005)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75, process.stderr.read()
    mdp.succeed(1, *run[0], "--out", tmp_path / "out", "--resume")
    assert mdp.results(tmp_path / "out") == run[1]
