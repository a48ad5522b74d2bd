"""What is foretold from headers alone: work as torch counts it in transformers' forward pass, parameters and bytes as stored."""
import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import mdp

NAMES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe", "ernie4_5_moe", "minimax_m2", "deepseek_v2", "deepseek_v3"]


def flop_of_one_token(folder):
    """Of its matrix products, which is all but a few parts in a thousand."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                              experts_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.tensor([[3]]), use_cache=False)
    return counter.get_total_flops()


def number(pattern, text):
    value, unit = re.search(pattern, text).groups()
    return float(value) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit]


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_foretells_work_and_reading(name, tmp_path):
    # Sequences of one token: nothing but itself to attend to, so that eager attention computes no masked products.
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"text": [[i % 512] for i in range(1000)]})
    said = mdp.succeed(1, "eval", "--model", mdp.GOLDEN / name, "--tokens", tokens, "--out", tmp_path / "eval.json", "--dry-run")
    text = said.stdout + said.stderr
    work = number(r"eval ([\d.]+) ([kMG])FLOP\b", text)
    assert abs(work - 1000 * flop_of_one_token(mdp.GOLDEN / name)) <= 0.01 * work, text
    tensors = [load_file(path) for path in sorted((mdp.GOLDEN / name).glob("*.safetensors"))]
    rows = "embed_tokens" if any("lm_head.weight" in file for file in tensors) else None  # a tied embedding is read as the head
    n_byte = sum(t.numel() * t.element_size() for file in tensors for key, t in file.items() if rows is None or rows not in key)
    assert abs(number(r"read ([\d.]+) ([kMG])B", text) - n_byte) <= 0.05e6 + 0.001 * n_byte, text


@pytest.mark.parametrize("name", NAMES)
def test_parameters_in_all_and_of_one_token(name):
    model = mdp.GOLDEN / name
    config = mdp.read_json(model / "config.json")
    said = mdp.succeed(1, "inspect", "--json", model)
    found = json.loads(said.stdout)
    sizes = {key: t.numel() for path in model.glob("*.safetensors") for key, t in load_file(path).items()}
    experts = sum(n for key, n in sizes.items() if ".experts." in key)
    n_expert = next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts") if key in config)
    top_k = config.get("num_experts_per_tok", config.get("moe_k"))
    assert found["parameters"] == sum(sizes.values())
    assert found["active_parameters"] == sum(sizes.values()) - experts * (n_expert - top_k) // n_expert
