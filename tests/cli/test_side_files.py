"""What lies beside the weights: copied, or named in a line, or refused, by one rule; and what speaks of experts by number follows."""
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

import mdp

BAD_INPUT = 65
CHOICE = ["--method", "reap", "--keep", 4]


def run(model, tokens, out, *more):
    return ["run", "--model", model, "--tokens", tokens, *CHOICE, "--format", "both", "--out", out, *more]


COPIED = ["tokenizer.json", "tokenizer.model.v3", "vocab.txt", "merges.txt", "chat_template.jinja", "modeling_x.py", "README.md", "LICENSE", "x.tiktoken",
          "generation_config.json", "preprocessor_config.json", "events.out.1"]
LEFT_OUT = [".gitattributes", "consolidated.00.pth", "model-q4.gguf", "model.h5", "model.safetensors.index.json", "optimizer.pt", "other.safetensors",
            "pytorch_model.bin", "pytorch_model.bin.index.json", "tokenizer.json.incomplete", "weights.tar.gz"]


def test_each_file_is_copied_or_named(model, tokens, tmp_path):
    for name in COPIED + LEFT_OUT:
        (model / name).write_text(name)
    (model / "runs").mkdir()
    (model / "runs" / "log").write_text("")
    said = mdp.succeed(2, *run(model, tokens, tmp_path / "out")).stderr
    ours = {"config.json", "model.safetensors", "moe-dist-prune.json"}
    assert {p.name for p in (tmp_path / "out" / "hf").iterdir()} == ours | set(COPIED)
    assert all((tmp_path / "out" / "hf" / name).read_text() == name for name in COPIED)
    line = re.search(r"^.*/model: not for the result: (.*) and (\d+) more$", said, re.M)
    named = sorted([*LEFT_OUT, "runs/"])
    assert line.group(1).split(", ") == named[:8] and int(line.group(2)) == len(named) - 8
    mdp.succeed(2, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(tmp_path / "out" / "hf")


READS = """
import os, sys
folder, seen = os.path.realpath(sys.argv[1]), set()
def note(event, words):
    if event == "open" and isinstance(words[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(words[0]))
        if os.path.dirname(path) == folder: seen.add(os.path.basename(path))
sys.addaudithook(note)
import transformers
transformers.AutoTokenizer.from_pretrained(folder)
transformers.AutoModelForCausalLM.from_pretrained(folder)
print("\\n".join(sorted(seen)))
"""


def test_what_transformers_reads_is_copied(tokens, tmp_path):
    """Of a folder that transformers has written, by what it opens there."""
    import transformers
    model = tmp_path / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(mdp.DEMO)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(model)
    transformers.GenerationConfig().save_pretrained(model)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(mdp.GOLDEN / "mixtral" / name, model / name)
    mdp.succeed(1, *run(model, tokens, tmp_path / "out"))

    def read(folder):
        result = subprocess.run([sys.executable, "-c", READS, folder], capture_output=True, text=True, check=False, timeout=300,
                                env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert result.returncode == 0, result.stderr
        return set(result.stdout.split())
    before, after = read(model), read(tmp_path / "out" / "hf")
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"} <= before
    assert before <= after


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_to_be_merged_first(model, tokens, tmp_path, name, ranks):
    (model / name).write_text("{}")
    mdp.refuse(ranks, BAD_INPUT, rf"model: there is an adapter \(LoRA: {name}\) beside the weights, .* merge it", *run(model, tokens, tmp_path / "out"))
    mdp.refuse(ranks, BAD_INPUT, "merge it into the weights first", "eval", "--model", model, "--tokens", tokens, "--out", tmp_path / "eval.json")
    assert not (tmp_path / "out").exists()


def test_what_should_be_copied_and_cannot_is_refused(model, tokens, tmp_path):
    bad = model / "tokenizer.json"
    for make, sentence in ((lambda: bad.symlink_to("../../blobs/gone"), "tokenizer.json: is a link to a file that is not there"),
                           (lambda: bad.symlink_to(bad.name), "tokenizer.json: is a link to a file that is not there"),
                           (lambda: os.mkfifo(bad), "tokenizer.json: is no regular file")):
        make()
        mdp.refuse(2, BAD_INPUT, sentence, *run(model, tokens, tmp_path / "out", "--dry-run"))
        bad.unlink()
    (model / "weights.gguf").symlink_to("gone")
    assert "not for the result: weights.gguf" in mdp.succeed(2, *run(model, tokens, tmp_path / "out", "--dry-run")).stderr


def test_a_file_that_grows_hinders_nobody_who_does_not_copy_it(model, tokens, tmp_path):
    """All files of a model are looked at again before a resume point is saved."""
    log, ends = model / "notes.txt", threading.Event()

    def grow():
        while not ends.is_set():
            with open(log, "a", encoding="utf-8") as file:
                file.write("more\n")
            time.sleep(0.001)
    writer = threading.Thread(target=grow)
    writer.start()
    try:
        mdp.succeed(2, "observe", "--model", model, "--tokens", tokens, "--checkpoint-every", 0, "--out", tmp_path / "stats.h5")
    finally:
        ends.set()
        writer.join()


def test_a_file_that_grows_is_not_cut(model, tokens, tmp_path):
    """Between its listing, after which the folder for results is made, and its copying."""
    log, ends = model / "notes.txt", threading.Event()
    log.write_text("begin\n")

    def grow():
        while not (tmp_path / "out" / "run.log").exists() and not ends.is_set():
            time.sleep(0.0005)
        with open(log, "a", encoding="utf-8") as file:
            file.write("more\n")
    writer = threading.Thread(target=grow)
    writer.start()
    try:
        mdp.refuse(2, BAD_INPUT, r"notes\.txt: the file has 11 bytes, but had 6 when the run began", *run(model, tokens, tmp_path / "out"))
    finally:
        ends.set()
        writer.join()
    assert not (tmp_path / "out" / "hf").exists() and (tmp_path / "out" / "stats.h5").exists()


# ---- experts that are named by number

FP8 = mdp.GOLDEN / "deepseek_v3_fp8"


@pytest.fixture
def fp8(tmp_path):
    """A checkpoint with FP8 weights whose quantization_config may name modules, and a plan that keeps some of its 6 experts a layer."""
    folder = tmp_path / "fp8"
    shutil.copytree(FP8, folder, ignore=shutil.ignore_patterns("*.h5"))
    def write(modules, **more):
        config = mdp.read_json(FP8 / "config.json")
        config["quantization_config"]["modules_to_not_convert"] = modules
        (folder / "config.json").write_text(json.dumps({**config, **more}, indent=2))
        mdp.succeed(1, "plan", "--model", folder, "--method", "random", "--seed", 5, "--keep", 4, "--out", tmp_path / "plan.json")
        return folder, tmp_path / "plan.json"
    return write


def named(layers, experts):
    return [f"model.layers.{layer}.mlp.experts.{e}.{part}" for layer in layers for e in experts for part in ("down_proj", "up_proj")]


def test_names_of_experts_in_config_follow_their_numbers(fp8, tmp_path):
    modules = ["lm_head", *named([1, 2], range(6)), "model.layers.1.mlp.gate", "model.layers.2.mlp.experts.3", "model.layers.2.mlp.shared_experts.up_proj"]
    model, plan = fp8(modules)
    mdp.succeed(2, "apply", "--model", model, "--plan", plan, "--format", "both", "--out", tmp_path / "out")
    kept = {layer["layer"]: [e["from"][0] for e in layer["experts"]] for layer in mdp.read_json(plan)["layers"]}
    assert any(list(range(4)) != experts for experts in kept.values())
    expected = []
    for name in modules:
        found = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)(.*)", name)
        if not found:
            expected.append(name)
        elif int(found[2]) in kept[int(found[1])]:
            expected.append(f"model.layers.{found[1]}.mlp.experts.{kept[int(found[1])].index(int(found[2]))}{found[3]}")
    after = mdp.read_json(tmp_path / "out" / "hf" / "config.json")
    assert after["quantization_config"]["modules_to_not_convert"] == expected
    before = mdp.read_json(model / "config.json")
    before["quantization_config"]["modules_to_not_convert"] = expected
    assert after == {**before, "n_routed_experts": 4}
    mdp.succeed(1, "verify", tmp_path / "out" / "hf")
    mdp.succeed(1, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(tmp_path / "out" / "hf")


def test_names_stay_where_experts_keep_their_numbers(fp8, tmp_path):
    model, plan = fp8(["re:.*experts[.]3[.].*", *named([1], [0, 5])])
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep", 4, "--pruned-route", "zero", "--out", plan, "--overwrite")
    mdp.succeed(2, "apply", "--model", model, "--plan", plan, "--format", "safetensors", "--out", tmp_path / "zero")
    mdp.succeed(2, "export", "--model", model, "--out", tmp_path / "exported")
    for result in (tmp_path / "zero" / "hf", tmp_path / "exported"):
        assert (result / "config.json").read_bytes() == (model / "config.json").read_bytes()


@pytest.mark.parametrize("modules, more, key", [
    (["lm_head", "re:.*experts\\.3\\..*"], {}, r"quantization_config\.modules_to_not_convert"),
    (["language_model.layers.1.mlp.experts.3.up_proj"], {}, r"quantization_config\.modules_to_not_convert"),
    ([], {"frozen": {"experts.[0-3]": True}}, r"frozen\.experts\.\[0-3\]")])
def test_names_that_cannot_follow_are_refused_before_anything_runs(fp8, tmp_path, modules, more, key):
    model, plan = fp8(modules, **more)
    tokens = mdp.golden_tokens("deepseek_v3_fp8", tmp_path / "tokens.h5")
    words = ["run", "--model", model, "--tokens", tokens, *CHOICE, "--out", tmp_path / "out"]
    for command in (words, [*words, "--dry-run"], ["apply", "--model", model, "--plan", plan, "--out", tmp_path / "out"]):
        said = mdp.refuse(2, BAD_INPUT, rf"config\.json: '{key}' names experts by number", *command).stderr
        assert "layer 1/" not in said and not (tmp_path / "out").exists()
    mdp.succeed(1, *words, "--pruned-route", "zero")


def test_a_side_file_that_names_experts_is_refused(fp8, tmp_path):
    model, plan = fp8([])
    side = model / "hf_quant_config.json"
    side.write_text(json.dumps({"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.1.mlp.experts.3.up_proj"]}}))
    words = ["apply", "--model", model, "--plan", plan, "--out", tmp_path / "out"]
    mdp.refuse(2, BAD_INPUT, r"'exclude_modules' in hf_quant_config\.json names experts by number \('model\.layers\.1\.mlp\.experts\.3\.up_proj'\)", *words)
    side.write_text(json.dumps({"quantization": {"exclude_modules": ["lm_head", "model.layers.1.mlp.gate", "*experts*"]}}))
    mdp.succeed(2, *words)
