"""tools/tokenize: what kind an input is, and one sentence with file and line for each that cannot be read.

The tool runs in this process: an exception that it does not make a sentence of fails the test as a traceback.
"""
import bz2
import gzip
import importlib.machinery
import importlib.util
import json
import lzma
import os
import re
import stat
import sys

import h5py
import numpy as np
import pytest

import mdp

TOKENIZER = ["--tokenizer", mdp.DEMO, "--sequence-length", 32]


@pytest.fixture(scope="module", name="tool")
def load_tool():
    loader = importlib.machinery.SourceFileLoader("tokenize_tool", str(mdp.TOOLS / "tokenize"))
    tool = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    loader.exec_module(tool)
    sys.dont_write_bytecode = written
    return tool


@pytest.fixture(name="tokenize")
def in_a_folder(tool, tmp_path, monkeypatch):
    """tokenize(WORD ...) in tmp_path -> its sentence of failure, or None and t.h5 is written."""
    monkeypatch.chdir(tmp_path)

    def tokenize(*words, out="t.h5"):
        monkeypatch.setattr(sys, "argv", ["tokenize", *map(str, words), "--out", str(out)])
        before = sorted(os.listdir(b"."))
        try:
            tool.main()
        except SystemExit as end:
            assert end.code.startswith("tokenize: ") and "\n" not in end.code
            assert sorted(os.listdir(b".")) == before, "something was written"
            return end.code
        return None
    return tokenize


def sequences(path="t.h5"):
    """{category: [ids, ...]} of a tokens.h5."""
    with h5py.File(path) as tokens:
        return {name: [ids.tolist() for ids in np.split(rows["input_ids"][...], rows["offsets"][1:-1])] for name, rows in tokens.items()}


@pytest.fixture(scope="module", name="ids")
def ids_of(tool):
    tokenizer = tool.ModelTokenizer(str(mdp.DEMO))
    return lambda text: tokenizer.encode("here", text).ids


TWO = b'{"text": "one"}\n\n{"text": "two", "domain": "d"}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.txt", "a"])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_json_lines_are_known_by_name_or_content(name, before, tokenize, ids, tmp_path):
    (tmp_path / name).write_bytes(before + TWO)
    assert tokenize(*TOKENIZER, name) is None
    assert sequences() == {"a": [ids("one")], "d": [ids("two")]}


@pytest.mark.parametrize("text", ["[1] A footnote\n{x}\n", "one\r\ntwo\rthree", "{not json}\n", "[2, 3]\n", "\x1b[1m"])
def test_other_text_is_one_document(text, tokenize, ids, tmp_path):
    (tmp_path / "a.py").write_bytes(text.encode())
    assert tokenize(*TOKENIZER, "a.py") is None
    assert sequences() == {"a": [ids(text.replace("\r\n", "\n").replace("\r", "\n"))]}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


ARRAY = b'[\n{"text": "one"},\n{"text": "two"}\n]\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
GOOD = {"text": "a"}


@pytest.mark.parametrize("name, data, sentence", [
    ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "a.jsonl, line 2: byte 0xe9 is not UTF-8"),
    ("a.txt", b"one\ntwo\ncaf\xe9\n", "a.txt, line 3: byte 0xe9 is not UTF-8"),
    ("a.txt", "text".encode("utf-16"), "a.txt, line 1: "),
    ("a.txt", "x\ntext".encode("utf-16-le"), "a.txt, line 1: a NUL byte"),
    ("a.jsonl", lines(GOOD, {"text": None}), 'a.jsonl, line 2: expected an object with "text", a string of whole characters, found null'),
    ("a.jsonl", lines(GOOD, {"text": 5}), "line 2: expected .*found 5"),
    ("a.jsonl", lines(GOOD, {"content": "x"}), "line 2: expected .*found none"),
    ("a.jsonl", lines(GOOD, ["text"]), r'line 2: expected .*found \["text"\]'),
    ("a.jsonl", lines(GOOD, "text"), 'line 2: expected .*found "text"'),
    ("a.jsonl", lines(GOOD) + b'{"text": "\\ud83d"}\n', "line 2: expected .*ud83d"),
    ("a.jsonl", lines(GOOD) + b'{"text": "a\0"}\n', "line 2: .*control character"),
    ("a.jsonl", lines(GOOD) + b'{"text": \n', "line 2: expected .*found no JSON"),
    ("a.jsonl", b"[" * 100000, "line 1: expected .*found no JSON"),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": 5}), "line 2: category 5 is no text"),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": 0}), "line 2: category 0 is no text"),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": ["x"]}), r'line 2: category \["x"\] is no text'),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": []}), r"line 2: category \[\] is no text"),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": "x\0y"}), r"line 2: category 'x\\x00y' cannot name"),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": "\x1b[2J"}), r"line 2: category '\\x1b\[2J' cannot name"),
    ("a.jsonl", lines(GOOD, {"text": "a", "domain": "x/y"}), "line 2: category 'x/y' cannot name"),
    ("a.jsonl", lines(GOOD) + b'{"text": "a", "domain": "\\ud83d"}\n', "line 2: category .*ud83d.* is no text"),
    ("a.json", ARRAY, "a.json, line 1: expected"),
    ("a.txt", ARRAY, "a.txt, line 1: expected"),
    ("a", lines({"content": "x"}), 'a, line 1: expected an object with "text".*found none'),
    ("a.csv", b"text\nabc\n", "a.csv is a table"),
    ("a.TSV", b"text\nabc\n", "a.TSV is a table"),
    ("a.jsonl.gz", gzip.compress(TWO, mtime=0), "is compressed by gzip"),
    ("a.jsonl", gzip.compress(TWO, mtime=0), "a.jsonl is compressed by gzip"),
    ("a.jsonl.bz2", bz2.compress(TWO), "is compressed by bzip2"),
    ("a.jsonl.xz", lzma.compress(TWO), "is compressed by xz"),
    ("a.parquet", b"PAR1\x15\0", "is Parquet"),
    ("a.npy", b"\x93NUMPY\x01\0", "add --from-npy"),
    ("a.jsonl", POINTER, "a.jsonl is a pointer of Git LFS"),
    ("a.jsonl", b"\n\n", "the inputs hold no text"),
    ("a\udce9.txt", b"text", "category .* is no text"),
])
def test_refuses_what_is_no_text(name, data, sentence, tokenize, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert re.search(sentence, tokenize(*TOKENIZER, name))


@pytest.mark.parametrize("data, sentence", [
    (POINTER, "tokenizer.json is a pointer of Git LFS"),
    (b"", "tokenizer.json is no tokenizer.json"), (b"{}", "is no tokenizer.json"), (b"\xff", "is no tokenizer.json"),
    (b'{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"x":1},"unk_token":"?"}}',
     "a.txt: the tokenizer cannot encode"),
])
def test_refuses_tokenizers(data, sentence, tokenize, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(data)
    (tmp_path / "a.txt").write_text("text")
    assert re.search(sentence, tokenize("--tokenizer", tmp_path, "a.txt"))


@pytest.mark.parametrize("change, sentence", [
    ({"choices": "bc"}, "line 1: expected an object"),
    ({"answer": True}, "line 1: expected an object"),
    ({"task": "a\nb"}, r"line 1: task 'a\\nb' cannot name"),
    ({"task": 5}, "line 1: expected an object"),
    ({"context": "\ud83d"}, "line 1: expected an object"),
    ({"choices": ["b", None]}, "line 1: expected an object"),
])
def test_refuses_items(change, sentence, tokenize, tmp_path):
    (tmp_path / "items.jsonl").write_bytes(lines({"task": "t", "context": "a", "choices": ["b", "c"], "answer": 0, **change}))
    assert re.search(sentence, tokenize("--tokenizer", mdp.DEMO, "--tasks", "items.jsonl"))


IDS = np.arange(1, 13).reshape(3, 4)


@pytest.mark.parametrize("arrays, sentence", [
    ([[2**32]], "row 0, column 0: 4294967296 is no token id"),
    (np.array([[0, 2**64 - 1]], np.uint64), "row 0, column 1: 18446744073709551615 is no token id"),
    ([[3, -1]], "row 0, column 1: -1 is no token id"),
    ([[1.0]], "expected whole numbers"), ([1, 2], "expected whole numbers"), ([[True]], "expected whole numbers"),
    ({"attention_mask": IDS}, "attention_mask: this is not the name of ids"),
    ({"web": IDS, "labels": IDS}, "labels: this is not the name of ids"),
    ({"input_ids": IDS, "labels": IDS}, "beside input_ids there is labels"),
    ({"input_ids": IDS, "attention_mask": IDS}, "attention_mask: expected 0 and 1"),
    ({"input_ids": IDS, "attention_mask": np.ones((3, 3), int)}, "attention_mask: expected 0 and 1"),
    ({"input_ids": IDS, "attention_mask": [[1] * 4, [1, 0, 1, 1], [1] * 4]}, "attention_mask, row 1: it hides ids between others"),
    ({"a": IDS, "b": [[-1]]}, "b, row 0, column 0: -1"),
    ({"a/b": IDS}, "category 'a/b' cannot name"),
    (b"", "is no .npy or .npz"), (b"PK\x03\x04 not a zip", "is no .npy or .npz"), (b"text", "is no .npy or .npz"),
    ({"a": np.array([None])}, "is no .npy or .npz"),
])
def test_refuses_arrays(arrays, sentence, tokenize, tmp_path):
    if isinstance(arrays, bytes):
        (tmp_path / "web.npy").write_bytes(arrays)
    else:
        with open(tmp_path / "web.npy", "wb") as out:
            if isinstance(arrays, dict):
                np.savez(out, **arrays)
            else:
                np.save(out, np.array(arrays))
    assert re.search(sentence, tokenize("--from-npy", "web.npy"))


def test_arrays_of_a_tokenizer_lose_their_padding(tokenize, tmp_path):
    np.savez(tmp_path / "web.npz", input_ids=IDS, attention_mask=[[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert tokenize("--from-npy", "--sequence-length", 2, "web.npz") is None
    assert sequences() == {"web": [[2, 3], [5, 6]]}
    np.savez(tmp_path / "web.npz", b=IDS, a=IDS[:1])
    assert tokenize("--from-npy", "--overwrite", "web.npz") is None
    assert sequences() == {"a": IDS[:1].tolist(), "b": IDS.tolist()}


def test_an_output_replaces_no_input_and_nothing_but_files(tokenize, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    os.link("a.txt", "same.txt")
    os.mkfifo("fifo")
    (tmp_path / "folder").mkdir()
    for out, sentence in (("a.txt", "a.txt is also an input"), ("same.txt", "same.txt is also an input, a.txt"),
                          ("fifo", "no regular file"), ("folder", "no regular file")):
        assert re.search(sentence, tokenize(*TOKENIZER, "--overwrite", "a.txt", out=out))
    assert (tmp_path / "a.txt").read_text() == "text" and stat.S_ISFIFO(os.lstat("fifo").st_mode)
    assert re.search("no-such/t.h5.*: No such file", tokenize(*TOKENIZER, "a.txt", out="no-such/t.h5"))
    os.symlink("a.txt", "link")
    assert re.search("is also an input", tokenize(*TOKENIZER, "--overwrite", "a.txt", out="link"))


def test_a_partial_file_of_another_is_left_alone(tokenize, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "t.h5.partial").write_text("mine")
    umask = os.umask(0o027)
    assert tokenize(*TOKENIZER, "a.txt") is None
    os.umask(umask)
    assert (tmp_path / "t.h5.partial").read_text() == "mine" and os.stat("t.h5").st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "t.h5", "t.h5.partial"]
