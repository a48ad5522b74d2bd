"""What a command may write, who owns it meanwhile, and what stays when it is killed between two system calls (doc/outputs.md)."""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import time

import pytest

import mdp

MODEL = mdp.GOLDEN / "mixtral"
BAD_INPUT, CANNOT_CREATE, STOPPED = 65, 73, 75
CHOICE = ["--method", "reap", "--keep", 4]
HERE = pathlib.Path("/proc/self")


def library(folder, name):
    made = folder / f"{name}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", made, mdp.TESTS / f"{name}.c", "-ldl"], check=True)
    return made


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with everything that a command can read, made by an earlier version of nobody."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / name, folder / "model")
    mdp.golden_tokens("mixtral", folder / "tokens.h5")
    mdp.write_tasks(folder / "tasks.h5", {"a": mdp.TWO_ITEMS})
    (folder / "keep.json").write_text('{"0": 4, "1": 4, "2": 4}')
    words = ["run", "--model", folder / "model", "--tokens", folder / "tokens.h5"]
    mdp.succeed(1, *words, *CHOICE, "--format", "both", "--out", folder / "out")
    for name in ("stats.h5", "plan.json", "model.h5"):
        shutil.copy(folder / "out" / name, folder / name)
    mdp.succeed(1, "info")
    shutil.copy(folder / "out" / "effective-config.json", folder / "config.json")
    shutil.copytree(folder / "model", folder / "before")
    return folder


@pytest.fixture
def inputs(given, tmp_path):
    """A copy that a test may lose."""
    return shutil.copytree(given, tmp_path / "in", copy_function=shutil.copy2)


def words_of(command, at):
    """A command line on the inputs in a folder, without --out."""
    model, tokens = ["--model", at / "model"], ["--tokens", at / "tokens.h5"]
    return {"run": ["run", *model, *tokens, *CHOICE], "observe": ["observe", *model, *tokens],
            "plan": ["plan", "--stats", at / "stats.h5", *CHOICE], "apply": ["apply", *model, "--plan", at / "plan.json"],
            "eval": ["eval", *model, *tokens, "--plan", at / "plan.json"], "export": ["export", "--model", at / "model.h5"]}[command]


def refuse(code, sentence, *words, env=None, timeout=60):
    """As mdp.refuse, of one process without a launcher."""
    result = subprocess.run([str(word) for word in (mdp.PROGRAM, *words)], capture_output=True, text=True, timeout=timeout, check=False,
                            env={**os.environ, **(env or {})})
    said = re.findall(r"^moe-dist-prune: (?!warning: )(.*)$", result.stderr, re.M)
    assert result.returncode == code and len(said) == 1 and re.search(sentence, said[0]), f"{words}: {result.returncode}, not {code} '{sentence}': {result.stderr}"
    return result


# ---- special files


def make_special(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        end = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        end.bind(path.name)
        os.chdir(here)
    elif os.geteuid() == 0:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        pytest.skip("only root makes devices")


# command, --out, where the special file lies, more words
WHERE = [*((command, "node", "node", []) for command in ("observe", "plan", "eval", "export", "run", "apply")),
         ("eval", "e.json", "d.h5", ["--dump", "d.h5"]), ("observe", "s.h5", "s.h5.profile.json", ["--profile"]), ("observe", "s.h5", "s.h5.state", []),
         ("run", "o", "o/plan.json", []), ("run", "o", "o/run.log", []), ("run", "o", "o/.state", []), ("run", "o", "o/profile.json", ["--profile"]),
         ("apply", "o", "o/model.h5", []), ("apply", "o", "o/hf", ["--format", "safetensors"])]


@pytest.mark.parametrize("kind, command, out, node, more", [(kind, *where) for i, where in enumerate(WHERE) for kind in (
    ["fifo", "socket", "device"] if i < 2 else [["fifo", "socket", "device"][i % 3]])])
def test_a_special_file_is_never_written_or_replaced(kind, command, out, node, more, given, tmp_path):
    """As an output of any option, or where one will be; also behind a link, and in a dry run."""
    node = tmp_path / node
    node.parent.mkdir(exist_ok=True)
    make_special(kind, node)
    words = [*words_of(command, given), "--overwrite", *(tmp_path / word if word == "d.h5" else word for word in more)]
    for again in ([], ["--dry-run"]) if command != "plan" else ([],):
        said = refuse(CANNOT_CREATE, "is (no|not a) folder|is a (FIFO|socket|device)", *words, "--out", tmp_path / out, *again, timeout=30)
        assert "layer 1/" not in said.stderr
        assert not stat.S_ISREG(os.lstat(node).st_mode) and not node.is_dir(), str(said)
    if out == "node" and command in ("observe", "plan", "eval"):
        (tmp_path / "link").symlink_to(node)
        refuse(CANNOT_CREATE, "is a (FIFO|socket|device)", *words, "--out", tmp_path / "link", timeout=30)
        assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} <= {node.relative_to(tmp_path).parts[0], "link"}


# ---- outputs and inputs


# command, an input of it, words: its usual ones, with more, or others
AS_INPUT = [("observe", "tokens.h5", []), ("observe", "model/model.safetensors", []), ("observe", "config.json", ["--config", "config.json"]),
            ("plan", "stats.h5", []), ("plan", "stats.h5", ["plan", "--stats", "stats.h5:0.5", *CHOICE]),
            ("plan", "keep.json", ["plan", "--stats", "stats.h5", "--method", "reap", "--keep-file", "keep.json"]),
            ("plan", "before/model.safetensors", ["plan", "--model", "model", "--pretrained", "before", "--method", "router-norm-change", "--keep", 4]),
            ("eval", "plan.json", []), ("eval", "tokens.h5", []), ("eval", "tasks.h5", ["--tasks", "tasks.h5"]), ("export", "model.h5", []),
            ("export", "model", ["export", "--model", "model"])]


def relative(inputs, words):
    names = {"tokens.h5", "stats.h5", "stats.h5:0.5", "tasks.h5", "keep.json", "config.json", "plan.json", "before", "model", "model.h5"}
    return [inputs / word if word in names else word for word in words]


@pytest.mark.parametrize("command, name, more", AS_INPUT)
def test_no_output_is_an_input(command, name, more, inputs, tmp_path):
    """By its own name, by another way there, by links of both kinds; nothing is lost."""
    words = relative(inputs, more) if more and not str(more[0]).startswith("-") else [*words_of(command, inputs), *relative(inputs, more)]
    before, real = mdp.digests(inputs), inputs / name
    ways = [real, inputs / "model" / ".." / name]
    (tmp_path / "soft").symlink_to(real)
    ways.append(tmp_path / "soft")
    if real.is_file():
        os.link(real, tmp_path / "hard")
        ways.append(tmp_path / "hard")
    for way in ways if command != "export" or name == "model.h5" else ways[:2]:
        sentence = "is the input|lies inside the input" + ("|is a (symbolic link|file, the output is to be a folder)" if command == "export" else "")
        refuse(CANNOT_CREATE, sentence, *words, "--out", way, "--overwrite")
    if command != "plan":
        refuse(CANNOT_CREATE, sentence, *words, "--out", real, "--overwrite", "--dry-run")
    assert mdp.digests(inputs) == before


def test_no_other_output_is_an_input(inputs):
    """--dump, --profile, results in a folder, results that would go."""
    before = mdp.digests(inputs)
    shutil.copy(inputs / "plan.json", inputs / "e.json.profile.json")
    shutil.copy(inputs / "tokens.h5", inputs / "out" / "profile.json")
    shutil.copy(inputs / "tokens.h5", inputs / "out" / "run.log")
    before = mdp.digests(inputs)
    evaluate, run = words_of("eval", inputs), words_of("run", inputs)
    refused = [
        [*evaluate, "--out", inputs / "e.json", "--dump", inputs / "tokens.h5"],
        ["eval", "--model", inputs / "model", "--tokens", inputs / "tokens.h5", "--plan", inputs / "e.json.profile.json", "--out", inputs / "e.json", "--profile"],
        ["run", "--model", inputs / "model", "--tokens", inputs / "out" / "profile.json", *CHOICE, "--profile", "--out", inputs / "out"],
        ["run", "--model", inputs / "model", "--tokens", inputs / "out" / "run.log", *CHOICE, "--out", inputs / "out"],
        ["run", "--model", inputs / "out" / "hf", "--tokens", inputs / "tokens.h5", "--method", "reap", "--keep", 3, "--out", inputs / "out"],
        ["run", "--model", inputs / "out" / "model.h5", "--tokens", inputs / "tokens.h5", "--method", "reap", "--keep", 3, "--format", "safetensors", "--out", inputs / "out"],
        [*run, "--config", inputs / "out" / "effective-config.json", "--out", inputs / "out"]]
    for words in refused:
        refuse(CANNOT_CREATE, "is the input|lies inside the input|contains the input", *words, "--overwrite")
        assert mdp.digests(inputs) == before, words
    refuse(CANNOT_CREATE, "another output", *evaluate, "--out", inputs / "new.json", "--dump", inputs / "model" / ".." / "new.json", "--overwrite")
    refuse(CANNOT_CREATE, "is another output|lies inside another output|no folder|cannot be used", *evaluate, "--out", inputs / "new.json", "--dump",
               inputs / "new.json.state" / "d.h5", "--overwrite")
    assert mdp.digests(inputs) == before


def test_a_plan_of_the_folder_may_be_applied_there(inputs):
    """An input in a folder of results is none of what the command writes."""
    shutil.rmtree(inputs / "out" / "hf")
    mdp.succeed(1, "apply", "--model", inputs / "model", "--plan", inputs / "out" / "plan.json", "--format", "safetensors", "--out", inputs / "out")
    assert (inputs / "out" / "hf").is_dir() and (inputs / "out" / "stats.h5").exists()


# ---- files of others


@pytest.mark.parametrize("command", ["run", "apply", "export"])
def test_files_of_others_in_a_checkpoint_are_named_and_stay(command, inputs, tmp_path):
    out = inputs / "out"
    hf = out / "hf"
    if command == "export":
        out = hf = tmp_path / "exported"
        mdp.succeed(1, *words_of("export", inputs), "--out", out)
    (hf / "lm_eval.json").write_text("mine")
    (hf / "more").mkdir()
    (hf / "more" / "model-q4.gguf").write_text("mine")
    before = mdp.digests(inputs), mdp.digests(hf)
    more = [] if command == "export" else ["--format", "safetensors"]
    for again in ([], ["--dry-run"]):
        said = refuse(CANNOT_CREATE, "holds lm_eval.json, more, which its moe-dist-prune.json does not list", *words_of(command, inputs), *more,
                          "--out", out, "--overwrite", *again)
        assert "layer 1/" not in said.stderr
    assert (mdp.digests(inputs), mdp.digests(hf)) == before


def test_names_that_are_not_ours_are_not_touched(given, tmp_path):
    """OUT.partial, hf.partial, hf.replaced, OUT.state and DIR/.state of somebody else, profile.json."""
    for name in ("s.h5.partial", "s.h5.profile.json", "out/hf.partial/x", "out/hf.replaced/x", "out/plan.json.partial", "t.h5.state/x", "o/.state/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = mdp.digests(tmp_path)
    observe, run = words_of("observe", given), words_of("run", given)
    refuse(CANNOT_CREATE, "s.h5.profile.json exists already", *observe, "--out", tmp_path / "s.h5", "--profile")
    for more in ([], ["--overwrite"], ["--resume"], ["--dry-run"]):
        refuse(CANNOT_CREATE, "t.h5.state holds x, which this program did not write", *observe, "--out", tmp_path / "t.h5", *more)
        refuse(CANNOT_CREATE, r"\.state holds x, which this program did not write", *run, "--out", tmp_path / "o", *more)
    assert mdp.digests(tmp_path) == before
    mdp.succeed(1, *observe, "--out", tmp_path / "s.h5")
    mdp.succeed(1, *run, "--format", "both", "--out", tmp_path / "out")
    after = mdp.digests(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_state_folder_of_another_program_is_not_ours(given, tmp_path):
    (tmp_path / "s.h5.state").mkdir()
    (tmp_path / "s.h5.state" / "lock").write_text("pid 1")
    refuse(CANNOT_CREATE, "neither a lock nor an identity", *words_of("observe", given), "--out", tmp_path / "s.h5", "--overwrite")
    assert (tmp_path / "s.h5.state" / "lock").read_text() == "pid 1"


# ---- generations


def record(out):
    return [(one["command"], one["finished"], sorted(one["members"])) for one in mdp.read_json(out / "moe-dist-prune.json")["generations"]]


def test_results_in_a_folder_are_of_one_generation(given, tmp_path):
    """The results of an earlier run go with the first of the new; what is not on its record stays."""
    out, run = tmp_path / "out", words_of("run", given)
    mdp.succeed(1, *run, "--format", "both", "--eval-tokens", given / "tokens.h5", "--profile", "--out", out)
    (out / "notes.txt").write_text("mine")
    before = mdp.digests(out)
    newer = [*run[:-1], 3, "--out", out]
    refuse(CANNOT_CREATE, "exists already", *newer)
    assert mdp.run(1, *newer, "--overwrite", "--stop-at", 1).codes == [STOPPED]  # nothing has appeared yet
    left = mdp.digests(out)
    assert {name: left[name] for name in before if name != "run.log"} == {name: before[name] for name in before if name != "run.log"}
    mdp.succeed(2, *newer, "--overwrite", "--resume")
    assert {path.name for path in out.iterdir()} == {"stats.h5", "plan.json", "model.h5", "report.json", "report.html", "effective-config.json", "run.log",
                                                     "notes.txt", "moe-dist-prune.json"}
    assert record(out) == [("run", True, ["effective-config.json", "model.h5", "plan.json", "report.html", "report.json", "stats.h5"])]
    mdp.succeed(1, *newer[:-1], tmp_path / "fresh")
    for name in ("stats.h5", "plan.json", "model.h5"):
        assert mdp.digests(out / name) == mdp.digests(tmp_path / "fresh" / name)


def test_a_run_that_fails_early_leaves_the_old_results(given, tmp_path):
    out, run = tmp_path / "out", words_of("run", given)
    mdp.succeed(1, *run, "--format", "both", "--out", out)
    before = mdp.digests(out)
    broken = mdp.write_tokens(tmp_path / "broken.h5", {"a": [[1, 2, 3, 10**6]]})
    refuse(BAD_INPUT, "10,?00,?000|1000000", "run", "--model", given / "model", "--tokens", broken, *CHOICE, "--out", out, "--overwrite")
    assert mdp.digests(out) == before


def test_a_checkpoint_of_another_command_beside_is_named(given, tmp_path):
    out = tmp_path / "out"
    mdp.succeed(1, *words_of("run", given), "--out", out)
    said = mdp.succeed(1, *words_of("apply", given), "--format", "safetensors", "--out", out).stderr
    assert re.search(r"warning: .*out/model\.h5 stays beside these results, and is of another command \(moe-dist-prune.json", said), said
    assert [entry[0] for entry in record(out)] == ["run", "apply"] and "hf" in record(out)[1][2]
    (out / "moe-dist-prune.json").unlink()  # as from an older version
    said = mdp.succeed(1, *words_of("run", given), "--out", out, "--overwrite").stderr
    assert re.search(r"warning: .*out/hf stays beside these results", said), said
    assert (out / "hf").exists()


# ---- owners


def start(*words, program=mdp.PROGRAM, env=None):
    return subprocess.Popen([str(word) for word in (program, *words)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                            env={**os.environ, **(env or {})})


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory):
    return library(tmp_path_factory.mktemp("no_locks"), "no_locks")


def stopped_in_the_middle(words, env=None):
    """A run that stands still after its first layer, and owns its output."""
    process = start(*words, env=env)
    for line in process.stderr:
        if re.match(r"\w+ +layer 1/", line):
            process.send_signal(signal.SIGSTOP)
            return process
    raise AssertionError("it did not begin")


LONG = ["observe", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--categories", "json"]


@pytest.mark.alone
@pytest.mark.parametrize("by_name", [False, True])
def test_an_output_has_one_owner(by_name, given, no_locks, tmp_path):
    env = {"LD_PRELOAD": str(no_locks)} if by_name else {}
    out = tmp_path / "out" / "stats.h5"
    out.parent.mkdir()
    first = stopped_in_the_middle([*LONG, "--out", out], env)
    try:
        sentence = rf"is being written by another run: process {first.pid} on host {re.escape(os.uname().nodename)}, since .* UTC \(last sign of life"
        for more in (["--overwrite"], ["--resume", "--break-lock"], ["--dry-run"]):
            refuse(CANNOT_CREATE, sentence, *LONG, "--out", out, *more, env=env)
        mdp.refuse(2, CANNOT_CREATE, sentence, *words_of("run", given), "--out", out.parent, env=env)  # its stats.h5 is the same
        refuse(CANNOT_CREATE, sentence, *words_of("eval", given), "--out", tmp_path / "e.json", "--dump", out, env=env)
        assert not (out.parent / ".state").exists() and not (tmp_path / "e.json.state").exists()
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=100) == 0, first.stderr.read()
    assert [path.name for path in out.parent.iterdir()] == ["stats.h5"]


@pytest.mark.alone
def test_a_folder_of_results_owns_what_is_in_it(given, tmp_path):
    out = tmp_path / "out"
    first = stopped_in_the_middle(["run", *LONG[1:], *CHOICE, "--out", out])
    try:
        for command, name in (("observe", "stats.h5"), ("plan", "plan.json"), ("export", "hf"), ("eval", "eval.json")):
            refuse(CANNOT_CREATE, f"{out} is being written by another run: process {first.pid}", *words_of(command, given), "--out", out / name, "--overwrite")
    finally:
        first.kill()
    first.wait(timeout=60)
    mdp.succeed(2, "run", *LONG[1:], *CHOICE, "--out", out, "--resume")  # its owner is gone


def lock(state, **changes):
    """A lock as a run of this moment on this host would have it, but for some changes."""
    state.mkdir(parents=True)
    boot, space = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    begun = int((HERE / "stat").read_text().rsplit(")", 1)[1].split()[19])
    text = {"format": "moe-dist-prune lock", "version": "1.0", "host": os.uname().nodename, "boot": boot, "space": space, "pid": os.getpid(), "begun": begun,
            "job": "", "restarts": 0, "since": "2026-01-02 03:04:05 UTC", "locked": True}
    (state / "lock").write_text(json.dumps({**text, **changes}))
    os.utime(state / "lock", (time.time() - 7200, time.time() - 7200))


@pytest.mark.parametrize("by_name, changes, env, taken", [
    (True, {}, {}, False),  # this very test runs
    (True, {"pid": 2**22 + 5}, {}, True),
    (True, {"begun": 1}, {}, True),  # another process has its number
    (True, {"host": "n17", "boot": "x"}, {}, None),
    (False, {"host": "n17", "boot": "x"}, {}, True),  # the kernel says that nobody holds it
    (False, {"host": "n17", "boot": "x", "locked": False}, {}, None),  # where it ran it had no locks
    (True, {"boot": "x"}, {}, None),
    (True, {"host": "n17", "boot": "x", "job": "4711"}, {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "1"}, True),
    (True, {"host": "n17", "boot": "x", "job": "4711", "restarts": 1}, {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "1"}, None),
    (True, {"host": "n17", "boot": "x", "job": "4711"}, {"SLURM_JOB_ID": "4712", "SLURM_RESTART_COUNT": "1"}, None),
    (True, {"host": "n17", "boot": "x", "job": "a.4711"}, {"SLURM_JOB_ID": "4711", "SLURM_CLUSTER_NAME": "a", "SLURM_RESTART_COUNT": "1"}, True),
    (True, {"host": "n17", "boot": "x", "job": "a.4711"}, {"SLURM_JOB_ID": "4711", "SLURM_CLUSTER_NAME": "b", "SLURM_RESTART_COUNT": "1"}, None),
    (True, {"host": "n17", "boot": "x", "job": "4711[2]"}, {"LSB_JOBID": "4711", "LSB_JOBINDEX": "2", "MDP_RESTARTS": "1"}, True),
    (True, {"host": "n17", "boot": "x", "job": "4711[1]"}, {"LSB_JOBID": "4711", "LSB_JOBINDEX": "2", "MDP_RESTARTS": "1"}, None)])
def test_an_owner_that_is_gone_is_known(by_name, changes, env, taken, given, no_locks, tmp_path):
    """Where it cannot be known it is refused, and taken over with --break-lock."""
    out = tmp_path / "s.h5"
    lock(tmp_path / "s.h5.state", **changes)
    words = [*words_of("observe", given), "--out", out]
    env = {**env, **({"LD_PRELOAD": str(no_locks)} if by_name else {})}
    if taken:
        mdp.succeed(2, *words, env=env)
    else:
        host = changes.get("host", os.uname().nodename)
        sentence = rf"s\.h5 is being written by another run: process \d+ on host {host}.*, since 2026-01-02 03:04:05 UTC \(last sign of life 2 h"
        mdp.refuse(2, CANNOT_CREATE, sentence + (".*--break-lock" if taken is None else ".*Wait for it"), *words, env=env)
        again = [*words, "--break-lock"]
        if taken is None:
            mdp.succeed(2, *again, env=env)
        else:
            refuse(CANNOT_CREATE, sentence, *again, env=env)
    assert out.exists() == (taken is not False)
    assert (tmp_path / "s.h5.state").exists() == (taken is False)


@pytest.mark.alone
def test_an_owner_that_lost_its_lock_publishes_nothing(tmp_path):
    """As a machine that was suspended: another takes over by --break-lock (here: by force) and is done first."""
    out, state = tmp_path / "s.h5", tmp_path / "s.h5.state"
    first = stopped_in_the_middle([*LONG, "--out", out])
    try:
        (state / "lock").unlink()
        shutil.copy(mdp.GOLDEN / "mixtral" / "config.json", state / "pass-0.h5")  # of whoever came after
        lock(tmp_path / "other", host="n17")
        (tmp_path / "other" / "lock").rename(state / "lock")
        before = mdp.digests(state)
    finally:
        first.send_signal(signal.SIGCONT)
    said = first.communicate(timeout=100)[1]
    assert first.returncode == CANNOT_CREATE and re.search("s.h5 is no longer this run's to write: .* taken over by process .* on host n17", said), said
    assert not out.exists() and {name: digest for name, digest in mdp.digests(state).items() if not name.startswith("making.")} == before


# ---- what a resume point is of


def change_late(model):
    """Other weights, beyond the first bytes of the last tensor, and the same size."""
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-20_000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", ["observe", "apply", "eval", "run"])
def test_a_model_that_was_changed_meanwhile_is_refused(command, inputs, tmp_path):
    """A fingerprint does not see it; size and time do. What was copied with its time is as good as it was."""
    model, weights = inputs / "model", inputs / "model" / "model.safetensors"
    shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copy2)
    words = [*words_of(command, inputs), "--out", tmp_path / "out"]
    assert mdp.run(1, *words, "--stop-at", 1).codes == [STOPPED]
    shutil.copy2(weights, tmp_path / "weights")
    change_late(model)
    refuse(BAD_INPUT, r"--resume: .*model\.safetensors was changed, or copied without its time, since .*start again with --overwrite", *words, "--resume")
    weights.rename(tmp_path / "changed")  # it stays, so that its inode is not given again
    shutil.copy2(tmp_path / "weights", weights)
    refuse(BAD_INPUT, r"model\.safetensors was replaced by another file", *words, "--resume")
    elsewhere = [*words]
    elsewhere[elsewhere.index("--model") + 1] = tmp_path / "copy"
    (tmp_path / "copy" / "README.md").write_text("new")
    if command in ("apply", "run"):  # it would be copied
        refuse(BAD_INPUT, r"README\.md has come since", *elsewhere, "--resume")
        (tmp_path / "copy" / "README.md").unlink()
    mdp.succeed(2, *elsewhere, "--resume")


def test_the_model_before_fine_tuning_counts_too(inputs, tmp_path):
    words = ["run", "--model", inputs / "model", "--pretrained", inputs / "before", "--tokens", inputs / "tokens.h5", "--method", "router-norm-change",
             "--keep", 4, "--out", tmp_path / "out"]
    data = bytearray((inputs / "before" / "model.safetensors").read_bytes())
    data[-1_000_000:] = bytes(x ^ 1 for x in data[-1_000_000:])
    (inputs / "before" / "model.safetensors").write_bytes(data)
    assert mdp.run(1, *words, "--stop-at", 1).codes == [STOPPED]
    change_late(inputs / "before")
    refuse(BAD_INPUT, r"before/model\.safetensors was changed", *words, "--resume")


@pytest.mark.parametrize("result", ["hf", "model.h5"])
def test_a_result_is_traced_to_its_model(result, inputs):
    path = inputs / "out" / result
    assert "every tensor is what" in mdp.succeed(2, "verify", path, "--model", inputs / "model").stdout
    change_late(inputs / "model")
    mdp.refuse(2, BAD_INPUT, "tensor '.*' is not what .* and the plan in it give", "verify", path, "--model", inputs / "model")
    refuse(BAD_INPUT, "was made of a model with fingerprint", "verify", path, "--model", mdp.GOLDEN / "qwen3_moe")


def test_statistics_are_traced_to_model_and_text(inputs):
    words = ["verify", inputs / "stats.h5", "--model", inputs / "model"]
    mdp.succeed(1, *words, "--tokens", inputs / "tokens.h5")
    other = mdp.write_tokens(inputs / "other.h5", {"a": [[1, 2, 3]]})
    refuse(BAD_INPUT, "are of a text with fingerprint", *words, "--tokens", other)
    refuse(BAD_INPUT, "are of a model with fingerprint", "verify", inputs / "stats.h5", "--model", mdp.GOLDEN / "qwen3_moe")


# ---- finished


@pytest.mark.parametrize("command", ["run", "observe", "apply", "eval", "export"])
def test_a_finished_command_that_is_resumed_says_so(command, inputs, tmp_path):
    """A job that was put back into the queue a moment too late ends well; another command, or other weights, do not."""
    out = tmp_path / "out"
    words = [*words_of(command, inputs), "--out", out]
    mdp.succeed(2, *words)
    before = mdp.digests(tmp_path)
    said = mdp.succeed(3, *words, "--resume").stderr
    assert f"{out} is finished: this very command has written it, and nothing is left to do" in said and "layer" not in said, said
    assert mdp.digests(tmp_path) == before
    if command in ("run", "eval"):
        shown = mdp.succeed(1, *words, "--resume", "--json", "--quiet").stdout
        assert json.loads(shown)["format"] == ("moe-dist-prune report" if command == "run" else "moe-dist-prune eval")
    refuse(CANNOT_CREATE, "exists already", *words)
    other = {"run": ["--seed", 7], "observe": ["--categories", "golden"], "apply": ["--layers", "0-1"], "eval": ["--allow-nonfinite"], "export": ["--shard-size", "1MB"]}
    if command != "observe":  # the only category is all of it
        refuse(CANNOT_CREATE, "exists already", *words, *other[command], "--resume")
    model = inputs / "model" / "model.safetensors" if command != "export" else inputs / "model.h5"
    os.utime(model)
    refuse(BAD_INPUT, "was finished before .* was changed", *words, "--resume")
    assert mdp.digests(out) == {name.removeprefix("out/"): value for name, value in before.items() if name.startswith("out/")} or out.is_file()


# ---- killed between two system calls


@pytest.fixture(scope="module")
def kill_at(tmp_path_factory):
    return library(tmp_path_factory.mktemp("kill_at"), "kill_at")


def at_call(kill_at, below, as_words=True, **how):
    env = {"LD_PRELOAD": kill_at, "KILL_BELOW": below, **{f"KILL_{key.upper()}": value for key, value in how.items()}}
    return ["env", *(f"{key}={value}" for key, value in env.items())] if as_words else {key: str(value) for key, value in env.items()}


@pytest.mark.parametrize("command", ["export", "run"])
def test_killed_while_one_result_takes_the_place_of_another(command, given, kill_at, tmp_path):
    """At some of the calls by which a command replaces an older result: old or new, or both set aside; then as if nothing had been.
    tests/campaigns/kill-at-system-calls does so everywhere."""
    work, count = tmp_path / "work", tmp_path / "count"
    out = work / "out"
    older = {"export": ["export", "--model", given / "model", "--shard-size", "1MB"],
             "run": [*words_of("run", given)[:-1], 6, "--format", "both", "--eval-tokens", given / "tokens.h5"]}[command]
    newer = [*words_of(command, given), *(["--format", "safetensors"] if command == "run" else []), "--overwrite", "--out", out]
    skip = {"run.log", "report.json", "report.html", "effective-config.json", "eval.json", "moe-dist-prune.json"} if command == "run" else set()
    (tmp_path / "before").mkdir()
    mdp.succeed(1, *older, "--out", tmp_path / "before" / "out")
    (tmp_path / "before" / "mine").write_text("mine")

    def prepare():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tmp_path / "before", work)

    def content():
        if command == "export":
            return mdp.digests(out) if out.exists() else {}
        return {path.name: mdp.digests(path) for path in out.iterdir() if path.name not in skip | {".state"}}
    prepare()
    old = content()
    mdp.succeed(1, *newer, within=at_call(kill_at, work, count=count))
    new, names, n = content(), sorted(path.name for path in work.rglob("*")), int(count.read_text())
    for at in range(n - 24, n, 4) if command == "export" else range(n // 4, n, n // 8):
        prepare()
        start(*newer, env=at_call(kill_at, work, at=at, **({"after": 1} if at % 2 else {}), as_words=False)).wait(timeout=60)
        left = content()
        assert all(old.get(key) == value for key, value in left.items()) or all(new.get(key) == value for key, value in left.items()), (at, left)
        assert command != "export" or left in ({}, old, new), (at, left)
        assert start(*newer, *(["--resume"] if at % 3 else [])).wait(timeout=60) == 0
        assert content() == new and sorted(path.name for path in work.rglob("*")) == names, at
