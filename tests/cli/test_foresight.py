"""What can be refused of a run is refused before anything of it runs, in --dry-run too; what fails late says what it leaves."""
import json
import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mdp

MODEL = mdp.GOLDEN / "qwen3_moe"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    choose = np.random.default_rng(3)
    return mdp.write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.h5", {"text": [choose.integers(0, 512, n) for n in (40, 23, 17)]})


def copy(folder, change=lambda tensors: None, source=MODEL):
    """A checkpoint in one file whose tensors {name: tensor} were changed."""
    folder.mkdir()
    tensors = {name: values for file in sorted(source.glob("*.safetensors")) for name, values in load_file(file).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", folder / "config.json")
    return folder


def refused_early(ranks, code, sentence, tmp_path, *words):
    """Refused as a dry run and as a run, which has neither observed anything nor left anything."""
    words = ["run", *words, "--out", tmp_path / "out"]
    if "--method" not in words:
        words += ["--method", "reap"]
    if not {"--keep", "--keep-file"} & set(map(str, words)):
        words += ["--keep", 8]
    for more in (["--dry-run"], []):
        result = mdp.refuse(ranks, code, sentence, *words, *more)
        assert "observe" not in result.stderr, str(result)
        assert not (tmp_path / "out").exists()
    return result


# ---- results that cannot be written

def halve_expert_3(tensors):
    for name in tensors:
        if ".layers.1." in name and ".experts.3." in name:
            tensors[name] = tensors[name].half()


@pytest.mark.parametrize("change, sentence", [
    (halve_expert_3, r"layer 1: 'model\.layers\.1\.mlp\.experts\.3\..*' is stored otherwise than that of expert 0 \(F16, F32\).*safetensors"),
    (lambda tensors: tensors.update({"a/b": torch.ones(2)}), r'tensor name "a/b" has an empty part or a "/".*--format safetensors'),
    (lambda tensors: tensors.update({"a..b": torch.ones(2)}), r'tensor name "a\.\.b" has an empty part'),
    (lambda tensors: tensors.update({"lm_head.weight.meta": torch.ones(2)}),
     r"tensors lm_head\.weight and lm_head\.weight\.meta would be datasets at the same place .*or one below the other .*safetensors"),
    (lambda tensors: tensors.update({"lm_head-x": torch.ones(2), "lm_head": torch.ones(2)}), r"tensors lm_head and lm_head\.weight would be"),
    *((lambda tensors, name=name: tensors.update({name: torch.ones(2)}), rf"tensor {re.escape(name)} would be where model\.h5 keeps other things")
      for name in ("config", "files.a.b")),
])
def test_what_model_h5_cannot_hold_is_refused_before_anything_runs(change, sentence, tokens, tmp_path):
    model = copy(tmp_path / "model", change)
    refused_early(2, 65, sentence, tmp_path, "--model", model, "--tokens", tokens)
    mdp.succeed(2, "run", "--model", model, "--tokens", tokens, "--method", "reap", "--keep", 8, "--format", "safetensors", "--out", tmp_path / "hf")


def test_names_that_only_begin_alike_are_written(tokens, tmp_path):
    """Below a path is what follows it and a slash; other characters come before a slash in a sorted list."""
    model = copy(tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(2) for name in ("lm_head-weight", "lm_head!", "configs", "filesx.y")}))
    mdp.succeed(1, "run", "--model", model, "--tokens", tokens, "--method", "reap", "--keep", 8, "--format", "both", "--out", tmp_path / "out")
    mdp.succeed(1, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "hf")
    assert mdp.digests(tmp_path / "hf") == mdp.digests(tmp_path / "out" / "hf")


@pytest.mark.parametrize("how", ["run", "apply", "export"])
def test_side_files_that_cannot_be_read_are_named_before_anything_runs(how, tokens, tmp_path):
    """Root reads everything, and has to become somebody else."""
    somebody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    if somebody and not shutil.which("setpriv"):
        pytest.skip("root without setpriv cannot become somebody else")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    model = copy(open_to_all / "model")
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep", 8, "--out", open_to_all / "plan.json")
    shutil.copy(tokens, open_to_all / "tokens.h5")
    (model / "tokenizer.json").write_text("{}")
    above = [path for path in tmp_path.parents if path.name.startswith(("pytest-", "popen-"))]
    for path in [*above, tmp_path, open_to_all, model, *model.iterdir()]:
        path.chmod(0o755)
    open_to_all.chmod(0o777)
    (model / "tokenizer.json").chmod(0)
    program = shutil.copy(mdp.PROGRAM, open_to_all / "program")
    words = {"run": ["--tokens", open_to_all / "tokens.h5", "--method", "reap", "--keep", 8], "export": [],
             "apply": ["--plan", open_to_all / "plan.json"]}[how]
    for more in (["--dry-run"], []):
        told = subprocess.run([*map(str, [*somebody, program, how, "--model", model, *words, "--out", open_to_all / "out", *more])], capture_output=True, text=True, timeout=60, cwd=open_to_all,
                              env={**os.environ, "HOME": str(open_to_all), "TMPDIR": str(open_to_all)})
        assert told.returncode == 74 and re.search(r"tokenizer\.json: cannot open for reading: Permission denied", told.stderr), told
        assert "observe" not in told.stderr and not (open_to_all / "out").exists()


def test_routers_that_did_not_change_are_known_before_anything_runs(tokens, tmp_path):
    refused_early(3, 65, r"no router row of .* differs from", tmp_path, "--model", copy(tmp_path / "tuned"), "--pretrained",
                  copy(tmp_path / "before"), "--tokens", tokens, "--method", "router-norm-change")


@pytest.mark.parametrize("how", ["layer-sum", "layer-max"])
def test_scores_that_cannot_be_scaled_are_known_before_anything_runs(how, tokens, tmp_path):
    refused_early(2, 2, f"--normalise {how} cannot scale the scores of method 'aimer', which are negative", tmp_path, "--model", MODEL, "--tokens",
                  tokens, "--method", "aimer", "--budget", "global", "--normalise", how)


@pytest.mark.parametrize("budget", [["--budget", "global", "--keep", 8], ["--budget", "trapezoid", "--keep", 12], ["--keep-file", "keep.json"]])
def test_padding_is_refused_before_anything_runs(budget, tokens, tmp_path):
    (tmp_path / "keep.json").write_text('{"0": 8, "1": 10, "2": 8}')
    budget = [tmp_path / word if word == "keep.json" else word for word in budget]
    refused_early(2, 2, r"--non-uniform pad: model_type 'qwen3_moe' chooses experts by a softmax", tmp_path, "--model", MODEL, "--tokens", tokens,
                  "--format", "safetensors", "--non-uniform", "pad", *budget)
    if "global" not in budget:  # which may lead to equal numbers
        refused_early(1, 2, r"layers differ: the plan keeps \d+ experts in layer 0 and \d+ in layer \d", tmp_path, "--model", MODEL,
                      "--tokens", tokens, "--format", "both", *budget)


# ---- places that cannot be written to

@pytest.mark.parametrize("command, more", [("observe", []), ("eval", []), ("eval", ["--dump"]), ("plan", [])])
def test_a_file_cannot_have_the_name_of_a_folder(command, more, tokens, tmp_path):
    words = [command, "--model", MODEL, "--overwrite"]
    words += ["--method", "random", "--keep", 8] if command == "plan" else ["--tokens", tokens]
    (tmp_path / "folder").mkdir()
    for name in (f"{tmp_path}/made/", f"{tmp_path}/folder", f"{tmp_path}/folder//"):
        out = ["--dump", name, "--out", tmp_path / "x.json"] if more else ["--out", name]
        for dry in [[], ["--dry-run"]][:1 if command == "plan" else 2]:
            result = mdp.refuse(2, 73, f"{name} names a folder, the output of {command} is a file", *words, *out, *dry)
            assert "layer" not in result.stderr, str(result)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command, more", [("observe", []), ("run", ["--method", "reap", "--keep", 8, "--format", "both"]), ("export", [])])
def test_names_leave_room_for_what_lies_beside_them(command, more, tokens, tmp_path):
    words = [command, "--model", MODEL, *more, *([] if command == "export" else ["--tokens", tokens])]
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    for n in (most - 31, most + 1):
        for dry in (["--dry-run"], []):
            mdp.refuse(2, 73, rf"has a name of {n} bytes .* at most {most - 32} ", *words, "--out", tmp_path / ("x" * n), *dry)
    assert not list(tmp_path.iterdir())
    mdp.succeed(2, *words, "--out", tmp_path / ("x" * (most - 32)), "--profile")


# ---- numbers

@pytest.mark.parametrize("batch", [10**12, 2**63 - 1])
def test_batches_of_more_tokens_than_there_are_are_the_whole_text(batch, tokens, tmp_path):
    """More would be asked for on the disk: two resume points of so many tokens."""
    words = ["observe", "--model", MODEL, "--tokens", tokens]
    plain, beyond = (json.loads(mdp.succeed(1, *words, *more, "--dry-run", "--json", "--gflops-per-rank", 1, "--out", tmp_path / "s.h5").stdout)
                     for more in ([], ["--batch-tokens", batch]))
    same = ("batch_tokens", "n_batches", "bytes_read", "flop")
    assert {key: plain[key] for key in same} == {key: beyond[key] for key in same} and plain["batch_tokens"] == 80
    mdp.succeed(2, *words, "--batch-tokens", batch, "--out", tmp_path / "s.h5")


@pytest.mark.parametrize("command, more", [("run", []), ("eval", ["--batch-tokens", 1 << 20]), ("observe", []), ("apply", [])])
def test_the_memory_that_is_advised_suffices_for_all_of_a_command(command, more, tmp_path):
    """What evaluation and writing need counts, not only the first pass."""
    tool = ["--hidden", 256, "--intermediate", 512, "--layers", 2, "--experts", 8, "--vocab", 8192]
    mdp.tool("make-shape-model", *tool, "--out", tmp_path / "model")
    choose = np.random.default_rng(8)
    text, longer = (mdp.write_tokens(tmp_path / name, {"a": [choose.integers(0, 256, 512) for _ in range(n)]})
                    for name, n in (("t.h5", 4), ("e.h5", 24)))
    words = {"run": ["--tokens", text, "--eval-tokens", longer, "--method", "reap", "--keep", 4, "--format", "both"],
             "eval": ["--tokens", longer], "observe": ["--tokens", text], "apply": ["--plan", tmp_path / "plan.json"]}[command]
    mdp.succeed(1, "plan", "--model", tmp_path / "model", "--method", "random", "--keep", 4, "--out", tmp_path / "plan.json")
    words = [command, "--model", tmp_path / "model", *words, *more, "--out", tmp_path / "out"]
    said = mdp.refuse(1, 2, r"is too little: .*Give --memory \d+", *words, "--memory", "1MB").errors()[0]
    enough = int(re.search(r"Give --memory (\d+)", said)[1])
    mdp.succeed(1, *words, "--memory", enough)
    mdp.refuse(1, 2, "is too little", *words, "--memory", int(0.8 * enough), "--overwrite", "--dry-run")  # it is not much more than that


def test_a_dump_that_is_too_large_is_known_to_a_dry_run(tmp_path):
    text = mdp.write_tokens(tmp_path / "t.h5", {"a": [np.zeros(512, int)] * 900})
    for more in (["--dry-run"], []):
        result = mdp.refuse(1, 2, r"--dump would write 1\.\d GB, and is for at most 1 GiB", "eval", "--model", MODEL, "--tokens", text, "--dump",
                            tmp_path / "d.h5", "--out", tmp_path / "e.json", *more)
        assert "layer" not in result.stderr


def test_evaluation_text_that_is_too_long_is_known_before_anything_is_observed(tokens, tmp_path):
    """Beyond what its indexer was asked to see."""
    from families import SIZES, save_random
    model = save_random("deepseek_v32", dict(**{**SIZES, "num_key_value_heads": 4}, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
                                             n_group=1, topk_group=1, q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
                                             v_head_dim=8, first_k_dense_replace=1, index_topk=40, index_n_heads=2, index_head_dim=16),
                        tmp_path / "model")
    choose = np.random.default_rng(3)
    text, longer = (mdp.write_tokens(tmp_path / f"{n}.h5", {"a": [choose.integers(0, 96, n)]}) for n in (40, 41))
    refused_early(2, 65, r"41\.h5: a sequence has 41 tokens; beyond 40", tmp_path, "--model", model, "--tokens", text, "--eval-tokens", longer, "--keep", 4)


# ---- what fails late all the same

def told_command(told, pattern):
    """The words of a command line that was printed for people to paste."""
    line = re.search(pattern, told, re.M)
    assert line, told
    return [word for word in shlex.split(line[1]) if word != "moe-dist-prune"]


def test_a_plan_that_cannot_be_written_as_asked_says_what_it_leaves_and_how_to_go_on(tmp_path):
    """The global budget compares experts of all layers, so only the plan knows how many stay where."""
    out = tmp_path / "with space"
    result = mdp.refuse(2, 2, "layers differ", "run", "--model", mdp.DEMO, "--tokens", mdp.golden_tokens("mixtral", tmp_path / "t.h5"), "--method",
                        "weighted-ean", "--budget", "global", "--keep", 6, "--format", "both", "--out", out)
    assert result.stderr.index("layers differ") < result.stderr.index("kept: "), str(result)
    mdp.succeed(2, *told_command(result.stderr, r"^kept: .*/stats\.h5 and plan\.json; without observing again: (.*)"))
    assert (tmp_path / "with space-2" / "model.h5").exists()


@pytest.mark.parametrize("more", [["--refit", "joint"], ["--merge", "frequency"]])
def test_a_plan_that_cannot_be_written_as_asked_is_not_fitted_or_merged_first(more, tmp_path):
    result = mdp.refuse(2, 2, "layers differ", "run", "--model", mdp.DEMO, "--tokens", mdp.golden_tokens("mixtral", tmp_path / "t.h5"), "--method",
                        "weighted-ean", "--budget", "global", "--keep", 6, *more, "--format", "both", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "plan.h5").exists() and not re.search(r"^(merge|refit) +layer", result.stderr, re.M), str(result)
    mdp.succeed(2, *told_command(result.stderr, r"^kept: .*/stats\.h5; without observing again: (.*)"))


@pytest.mark.alone  # the run must not end before the folder is there
@pytest.mark.parametrize("every", ["0", "1h"])
def test_a_run_that_cannot_write_says_what_it_leaves_and_how_to_go_on(every, tmp_path):
    text = mdp.write_tokens(tmp_path / "t.h5", {"a": [[(7 * i + j) % 100 for j in range(64)] for i in range(60)]})
    words = ["run", "--model", mdp.DEMO, "--tokens", text, "--method", "reap", "--keep", 6, "--format", "safetensors", "--checkpoint-every", every]
    process = subprocess.Popen([mdp.PROGRAM, *map(str, words), "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    told = ""
    for line in process.stderr:
        told += line
        if "layer 1/" in line:
            (tmp_path / "out" / "hf").mkdir()
            (tmp_path / "out" / "hf" / "mine").write_text("mine")
    assert process.wait() == 73 and re.search(r"^moe-dist-prune: .*out/hf exists already", told, re.M), told
    assert (tmp_path / "out" / "hf" / "mine").read_text() == "mine"
    mdp.succeed(1, *told_command(told, r"^kept: .* without observing again: (.*)"))
    shutil.rmtree(tmp_path / "out" / "hf")
    if every == "0":
        mdp.succeed(2, *told_command(told, r"^to go on when the cause is gone, on any number of ranks: \S+ (.*)"))
        assert mdp.digests(tmp_path / "out" / "hf") == mdp.digests(tmp_path / "out-2" / "hf")
    else:
        assert "to go on" not in told
