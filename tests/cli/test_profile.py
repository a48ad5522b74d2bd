"""--profile: where the time of a pass goes, and what is counted on the way."""
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import mdp


def profile_of(ranks, tmp_path, command, model, tokens, *words):
    """The passes of a command, by name."""
    out = tmp_path / f"{command}-{ranks}.out"
    said = mdp.succeed(ranks, command, "--model", model, "--tokens", tokens, "--out", out, "--profile", *words)
    assert "profile  " in said.stderr and "attention" in said.stderr, str(said)
    found = mdp.read_json(f"{out}.profile.json")
    assert found["format"] == "moe-dist-prune profile"
    return {one["pass"]: one for one in found["passes"]}


@pytest.mark.parametrize("ranks", [1, 4])
def test_phases_add_up_to_the_pass(ranks, tmp_path):
    tokens = mdp.golden_tokens("qwen2_moe", tmp_path / "tokens.h5")
    one = profile_of(ranks, tmp_path, "eval", mdp.GOLDEN / "qwen2_moe", tokens)["eval"]
    assert one["ranks"] == ranks
    for column in ("seconds", "flop", "bytes_read", "bytes_sent"):
        whole = one["all"][column]["mean"]
        assert sum(phase[column]["mean"] for phase in one["phases"].values()) == pytest.approx(whole, rel=1e-6)
        assert all(phase[column]["min"] <= phase[column]["mean"] * 1.000001 for phase in one["phases"].values())
    assert one["phases"]["attention"]["seconds"]["min"] > 0.0
    assert (one["all"]["bytes_sent"]["total"] > 0) == (ranks > 1)


def test_operations_are_those_of_transformers_on_any_ranks(tmp_path):
    # Sequences of one token: nothing but itself to attend to, so that eager attention computes no masked products.
    folder, n_token = mdp.GOLDEN / "qwen2_moe", 700
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"text": [[i % 512] for i in range(n_token)]})
    found = [profile_of(ranks, tmp_path, "eval", folder, tokens)["eval"] for ranks in (1, 3)]
    for phase in found[0]["phases"]:
        assert found[0]["phases"][phase]["flop"]["total"] == found[1]["phases"][phase]["flop"]["total"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                              experts_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.tensor([[3]]), use_cache=False)
    assert found[0]["all"]["flop"]["total"] == pytest.approx(n_token * counter.get_total_flops(), rel=0.002)
    config = model.config
    n_sparse = sum(hasattr(layer.mlp, "experts") for layer in model.model.layers)
    experts = 6 * config.hidden_size * config.moe_intermediate_size * config.num_experts_per_tok * n_sparse
    assert found[0]["phases"]["experts"]["flop"]["total"] == n_token * experts
    head = 2 * config.hidden_size * config.vocab_size
    assert found[0]["phases"]["head"]["flop"]["total"] == n_token * head


def test_run_writes_the_profile_of_each_pass_into_its_folder(tmp_path):
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    mdp.succeed(2, "run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep",
                6, "--out", tmp_path / "out", "--profile")
    passes = mdp.read_json(tmp_path / "out" / "profile.json")["passes"]
    assert [one["pass"] for one in passes] == ["observe", "eval"]
    assert passes[0]["phases"]["observers"]["seconds"]["max"] > 0.0
    assert passes[0]["phases"]["head"]["flop"]["total"] == 0 < passes[1]["phases"]["head"]["flop"]["total"]
