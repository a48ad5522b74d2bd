"""The Python tools: tokenize reproduces the fixtures, make-shape-model writes what safetensors and transformers read."""
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from safetensors import safe_open

import mdp


def content(path):
    found = {}
    with h5py.File(path) as tokens:
        tokens.visititems(lambda name, item: found.update({name: (item.dtype, item[...].tolist(), item.chunks)})
                          if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("name", ["calib", "eval"])
def test_tokenize_reproduces_the_fixture(name, tmp_path):
    mdp.tool("tokenize", "--tokenizer", mdp.DEMO, "--sequence-length", 256, "--truncate", "--out", tmp_path / "t.h5",
             mdp.FIXTURES / "text" / f"{name}.jsonl")
    assert content(tmp_path / "t.h5") == content(mdp.FIXTURES / "text" / f"{name}.h5")


def test_tokenize_packs_documents_of_a_category(tmp_path):
    from tokenizers import Tokenizer
    texts = {"one.txt": "The quick brown fox. " * 30, "two.txt": "int main(void) { return 0; } " * 30}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    mdp.tool("tokenize", "--tokenizer", mdp.DEMO / "tokenizer.json", "--sequence-length", 50, "--pack", "--category", "mixed",
             "--out", tmp_path / "t.h5", tmp_path / "one.txt", tmp_path / "two.txt")
    tokenizer = Tokenizer.from_file(str(mdp.DEMO / "tokenizer.json"))
    want = [token for text in texts.values() for token in tokenizer.encode(text).ids]
    found = content(tmp_path / "t.h5")
    n = len(want) // 50
    assert found["mixed/offsets"][1] == list(range(0, 50 * n + 1, 50))
    assert found["mixed/input_ids"][1] == want[:50 * n]


def test_tokenize_takes_arrays(tmp_path):
    ids = np.arange(24).reshape(4, 6)
    np.save(tmp_path / "web.npy", ids)
    mdp.tool("tokenize", "--from-npy", "--sequence-length", 5, "--out", tmp_path / "t.h5", tmp_path / "web.npy")
    assert content(tmp_path / "t.h5")["web/input_ids"][1] == ids[:, :5].ravel().tolist()


@pytest.mark.parametrize("words, sentence", [
    (["no-such.txt"], "no-such.txt does not exist"),
    (["--sequence-length", "1", "x.txt"], "--sequence-length 1"),
    (["--pack", "x.txt"], "fewer tokens than one sequence"),
])
def test_tokenize_refuses(words, sentence, tmp_path):
    (tmp_path / "x.txt").write_text("short")
    result = subprocess.run([sys.executable, str(mdp.TOOLS / "tokenize"), "--tokenizer", str(mdp.DEMO), "--out", "t.h5", *words],
                            cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and sentence in result.stderr
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.parametrize("words", [[], ["--sparse", "--dtype", "f32", "--shard-size", "1MB"], ["--dtype", "f16", "--experts", 5]])
def test_shape_model_loads_in_transformers(words, tmp_path):
    mdp.tool("make-shape-model", "--hidden", 64, "--intermediate", 96, *words, "--out", tmp_path / "model")
    report = json.loads(mdp.tool("compare-with-transformers", tmp_path / "model", "--json").stdout)
    assert report["loading"] == []
    for path in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            assert all(shard.get_tensor(name).float().isfinite().all() for name in shard.keys())


SHAPES = mdp.read_json(mdp.TOOLS / "shapes.json")
# Small values for the keys of a configuration that have no option of their own.
SMALL = {"intermediate_size": 48, "shared_expert_intermediate_size": 40, "intermediate_size_mlp": 80, "head_dim": 16, "kv_lora_rank": 32,
         "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "rotary_dim": 8, "index_head_dim": 16,
         "index_n_heads": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "full_attention_interval": 2, "max_position_embeddings": 256}
OWN_INTERMEDIATE = {"moe_intermediate_size", "d_model"}


def small_words(name):
    """Options that make a published model tiny but leave its kind as it is."""
    config = SHAPES[name]["config"]
    small = {key: value for key, value in SMALL.items() if key in config}
    if not OWN_INTERMEDIATE & set(config):
        small.pop("intermediate_size")
    if config.get("q_lora_rank"):
        small["q_lora_rank"] = 24
    latent = "kv_lora_rank" in config
    return ["--model", name, "--hidden", 64, "--intermediate", 32, "--layers", max(2, config.get("first_k_dense_replace", 0) + 1), "--experts",
            16, "--top-k", min(2, config.get("num_experts_per_tok", 2)), "--heads", 4, "--kv-heads", 4 if latent else 2, "--vocab", 96,
            *(word for key, value in small.items() for word in ("--set", f"{key}={value}"))]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_the_tensors_of_its_family(name, tmp_path):
    """The program reads each; transformers finds every tensor and leaves none over, where it knows the model_type."""
    import transformers
    import families
    mdp.tool("make-shape-model", *small_words(name), "--dtype", "f32", "--out", tmp_path / "model")
    shape = json.loads(mdp.succeed(1, "inspect", tmp_path / "model", "--json").stdout)
    with safe_open(tmp_path / "model" / "model.safetensors", "np") as tensors:
        used = [name for name in tensors.keys() if ".indexer." not in name]  # which is not computed
        assert shape["parameters"] == sum(tensors.get_tensor(name).size for name in used)
    if shape["model_type"] == "kimi_k2":  # the same by another name
        config = mdp.read_json(tmp_path / "model" / "config.json")
        (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v3"}))
    if shape["model_type"] in transformers.CONFIG_MAPPING or shape["model_type"] == "kimi_k2":
        families.load(tmp_path / "model")
    else:
        assert shape["model_type"] == "deepseek"


def test_shapes_have_the_published_numbers_of_parameters():
    rows = [line.split() for line in mdp.tool("make-shape-model", "--list").stdout.splitlines()]
    listed = {name: float(billions) * 1e9 for name, _, billions, *_ in rows}
    published = {name: shape["parameters"] for name, shape in SHAPES.items() if "parameters" in shape}
    assert len(published) > 20 and {name: listed[name] for name in published} == pytest.approx(published, abs=1e6)


@pytest.mark.parametrize("words, sentence", [
    (["--experts", "4", "--top-k", "5"], "--top-k 5 is more than the 4 experts"),
    (["--layers", "0"], "--layers 0"),
    (["--mxfp4"], "gpt_oss"),
    (["--set", "rope_theta=x"], "not JSON"),
    (["--model", "deepseek-v3", "--experts", "12"], "12 experts do not divide into 8 groups"),
])
def test_shape_model_refuses(words, sentence, tmp_path):
    result = mdp.tool("make-shape-model", *words, "--out", tmp_path / "model", check=False)
    assert result.returncode == 1 and sentence in result.stderr and not (tmp_path / "model").exists()


def test_shape_model_depends_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        mdp.tool("make-shape-model", "--hidden", 64, "--seed", seed, "--out", tmp_path / name)
    assert mdp.digests(tmp_path / "a") == mdp.digests(tmp_path / "b")
    assert mdp.digests(tmp_path / "a")["model.safetensors"] != mdp.digests(tmp_path / "c")["model.safetensors"]


def test_source_follows_the_rules_of_the_house():
    result = subprocess.run([sys.executable, str(mdp.TOOLS / "style")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_style_notices_a_wrong_include(tmp_path):
    """A copy of the tree's skeleton with one file of linalg that includes engine."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "src" / "linalg").mkdir(parents=True)
    (tmp_path / "CMakeLists.txt").write_text("")
    (tmp_path / "tools" / "style").write_text((mdp.TOOLS / "style").read_text())
    (tmp_path / "src" / "linalg" / "x.c").write_text('/* x */\n#include "mdp/engine.h"\n#include "mdp/base.h"\n')
    result = subprocess.run([sys.executable, str(tmp_path / "tools" / "style")], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "src/linalg/x.c:2: linalg includes engine" in result.stdout
