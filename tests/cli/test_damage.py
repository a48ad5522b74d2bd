"""Whoever copies from a checkpoint with checksums compares what he copies: no result vouches for damage. Where the bytes lie is told
by h5py and safetensors."""
import json
import re
import shutil

import h5py
import pytest

import mdp

BAD_INPUT, STOPPED = 65, 75


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{family: (model.h5, hf, plan)} that this program has written: Mixtral with an expert's tensors each, gpt-oss with one for all."""
    folder, found = tmp_path_factory.mktemp("sources"), {}
    for family in ("mixtral", "gpt_oss"):
        own = folder / family
        shutil.copytree(mdp.GOLDEN / family, own / "model", ignore=shutil.ignore_patterns("*.h5", "*.txt"))
        (own / "model" / "tokenizer.json").write_text('{"a": 1}\n')
        n = next(value for key, value in mdp.read_json(own / "model" / "config.json").items() if key in mdp.COUNT_KEYS)
        mdp.succeed(1, "plan", "--model", own / "model", "--method", "random", "--keep", n, "--out", own / "all.json")
        mdp.succeed(2, "apply", "--model", own / "model", "--plan", own / "all.json", "--format", "both", "--shard-size", "300k", "--out", own / "out")
        mdp.succeed(1, "plan", "--model", own / "out" / "hf", "--method", "random", "--keep", n - 2, "--out", own / "plan.json")
        found[family] = (own / "out" / "model.h5", own / "out" / "hf", own / "plan.json")
    return found


@pytest.fixture
def copies(sources, tmp_path):
    """The same, to be damaged."""
    def copy(family):
        native, hf, plan = sources[family]
        shutil.copy(native, tmp_path / "model.h5")
        shutil.copytree(hf, tmp_path / "hf")
        return tmp_path / "model.h5", tmp_path / "hf", plan
    return copy


def export(model, out):
    return ["export", "--model", model, "--out", out]


def apply(model, plan, out):
    return ["apply", "--model", model, "--plan", plan, "--format", "both", "--out", out]


def run(family, model, out):
    tokens = mdp.golden_tokens(family, out.parent / "tokens.h5")
    return ["run", "--model", model, "--tokens", tokens, "--method", "frequency", "--prune-ratio", 0.5, "--format", "both", "--out", out]


def places_of(container, native, hf):
    """{name: (file, first byte, number of bytes)}"""
    if container == "model.h5":
        return {name: (native, *place) for name, place in mdp.native_places(native).items()}
    return {**{name: (path, *place) for path in hf.glob("*.safetensors") for name, place in mdp.folder_places(path).items()},
            "tokenizer.json": (hf / "tokenizer.json", 0, (hf / "tokenizer.json").stat().st_size)}


def refused(tmp_path, ranks, words, name, path, begin, size):
    kind = "side file" if name == "tokenizer.json" else "tensor"
    mdp.refuse(ranks, BAD_INPUT, rf"{path.name}: {kind} '{re.escape(name)}' \({size:,} bytes from byte {begin:,}\) has checksum \w{{32}}; expected \w{{32}}", *words)
    assert not [p for p in tmp_path.glob("out/**/*") if p.name in ("model.h5", "config.json") or ".partial" in p.name]


@pytest.mark.parametrize("container", ["model.h5", "hf"])
@pytest.mark.parametrize("family, name, at", [
    ("mixtral", "tokenizer.json", 0), ("mixtral", "lm_head.weight", -1), ("mixtral", "model.layers.1.block_sparse_moe.experts.{kept}.w2.weight", 7),
    ("mixtral", "model.layers.1.block_sparse_moe.gate.weight", 0), ("gpt_oss", "model.layers.1.mlp.router.weight", -1),
    ("gpt_oss", "model.layers.0.mlp.experts.down_proj", {"kept": 0}), ("gpt_oss", "model.layers.0.mlp.experts.down_proj", {"dropped": 0}),
    ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_bias", -1)])
def test_a_flipped_bit_is_not_copied(copies, tmp_path, container, family, name, at):
    """Of a tensor that is sliced all counts, since its checksum is of all of it: also the experts that go."""
    native, hf, plan = copies(family)
    layer = mdp.read_json(plan)["layers"][int(re.search(r"layers\.(\d)", name).group(1)) if "layers" in name else 0]
    kept, dropped = [e["from"][0] for e in layer["experts"]], [e["expert"] for e in layer["dropped"]]
    name = name.format(kept=kept[-1])
    path, begin, size = places_of(container, native, hf)[name]
    if isinstance(at, dict):
        which = kept[0] if "kept" in at else dropped[0]
        at = size // (len(kept) + len(dropped)) * which
    mdp.flip(path, begin + at % size)
    model, out = native if container == "model.h5" else hf, tmp_path / "out"
    # A plan knows its model by the first 4,096 bytes of tensors.
    prune = apply(model, plan, out) if at % size >= 4096 or "json" in name else run(family, model, out)
    refused(tmp_path, 3, export(model, out), name, path, begin, size)
    refused(tmp_path, 2, prune, name, path, begin, size)
    assert (out / "stats.h5").exists() == (prune[0] == "run")  # what could be computed stays


def test_what_is_not_copied_may_be_damaged(copies, tmp_path):
    """An expert that goes, with tensors of its own, is not read."""
    native, hf, plan = copies("mixtral")
    dropped = mdp.read_json(plan)["layers"][0]["dropped"][0]["expert"]
    name = f"model.layers.0.block_sparse_moe.experts.{dropped}.w1.weight"
    for container in ("model.h5", "hf"):
        path, begin, _ = places_of(container, native, hf)[name]
        mdp.flip(path, begin + 4096)
        out = tmp_path / f"from-{container}"
        mdp.succeed(2, *apply(native if container == "model.h5" else hf, plan, out))
        for result in ("model.h5", "hf"):
            mdp.succeed(1, "verify", out / result)


@pytest.mark.parametrize("name, sentence", [
    ("config.json", r"config\.json: it has checksum"), ("model.safetensors.index.json", r"index\.json: it has checksum"),
    ("moe-dist-prune.json", "the record up to its seal has checksum"), ("shard", r"model-00001-of-\d+\.safetensors: the header has checksum")])
def test_a_folder_that_was_changed_is_refused_before_anything_runs(copies, tmp_path, name, sentence):
    """By a space that means nothing. Without the record it is a folder as any other."""
    _, hf, _ = copies("mixtral")
    path = sorted(hf.glob("model-*.safetensors"))[0] if name == "shard" else hf / name
    content = path.read_bytes()
    at = content.index(b" ", 8) if name == "shard" else content.index(b"\n")
    path.write_bytes(content[:at] + (b"\n" if name == "shard" else b" ") + content[at + 1:])
    out = tmp_path / "out"
    for words in (export(hf, out), run("mixtral", hf, out), [*run("mixtral", hf, out), "--dry-run"]):
        said = mdp.refuse(2, BAD_INPUT, sentence + r".* If it was changed on purpose, remove moe-dist-prune\.json from", *words).stderr
        assert "layer 1/" not in said and not out.exists()
    (hf / "moe-dist-prune.json").unlink()
    mdp.succeed(2, *export(hf, out))


@pytest.mark.parametrize("text", ["config", "plan"])
def test_a_text_of_model_h5_is_compared(copies, tmp_path, text):
    native, _, _ = copies("mixtral")
    with h5py.File(native) as file:
        content = file[text][()]
    stored = native.read_bytes()
    at = stored.index(content) + content.index(b" ")
    native.write_bytes(stored[:at] + b"\n" + stored[at + 1:])
    mdp.refuse(2, BAD_INPUT, rf"the text /{text} has checksum", *export(native, tmp_path / "out"))


def test_another_structure_is_told_and_copied(copies, tmp_path):
    """A file that another program has written anew has its checksums of tensors still."""
    native, hf, _ = copies("mixtral")
    with h5py.File(native, "r+") as file:
        file.create_group("empty")
    said = mdp.succeed(2, "export", "--model", native, "--shard-size", "300k", "--out", tmp_path / "out").stderr
    assert re.search(r"^moe-dist-prune: warning: .*model\.h5: its structure was changed", said, re.M), said
    assert mdp.digests(tmp_path / "out") == mdp.digests(hf)
    mdp.refuse(1, BAD_INPUT, "what lies outside the tensors", "verify", native)
    path, begin, size = places_of("model.h5", native, hf)["lm_head.weight"]
    mdp.flip(native, begin)
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path, 1, export(native, tmp_path / "out"), "lm_head.weight", path, begin, size)


def test_damage_since_a_copy_was_stopped_is_seen(copies, tmp_path):
    """Whoever goes on compares what he copies, with the checksums that the source has."""
    native, hf, plan = copies("mixtral")
    words = [*apply(hf, plan, tmp_path / "out"), "--checkpoint-every", 0]
    assert mdp.run(1, *words, "--stop-at", 1).codes == [STOPPED]
    path, begin, size = places_of("hf", native, hf)["model.embed_tokens.weight"]
    mdp.flip(path, begin + size - 1)
    assert mdp.run(1, *words, "--resume").codes == [BAD_INPUT]


def test_what_is_read_once_more_is_foretold(sources, tmp_path):
    """Bytes that a dry run tells are those that a run counts, slices and all."""
    native, hf, plan = sources["gpt_oss"]
    for model in (native, hf):
        words = ["apply", "--model", model, "--plan", plan, "--format", "safetensors", "--out", tmp_path / model.name]
        told = json.loads(mdp.succeed(2, *words, "--dry-run", "--json").stdout)
        mdp.succeed(2, *words, "--profile")
        counted = mdp.read_json(tmp_path / model.name / "profile.json")["passes"][0]["all"]["bytes_read"]["total"]
        assert counted == told["bytes_read"], model
