"""Wrong input: one sentence, the right exit code on every rank, nothing written, no hang. On 1 and 4 ranks."""
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

import h5py
import numpy as np
import pytest

import mdp

USAGE, BAD_INPUT, CANNOT_CREATE, INPUT_OUTPUT = 2, 65, 73, 74
RANKS = pytest.mark.parametrize("ranks", [1, 4])
WEIGHTS = "model.safetensors"
ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
EXPERT = "model.layers.2.block_sparse_moe.experts.5.w2.weight"


@pytest.fixture
def model(tmp_path):
    """A copy of the golden Mixtral checkpoint that a test may spoil."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copy(mdp.GOLDEN / "mixtral" / name, folder / name)
    return folder


@pytest.fixture
def tokens(tmp_path):
    return mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")


def refuse(ranks, code, sentence, model, tokens, tmp_path, words=("--method", "reap", "--keep", 4), **how):
    """`run` must refuse and leave nothing behind."""
    before = {p for p in tmp_path.rglob("*")}
    result = mdp.refuse(ranks, code, sentence, "run", "--model", model, "--tokens", tokens, *words, "--format", "both",
                        "--out", tmp_path / "out", **how)
    assert not {p for p in tmp_path.rglob("*")} - before, f"something was written: {result}"
    return result


def split(path):
    """(header, data) of a safetensors file; the header as pairs, so that a test can name a tensor twice."""
    content = path.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    return list(json.loads(content[8:8 + n]).items()), content[8 + n:]


def join(path, header, data):
    text = ("{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in header) + "}").encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# ---- safetensors: each takes the path of the weights and spoils the file

def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def truncated_in_header(path):
    path.write_bytes(path.read_bytes()[:1000])


def trailing(path):
    path.write_bytes(path.read_bytes() + b"0123456789")


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**63 + 5) + path.read_bytes()[8:])


def large_header(path):
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


def not_json(path):
    content = bytearray(path.read_bytes())
    content[8] = ord("[")
    path.write_bytes(content)


def edit(change):
    def spoil(path):
        header, data = split(path)
        join(path, *(change(header, data) or (header, data)))
    return spoil


def entry_of(header, name):
    return next(entry for key, entry in header if key == name)


def last_entry(header):
    return max((item for item in header if item[0] != "__metadata__"), key=lambda item: item[1]["data_offsets"][1])


def hole(header, data):
    last = last_entry(header)[1]
    last["data_offsets"] = [x + 64 for x in last["data_offsets"]]
    return header, data + bytes(64)


def overlap(header, data):
    """The last tensor lies where another one of its size lies."""
    name, last = last_entry(header)
    size = last["data_offsets"][1] - last["data_offsets"][0]
    other = next(e for key, e in header if key not in (name, "__metadata__") and e["data_offsets"][1] - e["data_offsets"][0] == size)
    last["data_offsets"] = list(other["data_offsets"])
    return header, data[:-size]


def duplicate(header, data):
    return header + [(ROUTER, entry_of(header, ROUTER))], data


def shape_overflow(header, data):
    entry_of(header, ROUTER)["shape"] = [2**40, 2**40]


def shape_and_bytes(header, data):
    entry_of(header, ROUTER)["shape"] = [8, 63]


def negative_offset(header, data):
    entry_of(header, ROUTER)["data_offsets"][0] = -8


def unknown_type(header, data):
    entry_of(header, ROUTER)["dtype"] = "Q7"


def without(name):
    def change(header, data):
        begin, end = entry_of(header, name)["data_offsets"]
        rest = []
        for key, entry in header:
            if key == name:
                continue
            if key != "__metadata__" and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [x - (end - begin) for x in entry["data_offsets"]]
            rest.append((key, entry))
        return rest, data[:begin] + data[end:]
    return change


@RANKS
@pytest.mark.parametrize("spoil, sentence", [
    (empty, r"model\.safetensors.*empty|model\.safetensors.*0 bytes"),
    (truncated, r"model\.safetensors.*(past|truncated)"),
    (truncated_in_header, r"model\.safetensors.*header"),
    (trailing, r"model\.safetensors.*10 bytes|model\.safetensors.*(after|trailing|belong)"),
    (huge_header, r"model\.safetensors.*header"),
    (large_header, r"model\.safetensors.*header"),
    (not_json, r"model\.safetensors.*byte 8"),
    (edit(hole), r"model\.safetensors.*(hole|gap|belong to no tensor)"),
    (edit(overlap), r"model\.safetensors.*(overlap|inside|begins)"),
    (edit(duplicate), r"model\.safetensors.*(twice|duplicate)"),
    (edit(shape_overflow), rf"model\.safetensors.*{re.escape(ROUTER)}.*(overflow|too large|shape)"),
    (edit(shape_and_bytes), rf"model\.safetensors.*{re.escape(ROUTER)}.*bytes"),
    (edit(negative_offset), r"model\.safetensors.*data_offsets"),
    (edit(unknown_type), rf"model\.safetensors.*{re.escape(ROUTER)}.*Q7"),
    (edit(without(ROUTER)), r"layer 1.*router|" + re.escape(ROUTER)),
    (edit(without(EXPERT)), re.escape(EXPERT) + r"|layer 2.*expert 5"),
    (edit(without("model.norm.weight")), r"model\.norm\.weight"),
], ids=lambda value: getattr(value, "__name__", "") if callable(value) else "")
def test_spoiled_weights(spoil, sentence, ranks, model, tokens, tmp_path):
    spoil(model / WEIGHTS)
    refuse(ranks, BAD_INPUT, sentence, model, tokens, tmp_path)


@RANKS
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_router_that_is_not_finite(value, ranks, model, tokens, tmp_path):
    header, data = split(model / WEIGHTS)
    begin = entry_of(header, ROUTER)["data_offsets"][0]
    values = np.frombuffer(data, dtype=np.uint8).copy()
    values[begin + 4 * (3 * 64 + 5):][:4] = np.frombuffer(np.float32(value).tobytes(), dtype=np.uint8)  # row of expert 3
    join(model / WEIGHTS, header, values.tobytes())
    refuse(ranks, BAD_INPUT, r"layer 1.*expert 3.*(NaN|infinity)", model, tokens, tmp_path)


# ---- files

@RANKS
def test_missing_files(ranks, model, tokens, tmp_path):
    refuse(ranks, BAD_INPUT, r"no-such-model.*([Nn]o such|exist)", tmp_path / "no-such-model", tokens, tmp_path)
    refuse(ranks, BAD_INPUT, r"no-such\.h5.*([Nn]o such|exist)", model, tmp_path / "no-such.h5", tmp_path)
    (model / "config.json").unlink()
    refuse(ranks, BAD_INPUT, r"no config\.json", model, tokens, tmp_path)
    shutil.copy(mdp.GOLDEN / "mixtral" / "config.json", model)
    (model / WEIGHTS).unlink()
    refuse(ranks, BAD_INPUT, r"model.*safetensors", model, tokens, tmp_path)


def sharded(folder):
    """Make the checkpoint one of two shards; returns the index."""
    from safetensors.torch import load_file, save_file
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for name, part in files.items():
        save_file({key: tensors[key] for key in part}, folder / name, metadata={"format": "pt"})
    return {"metadata": {"total_size": 0}, "weight_map": {key: name for name, part in files.items() for key in part}}


@RANKS
@pytest.mark.parametrize("change, sentence", [
    (lambda index: index["weight_map"].update({ROUTER: "../stranger.safetensors"}), r"\.\./stranger\.safetensors.*"),
    (lambda index: index["weight_map"].update({ROUTER: "/etc/passwd"}), r"/etc/passwd"),
    (lambda index: index["weight_map"].update({ROUTER: "model-00003-of-00002.safetensors"}), r"model-00003-of-00002\.safetensors"),
    (lambda index: index["weight_map"].update({ROUTER: "model-00001-of-00002.safetensors"
                                               if index["weight_map"][ROUTER].startswith("model-00002")
                                               else "model-00002-of-00002.safetensors"}), re.escape(ROUTER)),
    (lambda index: index["weight_map"].update({"model.ghost.weight": "model-00001-of-00002.safetensors"}), r"model\.ghost\.weight"),
    (lambda index: index.pop("weight_map"), r"index\.json.*weight_map"),
], ids=["outside", "absolute", "no-such-shard", "wrong-shard", "ghost", "no-map"])
def test_wrong_index(change, sentence, ranks, model, tokens, tmp_path):
    index = sharded(model)
    change(index)
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(ranks, BAD_INPUT, sentence, model, tokens, tmp_path)


# ---- config.json

@RANKS
@pytest.mark.parametrize("key, value, sentence", [
    ("num_attention_heads", 0, r"config\.json.*num_attention_heads"),
    ("num_attention_heads", 3, r"num_attention_heads|num_key_value_heads"),
    ("num_experts_per_tok", 9, r"num_experts_per_tok.*9|9.*num_experts_per_tok"),
    ("model_type", "mixtrul", r"mixtrul.*"),
    ("hidden_size", 128, r"(128.*config|config.*128)"),
    ("num_local_experts", 16, r"layer 0.*(8|16).*num_local_experts|num_local_experts.*16"),
    ("num_local_experts", 4, r"num_local_experts|experts\.[4-7]"),
    ("num_hidden_layers", 4, r"layers?[ .]3"),
    ("intermediate_size", 81, r"81"),
    ("vocab_size", 513, r"513"),
    ("num_hidden_layers", -1, r"config\.json.*num_hidden_layers"),
    ("hidden_size", "64", r"config\.json.*hidden_size"),
    ("hidden_act", "quick_gelu", r"hidden_act.*quick_gelu"),
])
def test_config_that_does_not_fit(key, value, sentence, ranks, model, tokens, tmp_path):
    config = mdp.read_json(model / "config.json")
    config[key] = value
    (model / "config.json").write_text(json.dumps(config))
    refuse(ranks, BAD_INPUT, sentence, model, tokens, tmp_path)


@RANKS
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model_type": "mixtral",}', '{"model_type": "mixtral", "model_type": "mixtral"}'])
def test_config_that_is_not_json(text, ranks, model, tokens, tmp_path):
    (model / "config.json").write_text(text)
    refuse(ranks, BAD_INPUT, r"config\.json", model, tokens, tmp_path)


# ---- tokens

def ids(n, value=3):
    return np.full(n, value)


@RANKS
@pytest.mark.parametrize("content, sentence", [
    ({"a": [ids(9)], "b": [ids(5), ids(4, 512)]}, r"b.*sequence 1.*position 0.*512|b.*512"),
    ({}, r"tokens\.h5.*(no |empty)"),
    ({"a": [ids(9)], "b": []}, r"b.*(no |empty)"),
], ids=["id-beyond-vocabulary", "no-category", "empty-category"])
def test_spoiled_tokens(content, sentence, ranks, model, tmp_path):
    refuse(ranks, BAD_INPUT, sentence, model, mdp.write_tokens(tmp_path / "tokens.h5", content), tmp_path)


@RANKS
@pytest.mark.parametrize("offsets, sentence", [
    ([0, 6, 4, 9], r"offsets.*(decrease|grow|ascend)"),
    ([0, 4, 10], r"offsets.*(past|overrun|end|10)"),
    ([1, 4, 9], r"offsets.*(0|begin|start)"),
    ([0, 4, 8], r"offsets.*(9|8|end)"),
])
def test_spoiled_offsets(offsets, sentence, ranks, model, tmp_path):
    mdp.write_tokens(tmp_path / "tokens.h5", {"a": [ids(9)]})
    with h5py.File(tmp_path / "tokens.h5", "a") as out:
        del out["a/offsets"]
        out["a/offsets"] = np.array(offsets, dtype=np.int64)
    refuse(ranks, BAD_INPUT, sentence, model, tmp_path / "tokens.h5", tmp_path)


@RANKS
def test_tokens_of_other_kinds(ranks, model, tmp_path):
    (tmp_path / "text.h5").write_text("this is not HDF5")
    refuse(ranks, BAD_INPUT, r"text\.h5.*HDF5", model, tmp_path / "text.h5", tmp_path)
    with h5py.File(tmp_path / "floats.h5", "w") as out:
        out["a/input_ids"], out["a/offsets"] = np.zeros(4), np.array([0, 4])
    refuse(ranks, BAD_INPUT, r"floats\.h5.*input_ids", model, tmp_path / "floats.h5", tmp_path)
    with h5py.File(tmp_path / "chunked.h5", "w") as out:
        out.create_dataset("a/input_ids", data=np.zeros(4, dtype=np.uint32), chunks=(2,), compression="gzip")
        out["a/offsets"] = np.array([0, 4])
    result = mdp.run(ranks, "observe", "--model", model, "--tokens", tmp_path / "chunked.h5", "--out", tmp_path / "stats.h5")
    assert result.codes in ([0] * ranks, [BAD_INPUT] * ranks), str(result)  # read or refused, never misread


# ---- what the user asks for

@RANKS
@pytest.mark.parametrize("words, sentence", [
    (["--method", "reap", "--keep", 1], r"--keep 1.*2.*num_experts_per_tok"),
    (["--method", "reap", "--keep", 9], r"--keep 9.*8"),
    (["--method", "reap", "--keep", 0], r"--keep"),
    (["--method", "reap", "--keep", "four"], r"--keep.*four"),
    (["--method", "reap", "--keep-ratio", 0.1], r"--keep-ratio 0\.1.*num_experts_per_tok|--keep-ratio.*2"),
    (["--method", "reap", "--prune-ratio", 0.95], r"--prune-ratio"),
    (["--method", "reap", "--keep-ratio", 1.5], r"--keep-ratio.*1\.5"),
    (["--method", "reap", "--keep", 4, "--keep-ratio", 0.5], r"--keep-ratio.*--keep|--keep.*--keep-ratio"),
    (["--method", "reap"], r"--keep"),
    (["--keep", 4], r"--method"),
    (["--method", "reep", "--keep", 4], r"reep.*reap"),
    (["--method", "reap", "--keep", 4, "--bugdet", "global"], r"--bugdet.*--budget"),
    (["--method", "reap", "--keep", 4, "--threads", 0], r"--threads"),
    (["--method", "reap", "--keep", 4, "--batch-tokens", "many"], r"--batch-tokens.*many"),
    (["--method", "reap", "--keep", 4, "--memory", "1kB"], r"--memory|memory"),
])
def test_impossible_requests(words, sentence, ranks, model, tokens, tmp_path):
    refuse(ranks, USAGE, sentence, model, tokens, tmp_path, words=words)


@RANKS
def test_unknown_command_and_stray_word(ranks, tmp_path):
    mdp.refuse(ranks, USAGE, r"obsreve.*observe", "obsreve")
    mdp.refuse(ranks, USAGE, r"stray", "info", "stray")


@pytest.fixture
def plan(model, tokens, tmp_path):
    mdp.succeed(2, "observe", "--model", model, "--tokens", tokens, "--out", tmp_path / "stats.h5")
    mdp.succeed(1, "plan", "--stats", tmp_path / "stats.h5", "--method", "reap", "--keep", 4, "--out", tmp_path / "plan.json")
    return tmp_path / "plan.json"


@RANKS
def test_plan_for_another_model(ranks, plan, tmp_path):
    for other in (mdp.DEMO, mdp.GOLDEN / "mixtral_bf16"):
        mdp.refuse(ranks, BAD_INPUT, r"plan.*for another model.*fingerprint", "apply", "--model", other, "--plan", plan,
                   "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@RANKS
@pytest.mark.parametrize("change, sentence", [
    (lambda layers: layers[1]["experts"].pop(), r"layer 1.*expert"),
    (lambda layers: layers[1]["experts"].append(layers[1]["experts"][0]), r"layer 1.*expert"),
    (lambda layers: layers[1]["experts"][3].update({"from": [8]}), r"layer 1.*8"),
    (lambda layers: layers[1]["experts"][0].update(action="merge"), r"layer 1.*merge"),
    (lambda layers: layers.pop(), r"layer 2|layers"),
    (lambda layers: layers[1].update(experts=layers[1]["experts"][:1], dropped=sorted(
        layers[1]["dropped"] + [{"expert": e["from"][0], "action": "drop"} for e in layers[1]["experts"][1:]],
        key=lambda entry: entry["expert"])), r"layer 1.*1.*2"),
    (lambda layers: layers[1]["experts"][0].update({"from": []}), r"layer 1.*from"),
], ids=["missing", "twice", "no-such-expert", "unknown-action", "layer-missing", "fewer-than-k", "from-nothing"])
def test_spoiled_plan(change, sentence, ranks, plan, model, tmp_path):
    content = mdp.read_json(plan)
    change(content["layers"])
    plan.write_text(json.dumps(content))
    mdp.refuse(ranks, BAD_INPUT, sentence, "apply", "--model", model, "--plan", plan, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@RANKS
def test_files_of_a_newer_version_or_another_kind(ranks, plan, model, tmp_path):
    content = mdp.read_json(plan)
    plan.write_text(json.dumps({**content, "version": "2.0"}))
    mdp.refuse(ranks, BAD_INPUT, r"plan\.json.*2\.0", "apply", "--model", model, "--plan", plan, "--out", tmp_path / "out")
    mdp.refuse(ranks, BAD_INPUT, r"tokens\.h5", "plan", "--stats", tmp_path / "tokens.h5", "--method", "reap", "--keep", 4,
               "--out", tmp_path / "plan2.json")
    mdp.refuse(ranks, BAD_INPUT, r"stats\.h5", "export", "--model", tmp_path / "stats.h5", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "plan2.json").exists()


# ---- outputs

@RANKS
def test_output_exists(ranks, model, tokens, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.h5").write_text("mine")
    refuse(ranks, CANNOT_CREATE, r"out.*exists.*--overwrite", model, tokens, tmp_path)
    assert (tmp_path / "out" / "model.h5").read_text() == "mine"
    (tmp_path / "stats.h5").write_text("mine")
    mdp.refuse(ranks, CANNOT_CREATE, r"stats\.h5.*exists.*--overwrite", "observe", "--model", model, "--tokens", tokens,
               "--out", tmp_path / "stats.h5")
    assert (tmp_path / "stats.h5").read_text() == "mine"


@RANKS
def test_output_over_the_input_is_refused_even_with_overwrite(ranks, tmp_path, model, tokens, plan):
    mdp.succeed(1, "apply", "--model", model, "--plan", plan, "--out", tmp_path / "out")
    before = mdp.digests(tmp_path / "out")
    result = mdp.run(ranks, "apply", "--model", tmp_path / "out" / "model.h5", "--plan", plan, "--overwrite", "--out", tmp_path / "out")
    assert result.codes[0] != 0 and len(set(result.codes)) == 1, str(result)
    assert mdp.digests(tmp_path / "out") == before


@RANKS
def test_output_below_a_file(ranks, model, tokens, tmp_path):
    (tmp_path / "file").write_text("x")
    mdp.refuse(ranks, CANNOT_CREATE, r"/file.*not a (folder|directory)", "run", "--model", model, "--tokens", tokens, "--method", "reap", "--keep", 4,
               "--out", tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv to become another user")
@RANKS
def test_output_not_writable(ranks, model, tokens):
    """As nobody in a folder that only root may write; not below pytest's own folder, which nobody else may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        locked = folder / "locked"
        locked.mkdir(mode=0o755)
        shutil.copytree(model, folder / "model")
        shutil.copy(tokens, folder / "tokens.h5")
        prefix = ["setpriv", "--reuid", "65534", "--clear-groups"]
        for path in (folder / "model/config.json", mdp.PROGRAM, mdp.TESTS / "rank.py", mdp.PYTHON):
            if subprocess.run([*prefix, "test", "-r", str(path)], check=False).returncode:
                pytest.skip(f"the user nobody cannot read {path}")
        mdp.refuse(ranks, CANNOT_CREATE, r"locked.*(ermission|writ)", "run", "--model", folder / "model", "--tokens", folder / "tokens.h5",
                   "--method", "reap", "--keep", 4, "--out", locked / "out", prefix=prefix)
        assert not list(locked.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here (needs root with CAP_SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@RANKS
@pytest.mark.parametrize("form", ["hdf5", "safetensors", "both"])
def test_output_does_not_fit(form, ranks, model, plan, small_disk):
    """Found before anything is written."""
    mdp.refuse(ranks, CANNOT_CREATE, r"needs .*MB.*small has .*MB free", "apply", "--model", model, "--plan", plan, "--format", form,
               "--out", small_disk / "out")
    assert not list(small_disk.iterdir())


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    library = tmp_path_factory.mktemp("library") / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, mdp.TESTS / "full_disk.c", "-ldl"], check=True)
    return library


@RANKS
@pytest.mark.parametrize("limit", [3000, 40000, 600000, 1150000])
@pytest.mark.parametrize("form", ["hdf5", "safetensors"])
def test_output_runs_full(form, limit, ranks, model, plan, full_disk, tmp_path):
    """The disk is full after the header, early, half-way, and near the end of 1.17 MB."""
    before = set(tmp_path.rglob("*"))
    result = mdp.refuse(ranks, INPUT_OUTPUT, r"/out/.*(No space left|file write failed)", "apply", "--model", model, "--plan", plan, "--format", form,
                        "--out", tmp_path / "out", within=["env", f"LD_PRELOAD={full_disk}", f"FULL_DISK_BYTES={limit}"])
    left = {path.name for path in set(tmp_path.rglob("*")) - before}
    assert left <= {"out", "run.log", "effective-config.json"}, f"{left}\n{result}"


@RANKS
def test_statistics_run_full(ranks, model, tokens, full_disk, tmp_path):
    before = set(tmp_path.rglob("*"))
    mdp.refuse(ranks, INPUT_OUTPUT, r"stats\.h5.*disk full", "observe", "--model", model, "--tokens", tokens,
               "--out", tmp_path / "stats.h5", within=["env", f"LD_PRELOAD={full_disk}", "FULL_DISK_BYTES=3000"])
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("lone", [0, 1, 3])
def test_one_rank_alone_fails_to_open(lone, model, tokens, tmp_path):
    """Rank `lone` fails at its first fallible operation, then at later ones; the others must not wait for it."""
    for every in (1, 2, 5, 20):
        result = mdp.run(4, "observe", "--model", model, "--tokens", tokens, "--out", tmp_path / "stats.h5", "--fault-every", every,
                         "--fault-rank", lone, timeout=60)
        assert result.codes[0] != 0 and len(set(result.codes)) == 1, str(result)
        assert len(result.errors()) == 1, str(result)
        assert not (tmp_path / "stats.h5").exists() and not list(tmp_path.glob("*.partial")), str(result)
