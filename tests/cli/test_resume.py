"""Stopped commands that go on, on other numbers of ranks, and end with the bytes of an unbroken run."""
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import mdp

pytestmark = pytest.mark.alone  # runs must not end before they are stopped
MODEL = mdp.GOLDEN / "mixtral"
GONE_ON = re.compile(r"^moe-dist-prune: stopped by .*; go on with the same command and --resume\.$", re.M)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return mdp.golden_tokens("mixtral", tmp_path_factory.mktemp("resume") / "tokens.h5")


def state_of(out):
    """Where the resume points of a command lie."""
    return [path for path in (out / ".state", out.with_name(out.name + ".state")) if path.exists()]


def go_on(out, *words, steps=1, ranks=(2, 3, 1, 4)):
    """Stop at every steps-th safe point and go on with other ranks, to the end; what was said at each stop."""
    said = []
    for n in itertools.cycle(ranks):
        result = mdp.run(n, *words, "--out", out, "--stop-at", steps, *(["--resume"] if said else []))
        if set(result.codes) == {0}:
            assert not state_of(out), "resume points stay after success"
            return said
        assert set(result.codes) == {75} and len(said) < 40, str(result)
        assert len(GONE_ON.findall(result.stderr)) == len(result.errors()) == 1 and "--resume" in result.stderr.splitlines()[-1], str(result)
        said += result.errors()


def assert_same(whole, parts, names):
    for name in names:
        assert mdp.digests(whole / name) == mdp.digests(parts / name), name


@pytest.mark.parametrize("steps, words", [
    (1, ["--method", "reap", "--eval-tokens"]),
    (2, ["--method", "reap", "--rounds", 2]),
    (2, ["--method", "reap", "--propagate", "pruned"]),
    (2, ["--method", "proficiency"]),
    (3, ["--method", "characteristic"]),
])
def test_run_stopped_anywhere_ends_with_the_same_bytes(steps, words, tokens, tmp_path):
    words = ["run", "--model", MODEL, "--tokens", tokens, *words, *([tokens] if "--eval-tokens" in words else []), "--keep", 4,
             "--format", "both"]
    mdp.succeed(1, *words, "--out", tmp_path / "whole")
    said = go_on(tmp_path / "parts", *words, steps=steps)
    assert any("observe" in line for line in said)
    assert_same(tmp_path / "whole", tmp_path / "parts", ["plan.json", "stats.h5", "model.h5", "hf"])
    if "--eval-tokens" in words:
        assert any(" of eval;" in line for line in said)
        assert mdp.measures(tmp_path / "whole" / "eval.json") == mdp.measures(tmp_path / "parts" / "eval.json")


def test_observe_in_batches(tmp_path):
    choose = np.random.default_rng(5)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [choose.integers(0, 100, 200) for _ in range(80)],
                                                       "b": [choose.integers(0, 100, 100) for _ in range(20)]})
    words = ["observe", "--model", MODEL, "--tokens", tokens]
    mdp.succeed(2, *words, "--out", tmp_path / "whole.h5")
    said = go_on(tmp_path / "parts.h5", *words, "--batch-tokens", 16384, steps=2)
    assert any("layer 2 of 3 of observe, batch 1 of 2" in line for line in said) and len(said) > 2, said
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "parts.h5").read_bytes()


def test_eval_of_plans_and_tasks(tokens, tmp_path):
    stats = tmp_path / "stats.h5"
    mdp.succeed(1, "observe", "--model", MODEL, "--tokens", tokens, "--out", stats)
    plans = []
    for keep in (6, 4):
        plans += ["--plan", tmp_path / f"{keep}.json"]
        mdp.succeed(1, "plan", "--stats", stats, "--method", "reap", "--keep", keep, "--out", plans[-1])
    words = ["eval", "--model", MODEL, "--tokens", tokens, *plans, "--tasks", mdp.write_tasks(tmp_path / "tasks.h5", {"a": mdp.TWO_ITEMS, "b": mdp.TWO_ITEMS})]
    mdp.succeed(1, *words, "--out", tmp_path / "whole.json")
    said = go_on(tmp_path / "parts.json", *words, steps=2)
    assert any(" of tasks;" in line for line in said) and any(" of eval;" in line for line in said), said
    assert mdp.measures(tmp_path / "whole.json") == mdp.measures(tmp_path / "parts.json")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    mdp.succeed(1, "plan", "--model", mdp.DEMO, "--method", "random", "--keep", 7, "--out", path)
    return path


@pytest.mark.parametrize("container", ["hdf5", "safetensors"])
def test_apply_goes_on_with_what_is_on_disk(container, plan, tmp_path):
    words = ["apply", "--model", mdp.DEMO, "--plan", plan, "--format", container, "--shard-size", "2MB"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    said = go_on(tmp_path / "parts", *words, ranks=(1, 3, 2))
    name = "model.h5" if container == "hdf5" else "hf"
    assert len(said) > 3 and all(re.search(rf"after .* of .* of .*parts/{name};", line) for line in said), said
    done = [float(re.search(r"after ([\d.]+) MB", line).group(1)) for line in said]
    assert done == sorted(set(done)), done
    assert_same(tmp_path / "whole", tmp_path / "parts", [name])
    mdp.succeed(1, "verify", tmp_path / "parts" / name)


def test_export_goes_on(plan, tmp_path):
    mdp.succeed(1, "apply", "--model", mdp.DEMO, "--plan", plan, "--out", tmp_path / "model")
    words = ["export", "--model", tmp_path / "model" / "model.h5"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    assert len(go_on(tmp_path / "parts", *words, steps=2, ranks=(1, 2))) > 1
    assert mdp.digests(tmp_path / "whole") == mdp.digests(tmp_path / "parts")


def test_partial_checkpoint_that_was_tampered_with_is_made_again(plan, tmp_path):
    words = ["apply", "--model", mdp.DEMO, "--plan", plan, "--format", "safetensors"]
    mdp.succeed(2, *words, "--out", tmp_path / "whole")
    assert set(mdp.run(1, *words, "--out", tmp_path / "parts", "--stop-at", 3).codes) == {75}
    shard = mdp.unfinished(tmp_path / "parts" / ".state")["hf.partial"] / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    mdp.succeed(2, *words, "--out", tmp_path / "parts", "--resume")
    assert_same(tmp_path / "whole", tmp_path / "parts", ["hf"])


# ---- what is refused


@pytest.fixture
def stopped(tokens, tmp_path):
    """A run that was stopped after a layer: its words and folder."""
    words = ["run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 4]
    result = mdp.run(2, *words, "--out", tmp_path / "out", "--stop-at", 1)
    assert set(result.codes) == {75}, str(result)
    return words, tmp_path / "out"


def changed(words, **options):
    words = list(words)
    for name, value in options.items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = value
    return words


def test_other_inputs_and_options_are_refused_by_name(stopped, tmp_path):
    words, out = stopped
    before = mdp.digests(out / ".state")
    shutil.copytree(MODEL, tmp_path / "model")
    data = bytearray((tmp_path / "model" / "model.safetensors").read_bytes())
    data[-4] ^= 1  # the last number of a tensor
    (tmp_path / "model" / "model.safetensors").write_bytes(data)
    other = mdp.write_tokens(tmp_path / "other.h5", {"golden": [[1, 2, 3, 4]]})
    for code, sentence, line in [
            (65, "of another model", changed(words, model=tmp_path / "model")),
            (65, r"of another text \(--tokens", changed(words, tokens=other)),
            (2, "with --keep 4, now it is 5", changed(words, keep=5)),
            (2, "with --method reap, now it is ean", changed(words, method="ean")),
            (2, "with --format hdf5, now it is both", [*words, "--format", "both"]),
            (65, r"to evaluate on \(--eval-tokens", [*words, "--eval-tokens", other])]:
        mdp.refuse(2, code, sentence, *line, "--out", out, "--resume")
    mdp.refuse(1, 73, "go on with it by --resume", *words, "--out", out)
    assert mdp.digests(out / ".state") == before
    mdp.succeed(1, *words, "--out", out, "--resume", "--threads", 2, "--batch-tokens", 16384, "--log-level", "debug")


def test_another_plan_is_refused(tokens, tmp_path):
    for keep in (6, 4):
        mdp.succeed(1, "plan", "--model", MODEL, "--method", "random", "--keep", keep, "--out", tmp_path / f"{keep}.json")
    words = ["eval", "--model", MODEL, "--tokens", tokens, "--out", tmp_path / "eval.json"]
    assert set(mdp.run(2, *words, "--plan", tmp_path / "6.json", "--stop-at", 2).codes) == {75}
    mdp.refuse(2, 65, r"of another plan, or of other statistics \(--plan", *words, "--plan", tmp_path / "4.json", "--resume")


def test_overwrite_starts_again_and_nothing_to_go_on_from_is_said(stopped):
    words, out = stopped
    result = mdp.succeed(1, *words, "--out", out, "--overwrite")
    assert "goes on after" not in result.stderr
    shutil.rmtree(out)
    result = mdp.succeed(1, *words, "--out", out, "--resume")
    assert "nothing to go on from; starting from the beginning" in result.stderr, str(result)


@pytest.mark.parametrize("where", [0.5, 0.95])
def test_damaged_point_is_refused(where, stopped):
    words, out = stopped
    path = out / ".state" / "pass-0.h5"
    data = bytearray(path.read_bytes())
    begin = int(len(data) * where)
    data[begin:begin + 64] = bytes(255 - x for x in data[begin:begin + 64])
    path.write_bytes(data)
    result = mdp.run(3, *words, "--out", out, "--resume")
    assert set(result.codes) <= {65, 74} and len(result.errors()) == 1, str(result)


# ---- stopping from outside


def start(ranks, *words):
    """The program under the launcher alone, so that signals go the way they do in a job."""
    return subprocess.Popen([str(mdp.TESTS / "mpiexec"), str(ranks), str(mdp.PROGRAM), *map(str, words)], stderr=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, start_new_session=True)


def processes_of(launcher):
    """Launcher and ranks, which have process groups of their own but the launcher's session."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            session = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3])
        except OSError:
            continue
        if session == launcher.pid:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Observation of some of the demo's text, long enough to be stopped."""
    out = tmp_path_factory.mktemp("whole") / "stats.h5"
    mdp.succeed(2, *OBSERVE, "--out", out)
    return out.read_bytes()


OBSERVE = ["observe", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--categories", "json"]


def test_signal_stops_all_ranks_after_the_layer(whole, tmp_path):
    process = start(4, *OBSERVE, "--out", tmp_path / "stats.h5")
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("observe  layer 1/6"):
            process.send_signal(signal.SIGUSR1)
            break
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 75, lines + [rest]
    assert re.search("stopped by SIGUSR1 after layer [12] of 6 of observe", rest), rest
    mdp.succeed(3, *OBSERVE, "--out", tmp_path / "stats.h5", "--resume")
    assert (tmp_path / "stats.h5").read_bytes() == whole


def test_sigterm_to_the_ranks_stops_them_as_well(whole, tmp_path):
    """As srun passes it on; mpirun would kill the ranks. One rank alone is enough."""
    process = start(3, *OBSERVE, "--out", tmp_path / "stats.h5")
    while not process.stderr.readline().startswith("observe  layer 1/6"):
        assert process.poll() is None
    ranks = [pid for pid in processes_of(process) if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == mdp.PROGRAM.name[:15]]
    os.kill(max(ranks), signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert len(ranks) == 3 and process.returncode == 75 and re.search("stopped by SIGTERM after layer [12] of 6 of observe", rest), rest
    mdp.succeed(2, *OBSERVE, "--out", tmp_path / "stats.h5", "--resume")
    assert (tmp_path / "stats.h5").read_bytes() == whole


def test_a_new_point_that_fails_leaves_the_old_one(tokens, tmp_path):
    """The disk takes nothing when the second point is written: the run cannot stop well, and goes on from the first."""
    library = tmp_path / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, mdp.TESTS / "full_disk.c", "-ldl"], check=True)
    words = ["observe", "--model", MODEL, "--tokens", tokens, "--out", tmp_path / "stats.h5"]
    assert set(mdp.run(2, *words, "--stop-at", 1).codes) == {75}
    before = mdp.digests(tmp_path / "stats.h5.state")
    assert "pass-0.h5" in before
    result = mdp.run(3, *words, "--resume", "--stop-at", 1, within=["env", f"LD_PRELOAD={library}", "FULL_DISK_BYTES=1000"])
    assert set(result.codes) == {74} and len(result.errors()) == 1 and "pass-0.h5" in result.errors()[0], str(result)
    assert mdp.digests(tmp_path / "stats.h5.state") == before
    assert "goes on after layer 1 of 3" in mdp.succeed(1, *words, "--resume").stderr
    mdp.succeed(2, *words[:-1], tmp_path / "whole.h5")
    assert (tmp_path / "stats.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_time_limit_stops_before_it_is_over(whole, tmp_path):
    """A second is kept for the end, so that a limit of one stops at the first safe point of any machine."""
    result = mdp.run(2, *OBSERVE, "--out", tmp_path / "stats.h5", "--max-seconds", "1s")
    assert set(result.codes) == {75} and "stopped by --max-seconds 1 after" in result.stderr, str(result)
    mdp.succeed(2, *OBSERVE, "--out", tmp_path / "stats.h5", "--resume", "--max-seconds", "1h")
    assert (tmp_path / "stats.h5").read_bytes() == whole


def test_killed_at_any_time(tokens, tmp_path):
    """SIGKILL for launcher and ranks together; points are taken after every layer."""
    words = ["run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 4, "--eval-tokens", tokens]
    mdp.succeed(1, *words, "--out", tmp_path / "whole")
    choose = np.random.default_rng(11)
    for number in range(4):
        out = tmp_path / f"parts{number}"
        process = start(2, *words, "--out", out, "--checkpoint-every", 0, "--quiet")
        time.sleep(choose.uniform(0.2, 1.2))
        for pid in processes_of(process):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        if (out / "report.json").exists() and not state_of(out):
            continue  # it was done
        mdp.succeed(3, *words, "--out", out, "--resume", "--checkpoint-every", 0)
        assert_same(tmp_path / "whole", out, ["plan.json", "stats.h5", "model.h5"])
