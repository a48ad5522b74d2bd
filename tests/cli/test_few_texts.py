"""Few packs of text, or one that is long: the ranks of a node attend to them together, with the same bytes as one rank, and share the work."""
import json
import re

import numpy as np
import pytest
import torch
import transformers

import mdp

LINEAR = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              linear_num_key_heads=2, linear_key_head_dim=12, linear_num_value_heads=4, linear_value_head_dim=18, head_dim=16, num_experts=6,
              num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=20,
              layer_types=["linear_attention", "full_attention"])
LAYOUTS = [(2, {}), (3, {}), (4, {}), (8, {}), (4, {"MDP_RANKS_PER_NODE": "2"}), (8, {"MDP_RANKS_PER_NODE": "3"})]
NOT_SHARED = {"MDP_SHARED_MAX": "1"}  # no node has memory in common


def write_tokens(path, lengths, vocabulary=96):
    choose = np.random.default_rng(3)
    return mdp.write_tokens(path, {"text": [choose.integers(0, vocabulary, n) for n in lengths]})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Softmax, latent and linear attention (the last with gated softmax attention in every other layer)."""
    folder = tmp_path_factory.mktemp("linear")
    torch.manual_seed(5)
    transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**LINEAR)).save_pretrained(folder)
    return {"softmax": mdp.GOLDEN / "mixtral", "latent": mdp.GOLDEN / "deepseek_v3", "linear": folder}


def run(model, tokens, ranks, out, env=None):
    """Digest of the statistics, what was measured before and after pruning, and what was said."""
    words = ["run", "--model", model, "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep-ratio", 0.75, "--out", out]
    result = mdp.succeed(ranks, *words, env=env)
    measured = [{**stream, "plan": None} for stream in mdp.read_json(out / "eval.json")["streams"]]  # it names a file
    return mdp.digests(out / "stats.h5"), measured, result.stderr


@pytest.mark.parametrize("lengths, layouts", [((1100, 1, 150, 64, 23), LAYOUTS), ((*[200] * 12, 2300, *[170] * 12), LAYOUTS[1::3])],
                         ids=["few", "one-long"])
@pytest.mark.parametrize("attention", ["softmax", "latent", "linear"])
def test_bytes_are_those_of_one_rank(attention, lengths, layouts, models, tmp_path):
    """Two packs, the first of one text of several tiles and the second of texts of all lengths; or nine, one of them long."""
    tokens = write_tokens(tmp_path / "tokens.h5", lengths)
    stats, evaluation, _ = run(models[attention], tokens, 1, tmp_path / "one")
    for number, (ranks, env) in enumerate(layouts):
        found, again, said = run(models[attention], tokens, ranks, tmp_path / str(number), env)
        assert found == stats and again == evaluation and "not shared" not in said, (ranks, env, said)


def attention_flop(ranks, model, tokens, out, env=None):
    result = mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out, "--profile", env=env)
    passes = mdp.read_json(f"{out}.profile.json")["passes"]
    return passes[0]["phases"]["attention"]["flop"], result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Items enough for 4 ranks."""
    folder = tmp_path_factory.mktemp("model")
    mdp.tool("make-shape-model", "--model", "mixtral-8x7b", "--hidden", 256, "--intermediate", 64, "--layers", 1, "--experts", 4, "--vocab", 96,
             "--heads", 8, "--kv-heads", 2, "--out", folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def long_text(model):
    """A model and one text."""
    return model, write_tokens(model.parent / "tokens.h5", [3000])


@pytest.mark.parametrize("lengths", [[3000], [*[500] * 8, 4000, *[500] * 8]], ids=["one", "one-of-many"])
def test_the_work_of_a_long_text_is_shared(lengths, model, tmp_path):
    """Nothing is computed twice, and no rank has much more than the mean; alone, one rank would have most."""
    tokens = write_tokens(tmp_path / "tokens.h5", lengths)
    one, _ = attention_flop(1, model, tokens, tmp_path / "1.h5")
    four, result = attention_flop(4, model, tokens, tmp_path / "4.h5")
    alone, _ = attention_flop(4, model, tokens, tmp_path / "alone.h5", NOT_SHARED)
    assert alone["max"] > 1.5 * alone["mean"]
    assert four["total"] == one["total"] == alone["total"]
    assert four["max"] <= 1.1 * four["mean"], four
    assert "not shared" not in result.stderr
    assert (tmp_path / "4.h5").read_bytes() == (tmp_path / "1.h5").read_bytes()


def test_a_dry_run_foretells_the_shared_work_of_linear_attention(models, tmp_path):
    """test_profile.py does so for the others."""
    words = ["observe", "--model", models["linear"], "--tokens", write_tokens(tmp_path / "tokens.h5", (1100, 1, 150, 64, 23))]
    dry = mdp.succeed(1, *words, "--out", tmp_path / "dry.h5", "--dry-run", "--json", "--gflops-per-rank", 50, "--ranks", 4)
    mdp.succeed(4, *words, "--out", tmp_path / "stats.h5", "--profile")
    counted = mdp.read_json(tmp_path / "stats.h5.profile.json")["passes"][0]["all"]["flop"]["total"]
    assert json.loads(dry.stdout)["flop"] == counted


def test_without_memory_in_common_a_rank_attends_alone_and_says_so(long_text, tmp_path):
    alone, result = attention_flop(4, *long_text, tmp_path / "alone.h5", NOT_SHARED)
    assert alone["max"] == alone["total"]
    said = re.findall(r"^.*not shared.*$", result.stderr, re.M)
    assert len(said) == 1 and re.search(r"memory that the ranks of a node share are needed, and /dev/shm has room for 1 B", said[0]), result.stderr
    attention_flop(2, *long_text, tmp_path / "2.h5")
    assert (tmp_path / "alone.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


def test_a_rank_that_fails_in_a_step_does_not_leave_the_others_waiting(long_text, tmp_path):
    """The rank holds no text: until tokens travel, all that it reads and takes from memory is for the text of another."""
    words = ["observe", "--model", long_text[0], "--tokens", long_text[1], "--out", tmp_path / "stats.h5"]
    counted = mdp.succeed(4, *words, "--log-level", "debug", env=NOT_SHARED)
    n = max(int(line.split()[-3]) for line in counted.stderr.splitlines() if line.endswith(" fallible operations"))
    codes = set()  # attention is in the first half of what happens
    for operation in range(n // 3, n * 3 // 5, n // 25):
        result = mdp.run(4, *words, "--overwrite", "--fault-every", 10**9, "--fault-seed", 10**9 - operation, "--fault-rank", 1)
        assert len(set(result.codes)) == 1 and result.codes[0] in (0, 71, 74), str(result)
        assert len(result.errors()) == (result.codes[0] != 0), str(result)
        codes.add(result.codes[0])
    assert codes & {71, 74}
