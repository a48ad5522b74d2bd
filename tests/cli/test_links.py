"""Symbolic links are followed for what is read, as caches of Hugging Face need it, and never for what is written. And what is there
when a command was not finished, or is as large or deep as it may be: read, or refused with a sentence."""
import json
import os
import re
import shutil
import struct

import h5py
import pytest
import safetensors

import mdp

MODEL = mdp.GOLDEN / "mixtral"
BAD_INPUT, CANNOT_CREATE, STOPPED = 65, 73, 75
CHOICE = ["--method", "reap", "--keep", 4]


@pytest.fixture
def tokens(tmp_path):
    return mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Both formats from plain files; the model lies beside them."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / name, folder / "model")
    mdp.succeed(1, "run", "--model", folder / "model", "--tokens", mdp.golden_tokens("mixtral", folder / "tokens.h5"), *CHOICE, "--format", "both",
                "--out", folder / "out")
    return folder / "out"


def test_inputs_may_be_links_as_in_a_cache(tokens, whole, tmp_path):
    """models--x/snapshots/y/config.json -> ../../blobs/0123"""
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "y"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(["config.json", "model.safetensors"]):
        shutil.copy(MODEL / name, blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "model").symlink_to(snapshot)
    (tmp_path / "linked.h5").symlink_to(tokens.name)
    mdp.succeed(2, "run", "--model", tmp_path / "model", "--tokens", tmp_path / "linked.h5", *CHOICE, "--format", "both", "--out", tmp_path / "out")
    (tmp_path / "plan.json").symlink_to("out/plan.json")
    (tmp_path / "native.h5").symlink_to("out/model.h5")
    mdp.succeed(2, "apply", "--model", tmp_path / "model", "--plan", tmp_path / "plan.json", "--out", tmp_path / "applied")
    mdp.succeed(2, "export", "--model", tmp_path / "native.h5", "--out", tmp_path / "exported")
    for name in ("plan.json", "stats.h5", "model.h5", "hf"):
        assert mdp.digests(tmp_path / "out" / name) == mdp.digests(whole / name), name
    assert mdp.digests(tmp_path / "applied" / "model.h5") == mdp.digests(whole / "model.h5")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(whole / "hf")
    assert not os.path.islink(tmp_path / "out" / "hf" / "config.json")


@pytest.fixture
def theirs(tmp_path):
    """A file and a folder of somebody else's, which no command may touch, and a look at them."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("mine")
    (tmp_path / "theirs" / "folder").mkdir()
    (tmp_path / "theirs" / "folder" / "moe-dist-prune.json").write_text("mine, too")
    before = mdp.digests(tmp_path / "theirs")
    yield tmp_path / "theirs"
    assert mdp.digests(tmp_path / "theirs") == before


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_an_output_file_that_is_a_link_is_replaced_itself(target, tokens, whole, theirs, tmp_path):
    out = tmp_path / "stats.h5"
    out.symlink_to(theirs / target)
    words = ["observe", "--model", MODEL, "--tokens", tokens, "--out", out]
    mdp.refuse(2, CANNOT_CREATE, "stats.h5 exists already", *words)
    mdp.succeed(2, *words, "--overwrite")
    assert not out.is_symlink() and mdp.digests(out) == mdp.digests(whole / "stats.h5")


def test_links_among_what_an_earlier_run_may_have_left(tokens, whole, theirs, tmp_path):
    """Partial files, folders and logs: none is written, or emptied, through."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("stats.h5", "plan.json", "model.h5", "report.json", "eval.json", "effective-config.json"):
        (out / f"{name}.partial").symlink_to(theirs / "file")
    (out / "hf.partial").symlink_to(theirs / "folder")
    (out / "hf.replaced").symlink_to(theirs / "folder")
    mdp.succeed(2, "run", "--model", whole.parent / "model", "--tokens", tokens, "--eval-tokens", tokens, *CHOICE, "--format", "both", "--checkpoint-every", 0, "--out", out)
    for name in ("plan.json", "stats.h5", "model.h5", "hf"):
        assert not (out / name).is_symlink() and mdp.digests(out / name) == mdp.digests(whole / name), name
    (tmp_path / "dump.h5.partial").symlink_to(theirs / "file")
    mdp.succeed(2, "eval", "--model", MODEL, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")


@pytest.mark.parametrize("name, to, sentence", [
    ("hf", "folder", "hf is a symbolic link"), (".state", "folder", r"\.state is a symbolic link"), ("run.log", "file", r"run\.log: is a symbolic link"),
    (".state", "nothing", r"\.state is a symbolic link")])
def test_what_would_be_written_through_a_link_is_refused_first(name, to, sentence, tokens, theirs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(theirs / to)
    for more in ([], ["--overwrite"], ["--resume"]):
        said = mdp.refuse(2, CANNOT_CREATE, sentence, "run", "--model", MODEL, "--tokens", tokens, *CHOICE, "--format", "both",
                          "--out", tmp_path / "out", *more).stderr
        assert "layer 1/" not in said


def test_a_folder_to_export_to_is_no_link(whole, theirs, tmp_path):
    (tmp_path / "hf").symlink_to(theirs / "folder")
    for words in ([tmp_path / "hf"], [f"{tmp_path}/hf/"], [tmp_path / "hf", "--overwrite"]):
        mdp.refuse(2, CANNOT_CREATE, "hf is a symbolic link", "export", "--model", whole / "model.h5", "--out", *words)


# ---- what is not finished

def test_unfinished_results_are_no_results(tokens, whole, tmp_path):
    """What commands leave that were stopped in the middle is named as it is, and not taken for a result."""
    out, seen = tmp_path / "out", set()
    observe = ["observe", "--model", MODEL, "--tokens", tokens, "--out", tmp_path / "stats.h5"]
    apply = ["apply", "--model", whole.parent / "model", "--plan", whole / "plan.json", "--format", "both", "--out", out]
    for words in (observe, apply, [*apply, "--resume"]):
        assert mdp.run(1, *words, "--stop-at", 1).codes == [STOPPED]
        for path in [*mdp.unfinished(out / ".state").values(), *(tmp_path / "stats.h5.state").iterdir()]:
            if path.name not in seen:
                ended = mdp.run(1, "verify", path)
                assert set(ended.codes) == {BAD_INPUT} and len(ended.errors()) == 1, str(ended)
                if path.suffix != ".json":
                    mdp.refuse(1, BAD_INPUT, re.escape(path.name), "inspect", path)
            seen.add(path.name)
    assert seen == {"pass-0.h5", "identity.json", "model.h5.partial", "hf.partial"}
    for command in ("verify", "inspect"):
        mdp.refuse(2, BAD_INPUT, r"no model\.safetensors .* for the model\.h5 in it, name the file itself", command, out)


def test_a_folder_with_a_part_of_its_files_is_no_checkpoint(whole, tmp_path):
    names = sorted(path.name for path in (whole / "hf").iterdir())
    assert {"config.json", "model.safetensors", "moe-dist-prune.json"} <= set(names)
    for name in names:
        folder = shutil.copytree(whole / "hf", tmp_path / name)
        (folder / name).unlink()
        mdp.refuse(2, BAD_INPUT, re.escape(name), "verify", folder)


# ---- large and deep

def test_a_header_as_large_as_the_format_allows(tmp_path):
    """100,000,000 bytes are read, here as in the library; one more is refused by both."""
    folder = shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.h5"))
    weights, content, most = folder / "model.safetensors", (MODEL / "model.safetensors").read_bytes(), 100_000_000
    n = struct.unpack("<Q", content[:8])[0]
    with open(weights, "wb") as file:
        for part in (struct.pack("<Q", most), content[8:8 + n], b" " * (most - n), content[8 + n:]):
            file.write(part)
    with safetensors.safe_open(weights, "np") as theirs:
        n_tensor = len(list(theirs.keys()))
    assert f"\ntensors             {n_tensor}\n" in mdp.succeed(2, "inspect", folder).stdout
    with open(weights, "r+b") as file:
        file.write(struct.pack("<Q", most + 1))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(weights, "np").__enter__()
    mdp.refuse(2, BAD_INPUT, "header length at byte 0 is 100000001, more than", "inspect", folder)


def test_json_that_is_nested_too_deep(whole, tokens, tmp_path):
    """Refused by the parser, not by the end of the stack, wherever JSON is read."""
    deep = '{"a":' * 200_000
    folder = shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.h5"))

    def refuse(path, *words):
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(struct.pack("<Q", len(deep)) + deep.encode() if path.suffix == ".safetensors" else deep.encode())
        mdp.refuse(1, BAD_INPUT, rf"{re.escape(path.name)}: not valid JSON at line 1, .*depth", *words)
        path.unlink() if before is None else path.write_bytes(before)
    refuse(folder / "config.json", "inspect", folder)
    refuse(folder / "model.safetensors", "inspect", folder)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    refuse(folder / "model.safetensors.index.json", "inspect", folder)
    refuse(tmp_path / "plan.json", "apply", "--model", MODEL, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out")
    refuse(tmp_path / "keep.json", "plan", "--stats", whole / "stats.h5", "--method", "reap", "--keep-file", tmp_path / "keep.json", "--out", tmp_path / "p.json")
    refuse(tmp_path / "config.json", "info", "--config", tmp_path / "config.json")
    native = tmp_path / "model.h5"
    shutil.copy(whole / "model.h5", native)
    with h5py.File(native, "r+") as file:
        del file["plan"]
        file["plan"] = json.dumps([]) + deep
    mdp.refuse(1, BAD_INPUT, r"model\.h5", "verify", native)
