"""verify reads every byte of model.h5, stats.h5 and of a folder with moe-dist-prune.json: a flipped bit anywhere is seen, in a
tensor it is named, the first one on any number of ranks. Where the bits lie is told by h5py and safetensors."""
import json
import os
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import xxhash

import mdp


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A pruned golden checkpoint in both containers, with a side file."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copytree(mdp.GOLDEN / "mixtral", folder / "model", ignore=shutil.ignore_patterns("*.h5", "*.txt"))
    (folder / "model" / "tokenizer.json").write_text("{}\n")
    mdp.succeed(2, "run", "--model", folder / "model", "--tokens", mdp.golden_tokens("mixtral", folder / "tokens.h5"), "--method",
                "reap", "--keep", 4, "--format", "both", "--out", folder / "out")
    return folder / "out"


@pytest.fixture
def copy(small, tmp_path):
    """A copy of the results that may be damaged."""
    shutil.copytree(small, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["model.h5", "hf"])
def test_what_run_wrote_is_whole(small, ranks, name):
    result = mdp.succeed(ranks, "verify", small / name)
    n_tensor = len(mdp.folder_places(small / "hf" / "model.safetensors"))
    assert re.search(rf": [\d,]+ bytes read; {n_tensor} tensors and 1 side files equal their checksums$", result.stdout, re.M), str(result)


def test_statistics_are_whole_until_a_bit_flips(copy):
    path = copy / "stats.h5"
    n_byte = path.stat().st_size
    assert f"{n_byte - 32:,} bytes read; they equal their checksum" in mdp.succeed(2, "verify", path).stdout
    with h5py.File(path) as file:
        at = file["layers/0/gate_sum"].id.get_offset()  # the sums for people, which no program reads
    mdp.flip(path, at)
    damaged = r"stats\.h5: what lies outside the tensors .* has checksum \w{32}; expected \w{32}"
    mdp.refuse(3, 65, damaged, "verify", path)
    mdp.refuse(2, 65, damaged, "plan", "--stats", path, "--method", "reap", "--keep", 4, "--out", copy / "another.json")


@pytest.mark.parametrize("name", ["model.h5", "stats.h5", "hf"])
def test_any_flipped_bit_is_seen(copy, name):
    """In data and outside of it. MDP_FLIPS lengthens it."""
    program = mdp.PROGRAM.parent / "tests" / "flip"
    env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = [program, os.environ.get("MDP_FLIPS", "60"), "1", copy / name]
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=1200)
    assert result.returncode == 0 and ": 30 refused, 0 accepted" in result.stdout or "MDP_FLIPS" in os.environ, result.stdout + result.stderr


def test_a_changed_attribute_or_object_is_seen(copy):
    """By a program that keeps the file readable, and every checksum of a tensor right."""
    def rename(file):
        file["model/norm/weight"].attrs["hf_name"] = np.bytes_("model.norm.other")

    def renumber(file):
        stack = next(item for path, item in _datasets(file) if "original_expert" in item.attrs)
        stack.attrs["original_expert"] = stack.attrs["original_expert"][::-1]

    def add(file):
        file.create_group("model/empty")

    def lose(file):
        del file["files/tokenizer.json"]

    def unmark(file):
        del file.attrs["complete"]

    def unseal(file):
        del file["seal"]

    whole = (copy / "model.h5").read_bytes()
    for change, sentence in ((rename, "what lies outside the tensors"), (renumber, "what lies outside the tensors"),
                             (add, "what lies outside the tensors"), (lose, "what lies outside the tensors"),
                             (unmark, "the file was not finished"), (unseal, "it has no seal")):
        with h5py.File(copy / "model.h5", "r+") as file:
            change(file)
        mdp.refuse(1, 65, sentence, "verify", copy / "model.h5")
        (copy / "model.h5").write_bytes(whole)
    mdp.succeed(1, "verify", copy / "model.h5")


def _datasets(file):
    found = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("name, sentence", [
    ("config.json", "config.json: it has checksum"), ("tokenizer.json", "side file 'tokenizer.json' .* has checksum"),
    ("moe-dist-prune.json", "the record up to its seal has checksum")])
def test_a_changed_file_of_a_folder_is_named(copy, name, sentence):
    path = copy / "hf" / name
    content = path.read_bytes()
    at = content.index(b"\n")  # white space: what it means stays the same
    path.write_bytes(content[:at] + b" " + content[at + 1:])
    mdp.refuse(2, 65, sentence, "verify", copy / "hf")
    if name == "tokenizer.json":
        path.unlink()
        mdp.refuse(2, 65, "there is a checksum of 'tokenizer.json', but no such tensor or file", "verify", copy / "hf")


def test_a_changed_header_is_named_and_an_own_file_is_no_fault(copy):
    (copy / "hf" / "notes.txt").write_text("mine")
    assert "; 1 side files have none" in mdp.succeed(1, "verify", copy / "hf").stdout
    path = copy / "hf" / "model.safetensors"
    content = path.read_bytes()
    at = content.index(b'"pt"') + 1
    path.write_bytes(content[:at] + b"q" + content[at + 1:])
    mdp.refuse(1, 65, r"model\.safetensors: the header has checksum", "verify", copy / "hf")


@pytest.mark.parametrize("which", [0, 1, -1])
def test_one_flipped_bit_of_model_h5_is_named(copy, which):
    places = mdp.native_places(copy / "model.h5")
    assert {"tokenizer.json", "lm_head.weight"} <= places.keys()
    name = sorted(places)[which]
    begin, size = places[name]
    mdp.flip(copy / "model.h5", begin + size - 1)
    mdp.refuse(2, 65, rf"model\.h5: (tensor|side file) '{re.escape(name)}' \({size:,} bytes from byte {begin:,}\) has checksum \w{{32}}; expected",
               "verify", copy / "model.h5")


def test_one_flipped_bit_of_a_folder_is_named(copy):
    places = mdp.folder_places(copy / "hf" / "model.safetensors")
    name = sorted(places)[len(places) // 2]
    begin, size = places[name]
    mdp.flip(copy / "hf" / "model.safetensors", begin)
    mdp.refuse(3, 65, rf"model\.safetensors: tensor '{re.escape(name)}' \({size:,} bytes from byte {begin:,}\)", "verify", copy / "hf")


def test_the_first_fault_is_the_same_on_any_number_of_ranks(copy):
    places = mdp.native_places(copy / "model.h5")
    names = sorted(name for name in places if name.endswith("weight"))
    for name in (names[3], names[len(names) // 2], names[-1]):
        mdp.flip(copy / "model.h5", places[name][0])
    sentences = {tuple(mdp.refuse(ranks, 65, re.escape(names[3]), "verify", copy / "model.h5").errors()) for ranks in (1, 2, 4, 8)}
    assert len(sentences) == 1


@pytest.mark.parametrize("text", ["config", "plan", "provenance"])
def test_a_changed_text_is_named(copy, text):
    with h5py.File(copy / "model.h5") as file:
        content = file[text][()]
    content = content if isinstance(content, bytes) else content.encode()
    stored = (copy / "model.h5").read_bytes()
    at = stored.index(content) + content.index(b'"') + 1
    changed = stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1:]
    (copy / "model.h5").write_bytes(changed)
    mdp.refuse(2, 65, rf"the text /{text} has checksum \w{{32}}, which is not the one that the file states", "verify", copy / "model.h5")


def test_a_folder_without_record_or_with_a_wrong_one_is_refused(copy):
    record = copy / "hf" / "moe-dist-prune.json"
    whole = mdp.read_json(record)
    name = sorted(whole["checksums"])[0]
    for change, sentence in (
            ({k: v for k, v in whole["checksums"].items() if k != name}, rf"there is no checksum of tensor '{re.escape(name)}'"),
            ({**whole["checksums"], "extra": "0" * 32}, "there is a checksum of 'extra', but no such tensor"),
            ({**whole["checksums"], name: "0" * 31}, rf"the checksum of '{re.escape(name)}' is not 32 hexadecimal digits")):
        text = json.dumps({**{k: v for k, v in whole.items() if k != "seal"}, "checksums": change}, indent=1)[:-2]
        record.write_text(f'{text},\n "seal": "{xxhash.xxh3_128_hexdigest(text.encode())}"\n}}\n')
        mdp.refuse(1, 65, sentence, "verify", copy / "hf")
    record.unlink()
    mdp.refuse(2, 65, r"there is no moe-dist-prune\.json in it", "verify", copy / "hf")


def test_a_truncated_file_is_refused(copy):
    content = (copy / "hf" / "model.safetensors").read_bytes()
    (copy / "hf" / "model.safetensors").write_bytes(content[:-1])
    mdp.refuse(1, 65, r"model\.safetensors", "verify", copy / "hf")


def test_what_is_no_checkpoint_is_refused(small):
    mdp.refuse(1, 65, "a JSON file, which may be edited, has no checksums of its own", "verify", small / "plan.json")
    mdp.refuse(1, 2, "verify needs a PATH", "verify")


def test_faults_end_with_one_error_and_no_verdict(small):
    ended = set()
    for every in (1, 3, 10, 30, 100, 300):
        result = mdp.run(2, "verify", small / "model.h5", "--fault-every", every, "--fault-rank", every % 2)
        assert len(set(result.codes)) == 1 and len(result.errors()) == (result.codes[0] != 0), str(result)
        assert ("equal their checksums" in result.stdout) == (result.codes[0] == 0), str(result)
        ended.add(result.codes[0] == 0)
    assert False in ended
