"""Families whose routers choose by a bias or in groups: the same logits as transformers before and after pruning, and after it
those of the original with the removed experts at minus infinity when a token chooses.
"""
import pytest
import torch

import mdp
from families import SIZES, assert_dump_equals, assert_same_logits, load, masked, prune, save_random, write_tokens

ROUTED = dict(**SIZES, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
GROUPED = dict(**SIZES, n_routed_experts=12, n_group=3, topk_group=2, moe_intermediate_size=24, n_shared_experts=2,
               routed_scaling_factor=1.7)
ERNIE = dict(**SIZES, moe_num_experts=6, moe_k=2, moe_intermediate_size=24)
# The keys are those of transformers' classes; half of the experts go.
VARIANTS = {
    "glm4_moe": ("glm4_moe", dict(**ROUTED, head_dim=12)),
    "glm4_moe, groups, no dense layer, quarter rotary": ("glm4_moe", dict(
        **GROUPED, first_k_dense_replace=0, num_experts_per_tok=3, head_dim=16, partial_rotary_factor=0.25, attention_bias=True,
        use_qk_norm=True, norm_topk_prob=False)),
    "dots1": ("dots1", dict(**ROUTED, n_shared_experts=1, norm_topk_prob=True)),
    "dots1, groups, biases, window from layer 1 on": ("dots1", dict(
        **GROUPED, first_k_dense_replace=1, num_experts_per_tok=4, attention_bias=True, sliding_window=5, max_window_layers=1)),
    "ernie4_5_moe": ("ernie4_5_moe", ERNIE),
    "ernie4_5_moe, every second layer dense, untied, no shared expert": ("ernie4_5_moe", dict(
        **ERNIE, moe_layer_interval=2, moe_layer_start_index=0, tie_word_embeddings=False, moe_num_shared_experts=0)),
    "minimax_m2": ("minimax_m2", dict(**SIZES, num_local_experts=6, num_experts_per_tok=2, head_dim=16, rotary_dim=8)),
}
# How many experts the checkpoint keeps; groups must keep two each, and a token must find its own in those that it sees.
GOLDEN = {"glm4_moe": 6, "ernie4_5_moe": 4, "minimax_m2": 5}
COUNTS = ["num_local_experts", "n_routed_experts", "moe_num_experts"]


def count_key(folder):
    return next(key for key in COUNTS if key in mdp.read_json(folder / "config.json"))


def kept_of(plan):
    return {layer["layer"]: [expert["from"][0] for expert in layer["experts"]] for layer in mdp.read_json(plan)["layers"]}


def check(original, keep, tmp_path, form):
    """Prune to `keep` experts and compare; returns the pruned folder."""
    key, config = count_key(original), mdp.read_json(original / "config.json")
    tokens = write_tokens(config["vocab_size"], tmp_path / "tokens.h5")
    pruned = prune(original, tokens, keep, tmp_path / "out", form)
    assert mdp.read_json(pruned / "config.json") == {**config, key: keep}
    before, after = load(original), assert_same_logits(pruned, tokens, tmp_path, 1)
    smaller, n_sliced = after.state_dict(), 0
    for name, values in before.state_dict().items():
        bias = name.endswith("e_score_correction_bias")
        sliced = bias or ".experts." in name or name.endswith("mlp.gate.weight")
        n_sliced += sliced
        assert torch.equal(smaller[name], values) != sliced, name
        assert not sliced or smaller[name].shape == ((*values.shape[:-1], keep) if bias else (keep, *values.shape[1:])), name
    assert n_sliced > 0
    with masked(before, kept_of(tmp_path / "out" / "plan.json")):
        assert_dump_equals(tmp_path / f"{pruned.name}.h5", tokens, before)
    return pruned


@pytest.mark.parametrize("variant", VARIANTS)
def test_family_equals_transformers_before_and_after_pruning(variant, tmp_path):
    original = save_random(*VARIANTS[variant], tmp_path / "original")
    assert_same_logits(original, write_tokens(96, tmp_path / "tokens.h5"), tmp_path, 3)
    check(original, mdp.read_json(original / "config.json")[count_key(original)] // 2, tmp_path, "safetensors")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_checkpoint_loads_in_transformers_when_pruned(name, tmp_path):
    pruned = check(mdp.GOLDEN / name, GOLDEN[name], tmp_path, "both")
    mdp.succeed(3, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(pruned)
