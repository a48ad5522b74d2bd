"""Families whose routers choose by a bias or in groups: the same logits as transformers before and after pruning, and after it
those of the original with the removed experts at minus infinity when a token chooses.
"""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mdp
from families import SIZES, assert_dump_equals, assert_same_logits, load, masked, prune, pruned_config, save_random, write_tokens

ROUTED = dict(**SIZES, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
GROUPED = dict(**SIZES, n_routed_experts=12, n_group=3, topk_group=2, moe_intermediate_size=24, n_shared_experts=2,
               routed_scaling_factor=1.7)
EXPERTS = dict(**SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
INDEXER = dict(index_topk=40, index_n_heads=2, index_head_dim=16)  # no sequence of the tests is longer
ERNIE = dict(**SIZES, moe_num_experts=6, moe_k=2, moe_intermediate_size=24)
LATENT = dict(num_key_value_heads=4, kv_lora_rank=16, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=14)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=8.0, mscale=0.9, mscale_all_dim=0.6, original_max_position_embeddings=32)
# The keys are those of transformers' classes; half of the experts go.
VARIANTS = {
    "glm4_moe": ("glm4_moe", dict(**ROUTED, head_dim=12)),
    "glm4_moe, groups, no dense layer, quarter rotary": ("glm4_moe", dict(
        **GROUPED, first_k_dense_replace=0, num_experts_per_tok=3, head_dim=16, partial_rotary_factor=0.25, attention_bias=True,
        use_qk_norm=True, norm_topk_prob=False)),
    "solar_open, groups, biases": ("solar_open", dict(**GROUPED, num_experts_per_tok=3, head_dim=16, attention_bias=True)),
    "dots1": ("dots1", dict(**ROUTED, n_shared_experts=1, norm_topk_prob=True)),
    "dots1, groups, biases, window from layer 1 on": ("dots1", dict(
        **GROUPED, first_k_dense_replace=1, num_experts_per_tok=4, attention_bias=True, sliding_window=5, max_window_layers=1)),
    "ernie4_5_moe": ("ernie4_5_moe", ERNIE),
    "ernie4_5_moe, every second layer dense, untied, no shared expert": ("ernie4_5_moe", dict(
        **ERNIE, moe_layer_interval=2, moe_layer_start_index=0, tie_word_embeddings=False, moe_num_shared_experts=0)),
    "deepseek_v2, whole queries": ("deepseek_v2", dict(**{**ROUTED, **LATENT}, q_lora_rank=None, first_k_dense_replace=1)),
    "deepseek_v2, groups, yarn, biases": ("deepseek_v2", dict(
        **{**GROUPED, **LATENT}, q_lora_rank=20, num_experts_per_tok=3, topk_method="group_limited_greedy", attention_bias=True,
        rope_parameters=YARN)),
    "deepseek_v3, groups, yarn": ("deepseek_v3", dict(
        **{**GROUPED, **LATENT}, q_lora_rank=20, num_experts_per_tok=4, first_k_dense_replace=1, rope_parameters=YARN)),
    "deepseek_v3, whole queries, rotated halves, biases, unnormalised": ("deepseek_v3", dict(
        **{**ROUTED, **LATENT}, q_lora_rank=None, n_group=1, topk_group=1, first_k_dense_replace=0, rope_interleave=False,
        attention_bias=True, norm_topk_prob=False)),
    "glm4_moe_lite": ("glm4_moe_lite", dict(
        **{**ROUTED, **LATENT}, q_lora_rank=20, mlp_layer_types=["sparse", "dense", "sparse"])),
    "deepseek_v32, groups, yarn": ("deepseek_v32", dict(
        **{**GROUPED, **LATENT}, **INDEXER, q_lora_rank=20, num_experts_per_tok=4, first_k_dense_replace=1, rope_parameters=YARN)),
    "glm_moe_dsa, biases, layers that share an indexer": ("glm_moe_dsa", dict(
        **{**ROUTED, **LATENT}, **INDEXER, q_lora_rank=20, mlp_layer_types=["sparse", "dense", "sparse"], attention_bias=True,
        indexer_types=["full", "shared", "full"])),
    "hy_v3, biases, two shared experts, other dense layers": ("hy_v3", dict(
        **EXPERTS, head_dim=8, attention_bias=True, num_shared_experts=2, mlp_layer_types=["sparse", "dense", "sparse"])),
    "exaone_moe, every second layer sees all and is not rotated": ("exaone_moe", dict(
        **EXPERTS, head_dim=10, sliding_window=5, sliding_window_pattern=2)),
    "exaone_moe, groups, types of layers, unnormalised, two shared experts": ("exaone_moe", dict(
        **{**EXPERTS, "num_experts": 12}, n_group=3, topk_group=2, head_dim=8, sliding_window=7, norm_topk_prob=False,
        num_shared_experts=2, layer_types=["full_attention", "sliding_attention", "full_attention"], first_k_dense_replace=0)),
    "minimax_m2": ("minimax_m2", dict(**SIZES, num_local_experts=6, num_experts_per_tok=2, head_dim=16, rotary_dim=8)),
}
# How many experts the checkpoint keeps; groups must keep two each, and a token must find its own in those that it sees.
GOLDEN = {"deepseek_v2": 4, "deepseek_v2_group": 8, "deepseek_v3": 8, "glm4_moe": 6, "ernie4_5_moe": 4, "minimax_m2": 5}
COUNTS = ["num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts"]


def count_key(folder):
    return next(key for key in COUNTS if key in mdp.read_json(folder / "config.json"))


def kept_of(plan):
    return {layer["layer"]: [expert["from"][0] for expert in layer["experts"]] for layer in mdp.read_json(plan)["layers"]}


def check(original, keep, tmp_path, form):
    """Prune to `keep` experts and compare; returns the pruned folder."""
    key, config = count_key(original), mdp.read_json(original / "config.json")
    tokens = write_tokens(config["vocab_size"], tmp_path / "tokens.h5")
    pruned = prune(original, tokens, keep, tmp_path / "out", form)
    assert mdp.read_json(pruned / "config.json") == pruned_config(config, **{key: keep})
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


def test_sequences_in_which_an_indexer_would_choose_are_refused(tmp_path):
    original = save_random("deepseek_v32", {**VARIANTS["deepseek_v32, groups, yarn"][1], "index_topk": 39}, tmp_path / "original")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    mdp.refuse(2, 65, r"a sequence has 40 tokens; beyond 39 \(index_topk\) .* sequences of at most 39", "eval", "--model", original,
               "--tokens", tokens, "--out", tmp_path / "eval.json")


def test_deepseek_equals_what_it_is_of_another_family(tmp_path):
    """transformers has no class for the first DeepSeek-MoE. A qwen2_moe whose shared expert's gate is always one half, and whose
    shared expert gives twice as much, computes the same."""
    sizes = dict(**SIZES, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
    twin = save_random("qwen2_moe", dict(**sizes, num_experts=6, shared_expert_intermediate_size=48, qkv_bias=False,
                                         mlp_only_layers=[0]), tmp_path / "twin")
    tensors, ours = load_file(twin / "model.safetensors"), {}
    for name, values in tensors.items():
        if name.endswith("shared_expert_gate.weight"):
            values.zero_()
        else:
            ours[name.replace("shared_expert.", "shared_experts.")] = values.clone()
        if name.endswith("shared_expert.down_proj.weight"):
            values *= 2
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / "deepseek"
    folder.mkdir()
    save_file(ours, folder / "model.safetensors", metadata={"format": "pt"})
    config = dict(**sizes, model_type="deepseek", n_routed_experts=6, n_shared_experts=2, first_k_dense_replace=1, moe_layer_freq=1,
                  scoring_func="softmax", rms_norm_eps=1e-6)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    mdp.succeed(2, "eval", "--model", folder, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    assert_dump_equals(tmp_path / "dump.h5", tokens, load(twin))


def test_kimi_k2_is_a_deepseek_v3(tmp_path):
    folder = save_random(*VARIANTS["deepseek_v3, groups, yarn"], tmp_path / "original")
    tokens = write_tokens(96, tmp_path / "tokens.h5")
    theirs, config = load(folder), mdp.read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "kimi_k2"}), encoding="utf-8")
    mdp.succeed(2, "eval", "--model", folder, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    assert_dump_equals(tmp_path / "dump.h5", tokens, theirs)


def with_extra_layer(tmp_path):
    """What public checkpoints hold after their last layer: another one with experts, and the tensors that lead into and out of it."""
    folder, extra = tmp_path / "with-extra", "model.layers.3."
    folder.mkdir()
    tensors = load_file(mdp.GOLDEN / "deepseek_v3" / "model.safetensors")
    tensors |= {name.replace("model.layers.2.", extra): values + 1 for name, values in tensors.items() if name.startswith("model.layers.2.")}
    tensors |= {extra + "eh_proj.weight": torch.ones(64, 128), extra + "shared_head.head.weight": torch.ones(512, 64)}
    config = {**mdp.read_json(mdp.GOLDEN / "deepseek_v3" / "config.json"), "num_nextn_predict_layers": 1}
    save(tensors, config, folder)
    return folder, tensors, config


def save(tensors, config, folder):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_layers_that_predict_further_tokens_travel_along_and_leave_when_experts_do(tmp_path):
    folder, tensors, config = with_extra_layer(tmp_path)
    tokens = write_tokens(512, tmp_path / "tokens.h5")
    mdp.succeed(2, "eval", "--model", folder, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    assert_dump_equals(tmp_path / "dump.h5", tokens, load(mdp.GOLDEN / "deepseek_v3"))
    mdp.succeed(2, "export", "--model", folder, "--out", tmp_path / "copy")
    assert mdp.read_json(tmp_path / "copy" / "config.json") == config
    copied = load_file(tmp_path / "copy" / "model.safetensors")
    assert copied.keys() == tensors.keys() and all(torch.equal(copied[name], tensors[name]) for name in tensors)
    pruned = prune(folder, tokens, 8, tmp_path / "out", "both")
    assert mdp.read_json(pruned / "config.json") == {**config, "n_routed_experts": 8, "num_nextn_predict_layers": 0}
    assert not any(name.startswith("model.layers.3.") for name in load_file(pruned / "model.safetensors"))
    assert_same_logits(pruned, tokens, tmp_path, 1)
    mdp.succeed(1, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(pruned)
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}), encoding="utf-8")
    mdp.refuse(1, 65, r"belongs to an expert of layer 3, but config.json says 3 layers", "inspect", folder)


def by_aimer(tensors, layer, n_expert, n_group, keep):
    """The experts of a layer that its weights speak for: the largest -mean |w| / RMS(w), equally many in each group."""
    def score(expert):
        parts = [tensors[f"{layer}mlp.experts.{expert}.{part}_proj.weight"].double().flatten() for part in ("gate", "up", "down")]
        values = torch.cat(parts)
        return float(-values.abs().mean() / values.square().mean().sqrt())
    groups = [range(first, first + n_expert // n_group) for first in range(0, n_expert, n_expert // n_group)]
    return sorted(expert for group in groups for expert in sorted(group, key=score)[-keep // n_group:])


def test_layers_that_predict_further_tokens_are_pruned_to_as_many_experts(tmp_path):
    """--mtp prune: the layer stays, with as many experts as config.json says, and everything of an expert moves with it."""
    folder, tensors, config = with_extra_layer(tmp_path)
    tokens, extra = write_tokens(512, tmp_path / "tokens.h5"), "model.layers.3."
    mdp.succeed(3, "run", "--model", folder, "--tokens", tokens, "--method", "reap", "--keep", 8, "--format", "both", "--mtp", "prune",
                "--out", tmp_path / "out")
    pruned = tmp_path / "out" / "hf"
    assert mdp.read_json(pruned / "config.json") == {**config, "n_routed_experts": 8}
    kept, found = by_aimer(tensors, extra, 16, config["n_group"], 8), load_file(pruned / "model.safetensors")
    want = {name: values for name, values in tensors.items() if name.startswith(extra) and ".experts." not in name}
    for name in ("gate.weight", "gate.e_score_correction_bias"):
        want[f"{extra}mlp.{name}"] = tensors[f"{extra}mlp.{name}"][kept]
    for number, expert in enumerate(kept):
        for part in ("gate", "up", "down"):
            name = f"{extra}mlp.experts.{{}}.{part}_proj.weight"
            want[name.format(number)] = tensors[name.format(expert)]
    assert {name for name in found if name.startswith(extra)} == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    mdp.succeed(2, "eval", "--model", pruned, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    (tmp_path / "main").mkdir()  # transformers ignores such layers by the number that the published model gives them
    save({name: values for name, values in found.items() if not name.startswith(extra)}, mdp.read_json(pruned / "config.json"),
         tmp_path / "main")
    assert_dump_equals(tmp_path / "dump.h5", tokens, load(tmp_path / "main"))
    mdp.succeed(1, "apply", "--model", folder, "--plan", tmp_path / "out" / "plan.json", "--mtp", "prune", "--format", "both",
                "--out", tmp_path / "applied")
    mdp.succeed(2, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    for other in (tmp_path / "applied" / "hf", tmp_path / "exported"):
        assert mdp.digests(other) == mdp.digests(pruned)
    assert (tmp_path / "applied" / "model.h5").read_bytes() == (tmp_path / "out" / "model.h5").read_bytes()


def test_layers_that_predict_further_tokens_are_pruned_again_from_either_container(tmp_path):
    """By the plan's own method where that reads weights alone, here router rows."""
    folder, tensors, _ = with_extra_layer(tmp_path)
    words = ["run", "--tokens", write_tokens(512, tmp_path / "tokens.h5"), "--method", "router-norm", "--format", "both", "--mtp", "prune"]
    mdp.succeed(2, *words, "--model", folder, "--keep", 12, "--out", tmp_path / "first")
    for name in ("model.h5", "hf"):
        mdp.succeed(2, *words, "--model", tmp_path / "first" / name, "--keep", 8, "--out", tmp_path / name)
    first, second = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("model.h5", "hf"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    rows = tensors["model.layers.3.mlp.gate.weight"]
    kept = sorted(e for first in range(0, 16, 4) for e in sorted(range(first, first + 4), key=lambda e: float(rows[e].double().norm()))[-2:])
    assert torch.equal(first["model.layers.3.mlp.gate.weight"], rows[kept])


def test_what_cannot_be_renumbered_in_a_layer_that_predicts_further_tokens_is_refused(tmp_path):
    folder, tensors, config = with_extra_layer(tmp_path)
    save(tensors | {"model.layers.3.mlp.experts.0.extra.weight": torch.ones(2, 2)}, config, folder)
    tokens = write_tokens(512, tmp_path / "tokens.h5")
    mdp.refuse(2, 65, r"layers.3.mlp.experts.0.extra.weight' lies among the experts of a layer that predicts .* use --mtp drop", "run",
               "--model", folder, "--tokens", tokens, "--method", "reap", "--keep", 8, "--mtp", "prune", "--out", tmp_path / "out")
    mdp.succeed(2, "run", "--model", folder, "--tokens", tokens, "--method", "reap", "--keep", 8, "--mtp", "drop", "--out", tmp_path / "out")


@pytest.mark.parametrize("words, sentence", [
    (("--keep", 6), r"layer 1: 6 experts to keep are not a multiple of 4"),
    (("--keep", 4), r"layer 1: keeping 4 experts leaves 1 to each of the 4 groups, of which a token sees 2 .* keep 8 or more"),
    (("--keep-ratio", 0.3), r"keep 8 or more"),
    (("--budget", "global", "--keep", 7), r"layer 1: keeping 7 experts .* keep 8 or more"),
])
def test_what_groups_cannot_keep_is_refused_before_anything_runs(words, sentence, tmp_path):
    tokens = mdp.golden_tokens("deepseek_v3", tmp_path / "tokens.h5")
    mdp.refuse(2, 2, sentence, "run", "--model", mdp.GOLDEN / "deepseek_v3", "--tokens", tokens, "--method", "reap", *words,
               "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_checkpoint_loads_in_transformers_when_pruned(name, tmp_path):
    pruned = check(mdp.GOLDEN / name, GOLDEN[name], tmp_path, "both")
    mdp.succeed(3, "export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "exported")
    assert mdp.digests(tmp_path / "exported") == mdp.digests(pruned)
