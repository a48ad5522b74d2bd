"""model.h5 is as good an input as the folder: the same plan, the same second pruning, for every family and stored type."""
import pytest

import mdp
import quantise
from families import write_tokens

NAMES = ["mixtral_bf16", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "glm4_moe", "ernie4_5_moe", "minimax_m2",
         "gpt_oss", "gpt_oss_mxfp4", "deepseek_v2", "deepseek_v3_fp8"]


def check(model, tmp_path):
    """Prune once into both containers, then again from each."""
    tokens = write_tokens(mdp.read_json(model / "config.json")["vocab_size"], tmp_path / "tokens.h5")
    n_expert = mdp.read_json(model / "config.json")
    n_expert = next(n_expert[key] for key in mdp.COUNT_KEYS if key in n_expert)
    once = ["run", "--tokens", tokens, "--method", "reap", "--format", "both"]
    mdp.succeed(2, *once, "--model", model, "--keep", n_expert - 1, "--out", tmp_path / "once")
    for name in ("hf", "model.h5"):
        mdp.succeed(1, *once, "--model", tmp_path / "once" / name, "--keep", n_expert - 2, "--out", tmp_path / f"twice-{name}")
    for name in ("plan.json", "stats.h5", "model.h5", "hf"):
        assert mdp.digests(tmp_path / "twice-hf" / name) == mdp.digests(tmp_path / "twice-model.h5" / name), name


@pytest.mark.parametrize("name", NAMES)
def test_second_pruning_is_the_same_from_either_container(name, tmp_path):
    check(mdp.GOLDEN / name, tmp_path)


def test_second_pruning_of_fp8_is_the_same_from_either_container(tmp_path):
    check(quantise.fp8(mdp.GOLDEN / "glm4_moe", tmp_path / "fp8", (16, 32)), tmp_path)
