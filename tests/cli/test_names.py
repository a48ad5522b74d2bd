"""Names are other people's texts. What is no UTF-8 or would steer a terminal is refused where it would come into a record, and
elsewhere shown by its number; command lines that are printed can be pasted."""
import ast
import json
import os
import re
import shlex
import shutil
import struct
import subprocess

import h5py
import numpy as np
import pytest

import mdp

BAD_INPUT, USAGE, STOPPED = 65, 2, 75
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
CHOICE = ["--method", "reap", "--keep", 4]


def refuse(ranks, shown, *words, code=BAD_INPUT):
    """The sentence has the name as `shown`, and no letter that steers."""
    result = mdp.refuse(ranks, code, re.escape(shown), *words)
    assert not CONTROL.search(result.stderr + result.stdout) and "�" not in result.stderr, str(result)
    return result


@pytest.mark.parametrize("name, shown", [(b"tok\xff.json", r"tok\xff.json"), (b"a\x1b[2Jb.py", r"a\u001b[2Jb.py"), (b"a\nb.txt", r"a\u000ab.txt"),
                                         ("a\u202eb.txt".encode(), r"a\u202eb.txt"), ("a\x9b2J.txt".encode(), r"a\u009b2J.txt")])
def test_a_side_file_with_such_a_name_is_refused_before_anything_runs(model, tokens, tmp_path, name, shown):
    with open(os.path.join(os.fsencode(model), name), "wb") as file:
        file.write(b"{}")
    said = refuse(2, shown, "run", "--model", model, "--tokens", tokens, *CHOICE, "--format", "both", "--out", tmp_path / "out")
    assert "name of a side file" in said.stderr and not (tmp_path / "out").exists()


def test_names_in_other_scripts_are_names(model, tokens, tmp_path):
    """Checksums and all."""
    for name in ("модель.txt", "模型 1.json", "naïve🙂.md"):
        (model / name).write_text("{}")
    mdp.succeed(2, "run", "--model", model, "--tokens", tokens, *CHOICE, "--format", "both", "--out", tmp_path / "ы")
    for name in ("модель.txt", "模型 1.json", "naïve🙂.md"):
        assert name in mdp.read_json(tmp_path / "ы" / "hf" / "moe-dist-prune.json")["files"]
        (tmp_path / "ы" / "hf" / name).write_text("[]")
        mdp.refuse(1, BAD_INPUT, name, "verify", tmp_path / "ы" / "hf")
        (tmp_path / "ы" / "hf" / name).write_text("{}")


@pytest.mark.parametrize("name, shown", [(b"caf\xe9", r"caf\xe9"), (b"a\x1bb", r"a\u001bb")])
def test_a_category_or_task_with_such_a_name_is_refused(tokens, tmp_path, name, shown):
    with h5py.File(tokens, "r+") as file:
        group = h5py.Group(h5py.h5g.create(file.id, name))
        group["input_ids"] = np.array([1, 2, 3], np.uint32)
        group["offsets"] = np.array([0, 3])
    refuse(2, shown, "eval", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--out", tmp_path / "eval.json")
    refuse(1, shown, "inspect", tokens)
    tasks = mdp.write_tasks(tmp_path / "tasks.h5", {"one": mdp.TWO_ITEMS})
    with h5py.File(tasks, "r+") as file:
        file.id.links.move(b"one", file.id, name)
    plain = mdp.golden_tokens("mixtral", tmp_path / "plain.h5")
    refuse(1, shown, "eval", "--model", mdp.GOLDEN / "mixtral", "--tokens", plain, "--tasks", tasks, "--out", tmp_path / "eval.json")


def test_a_category_of_statistics_with_such_a_name_is_refused(tokens, tmp_path):
    stats = tmp_path / "stats.h5"
    mdp.succeed(1, "observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--out", stats)
    with h5py.File(stats, "r+") as file:
        del file["seal"]
        file["categories"][...] = np.array([b"gol\xe9en"], file["categories"].dtype)
    refuse(1, r"gol\xe9en", "plan", "--stats", stats, *CHOICE, "--out", tmp_path / "plan.json")


def rename_tensor(path, old, new):
    content = path.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    text = content[8:8 + n].decode().replace(json.dumps(old), json.dumps(new)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n:])


def test_a_tensor_with_such_a_name_is_refused(model, tokens, tmp_path):
    rename_tensor(model / "model.safetensors", "model.norm.weight", "model.norm\x1b[31m.weight")
    refuse(3, r"model.norm\u001b[31m.weight", "run", "--model", model, "--tokens", tokens, *CHOICE, "--out", tmp_path / "out")


def test_such_names_in_a_model_h5_are_refused(model, tokens, tmp_path):
    (model / "vocab.txt").write_text("a")
    mdp.succeed(1, "run", "--model", model, "--tokens", tokens, *CHOICE, "--out", tmp_path / "out")
    native, whole = tmp_path / "out" / "model.h5", (tmp_path / "out" / "model.h5").read_bytes()
    for words in (["export", "--model", native, "--out", tmp_path / "hf"], ["verify", native]):
        with h5py.File(native, "r+") as file:
            files = file["files"]
            files.id.links.move(b"vocab.txt", files.id, b"vocab\xff.txt")
        refuse(1, r"vocab\xff.txt", *words)
        native.write_bytes(whole)
        with h5py.File(native, "r+") as file:
            file["model/norm/weight"].attrs["hf_name"] = np.bytes_(b"model.norm\x07.weight")
        refuse(1, r"model.norm\u0007.weight", *words)
        native.write_bytes(whole)


def test_words_of_the_command_line_are_shown_and_refused(tmp_path):
    refuse(1, r"'a\u001bb' on the command line", "inspect", "a\x1bb", code=USAGE)
    refuse(1, r"'out\u000a' on the command line", "observe", "--out", "out\n", code=USAGE)
    refuse(1, r"'--mo\u009bdel'", "observe", "--mo\x9bdel", "x", code=USAGE)
    (tmp_path / "c.json").write_text(json.dumps({"options": {"out": "a\x1bb"}}))
    refuse(1, r"'a\u001bb'", "observe", "--config", tmp_path / "c.json", code=USAGE)


def test_texts_of_files_steer_no_terminal(model, tokens, tmp_path):
    """Neither in sentences nor in tables, nor in JSON, which stays JSON."""
    evil = "\x1b]0;owned\x07\x9b2J\u202e\nline"
    plan = tmp_path / "plan.json"
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep", 4, "--out", plan)
    content = mdp.read_json(plan)
    content["recipe"]["note"] = evil
    plan.write_text(json.dumps(content))
    table = mdp.succeed(1, "inspect", plan).stdout
    assert not CONTROL.search(table) and "owned" in table
    text = mdp.succeed(1, "inspect", plan, "--json").stdout
    assert not CONTROL.search(text) and json.loads(text)["recipe"]["note"] == evil
    config = mdp.read_json(model / "config.json")
    (model / "config.json").write_text(json.dumps({**config, "hidden_act": evil}))
    refuse(1, r"\u001b]0;owned\u0007\u009b2J\u202e\u000aline", "eval", "--model", model, "--tokens", tokens, "--out", tmp_path / "eval.json")


# ---- lines to paste

def shell(line, **how):
    return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}, **how)


@pytest.mark.parametrize("name", ["it's $HOME `x` \"y\" \\n", "*~&;|<>(){}[]#!?", "n" * 200])
def test_the_line_that_goes_on_can_be_pasted(model, tokens, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    plan = folder / "p lan.json"
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep", 4, "--out", plan)
    deep = folder
    while len(str(deep)) < 1200 and name.startswith("n"):
        deep = deep / name
        deep.mkdir()
    words = ["apply", "--model", model, "--plan", plan, "--format", "both", "--out", deep / "out"]
    stopped = mdp.run(1, *words, "--stop-at", 1)
    assert stopped.codes == [STOPPED], str(stopped)
    line = re.search(r"^to go on, on any number of ranks: (.*)$", stopped.stderr, re.M).group(1)
    assert shlex.split(line) == [str(mdp.PROGRAM), *map(str, words), "--stop-at", "1", "--resume"]
    result = shell(line.replace("--stop-at 1 ", ""))
    assert result.returncode == 0 and (deep / "out" / "hf" / "config.json").exists(), result.stderr


@pytest.mark.parametrize("out", ["it's a \"result\" \\", "plain/"])
def test_the_last_line_of_a_run_can_be_pasted(model, tokens, tmp_path, out):
    def last(form):
        shutil.rmtree(tmp_path / out, ignore_errors=True)
        table = mdp.succeed(1, "run", "--model", model, "--tokens", tokens, *CHOICE, "--format", form, "--out", f"{tmp_path}/{out}").stdout
        return re.search(r"^next     (.*?)     \(", table, re.M).group(1)
    call = re.fullmatch(r"AutoModelForCausalLM.from_pretrained\((.*)\)", last("safetensors")).group(1)
    assert os.path.samefile(ast.literal_eval(call), tmp_path / out / "hf")
    line = last("hdf5")
    assert shlex.split(line)[-1] == str(tmp_path / out).rstrip("/") + "-hf"
    result = shell(line.replace("moe-dist-prune", shlex.quote(str(mdp.PROGRAM)), 1))
    assert result.returncode == 0 and os.path.isdir(str(tmp_path / out).rstrip("/") + "-hf"), result.stderr
