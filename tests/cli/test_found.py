"""A file or folder that is not what was asked for is called by what it is, with what to do."""
import gzip
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mdp

BAD_INPUT = 65
MODEL = mdp.GOLDEN / "mixtral"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"


@pytest.fixture
def tokens(tmp_path):
    return mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")


@pytest.fixture
def model(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.h5", "*.txt"))
    return tmp_path / "model"


def refuse(sentence, model, tokens, tmp_path, command="eval", *words):
    mdp.refuse(1, BAD_INPUT, sentence, command, "--model", model, "--tokens", tokens, "--out", tmp_path / "out", *words)


# ---- folders

def tensors(path):
    save_file({"a": torch.zeros(4)}, path)


def text(path):
    path.write_text("{}")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("found, make, sentence", [
    ("pytorch_model.bin", lambda path: torch.save({"a": torch.zeros(4)}, path), "older form of PyTorch; save them as safetensors"),
    ("pytorch_model-00001-of-00002.bin", text, "older form of PyTorch"),
    ("adapter_model.safetensors", tensors, "a LoRA adapter alone; merge it into its model first"),
    ("adapter_config.json", text, "a LoRA adapter alone"),
    ("consolidated.safetensors", tensors, "form of the model's authors; convert them"),
    ("consolidated.00.pth", text, "form of the model's authors"),
    ("params.json", text, "form of the model's authors, not of Hugging Face"),
    ("snapshots", folder, "a model's folder in the cache of Hugging Face; name a folder in its snapshots"),
    ("models--a--b", folder, r"the cache of Hugging Face; name a folder models--\.\.\./snapshots"),
    ("model-q4.gguf", text, r"form of llama\.cpp"),
    ("tf_model.h5", text, "weights of TensorFlow"),
    ("model-00001-of-00002.safetensors", tensors, r"shards without their index; download model\.safetensors\.index\.json too"),
])
def test_folders_without_a_model_are_called_by_what_is_in_them(found, make, sentence, tokens, tmp_path):
    (tmp_path / "other").mkdir()
    make(tmp_path / "other" / found)
    refuse(rf"other: there is {found}, and no model\.safetensors here: .*{sentence}", tmp_path / "other", tokens, tmp_path)


@pytest.mark.parametrize("many_ranks", [1, 2])
def test_a_file_beside_an_index_is_said_to_be_read_alone(many_ranks, model, tokens, tmp_path):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: "model-00001-of-00001.safetensors" for name in weights}}))
    result = mdp.succeed(many_ranks, "eval", "--model", model, "--tokens", tokens, "--out", tmp_path / "e.json")
    assert "warning: " in result.stderr and "holds both model.safetensors and model.safetensors.index.json; the former alone is read" in result.stderr
    (model / "model.safetensors.index.json").unlink()
    assert "holds both" not in mdp.succeed(1, "eval", "--model", model, "--tokens", tokens, "--out", tmp_path / "e2.json").stderr


# ---- files

@pytest.mark.parametrize("content, sentence", [
    (POINTER, r"found a Git LFS pointer, .* not downloaded \(git lfs pull\)"),
    (PAGE, "found a web page, which a server gave instead"),
    ("<?xml version='1.0'?><Error/>", "found an XML text"),
])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_what_stands_for_a_file_that_was_not_downloaded_is_named(name, content, sentence, model, tokens, tmp_path):
    if name.endswith("index.json"):
        (model / "model.safetensors").unlink()
    (model / name).write_text(content)
    refuse(rf"/{name}: expected a (safetensors file|JSON text), {sentence}", model, tokens, tmp_path)


@pytest.mark.parametrize("content, sentence", [
    (POINTER.encode(), "a Git LFS pointer"), (b"GGUF\3\0\0\0" + bytes(64), r"a GGUF file of llama\.cpp"), (b"PK\3\4" + bytes(64), "a zip archive"),
    (b"\x80\2}q\0.", "a pickle"), (gzip.compress(b"x" * 100, mtime=0), "a file packed by gzip"), (b'{"a": 1}', "a JSON text"), (b"", "an empty file"),
    ((8).to_bytes(8, "little") + b'{"a":1} ', "a safetensors file"),
])
def test_what_is_no_hdf5_file_is_called_by_what_it_is(content, sentence, model, tokens, tmp_path):
    (tmp_path / "other").write_bytes(content)
    refuse(rf"other: this is no HDF5 file; expected a tokens file.*, found {sentence}", model, tmp_path / "other", tmp_path)
    refuse(rf"other: this is no HDF5 file; expected a tasks file.*, found {sentence}", model, tokens, tmp_path, "eval", "--tasks", tmp_path / "other")
    refuse(rf"other: this is no HDF5 file; expected a Hugging Face folder or a model\.h5.*, found {sentence}", tmp_path / "other", tokens, tmp_path)
    mdp.refuse(1, BAD_INPUT, rf"other: this is no HDF5 file; expected .*, found {sentence}", "plan", "--stats", tmp_path / "other", "--method", "reap", "--keep", 4,
               "--out", tmp_path / "p.json")


def test_files_that_cannot_be_told_keep_the_sentence_of_their_reader(model, tokens, tmp_path):
    np.save(tmp_path / "ids.npy", np.zeros(4))
    (tmp_path / "noise").write_bytes(b"\1\2\3\4" * 100)
    refuse(r"noise: this is no HDF5 file; expected a tokens file as tools/tokenize writes it\.$", model, tmp_path / "noise", tmp_path)
    refuse(r"ids\.npy: this is no HDF5 file.*found a NumPy array", model, tmp_path / "ids.npy", tmp_path)
    shutil.copy(tmp_path / "noise", model / "model.safetensors")
    refuse(r"model\.safetensors: the header length at byte 0 is", model, tokens, tmp_path)


# ---- numbers that JSON does not have

@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_of_python_that_are_none_of_json_are_named(value, model, tokens, tmp_path):
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("{", '{\n "router_aux_loss_coef": ' + value + ",", 1))
    refuse(rf"config\.json: not valid JSON at line 2, .*: {value.strip('-')} is written there, as Python does", model, tokens, tmp_path)
