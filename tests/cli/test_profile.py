"""--profile: where the time of a pass goes, and what is counted on the way."""
import json
import re

import numpy as np
import pytest
import safetensors.torch
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
    assert [one["pass"] for one in passes] == ["observe", "eval", "write model.h5"]
    assert passes[0]["phases"]["observers"]["seconds"]["max"] > 0.0
    assert passes[0]["phases"]["head"]["flop"]["total"] == 0 < passes[1]["phases"]["head"]["flop"]["total"]


def foretold(ranks, tmp_path, *words):
    """--dry-run --json, for a job that is started on one rank only."""
    said = mdp.succeed(1, *words, "--out", tmp_path / "dry.json", "--dry-run", "--json", "--gflops-per-rank", 50, "--ranks", ranks)
    return json.loads(said.stdout)


# Latent attention, groups of experts and a shared expert; codes with scales and biases of experts; a shared expert with a gate.
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3_fp8", "gpt_oss_mxfp4", "qwen2_moe"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_dry_run_foretells_what_a_run_counts(name, ranks, tmp_path):
    # So few tokens that an expert's rows are one tile, so many that every expert has some: then routing cannot matter to bytes.
    choose = np.random.default_rng(5)
    lengths = {"a": (130, 17, 90), "b": (64, 200, 5)}
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {c: [choose.integers(0, 512, n) for n in all] for c, all in lengths.items()})
    words = ["--model", mdp.GOLDEN / name, "--tokens", tokens]
    said = foretold(ranks, tmp_path, "eval", *words)
    counted = profile_of(ranks, tmp_path, "eval", mdp.GOLDEN / name, tokens)["eval"]["all"]
    assert said["ranks"] == ranks
    assert said["flop"] == said["all_ranks"]["flop"] == counted["flop"]["total"]
    assert said["all_ranks"]["bytes_read"] == counted["bytes_read"]["total"]
    assert said["all_ranks"]["bytes_sent"] == pytest.approx(counted["bytes_sent"]["total"], rel=0.25)
    assert said["least_of_a_rank"]["flop"] <= said["flop"] / ranks <= said["most_of_a_rank"]["flop"]


def sent(ranks, per_node, tmp_path, model, lengths):
    """Bytes from rank to rank, and of them from node to node, as foretold and as counted."""
    choose = np.random.default_rng(5)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [choose.integers(0, 256, n) for n in lengths]})
    words = ["eval", "--model", model, "--tokens", tokens]
    said = foretold(ranks, tmp_path, *words, "--ranks-per-node", per_node)["all_ranks"]
    mdp.succeed(ranks, *words, "--out", tmp_path / "eval.json", "--profile", env={"MDP_RANKS_PER_NODE": str(per_node)})
    counted = mdp.read_json(tmp_path / "eval.json.profile.json")["passes"][0]["all"]
    return [[said[key], counted[key]["total"]] for key in ("bytes_sent", "bytes_sent_between_nodes")]


# Nodes of unequal ranks; nodes of one rank, to which no row goes by way of another; rows of a node handed on.
@pytest.mark.parametrize("ranks, per_node", [(4, 1), (4, 2), (5, 3)])
def test_bytes_sent_are_foretold_exactly_where_every_token_uses_every_expert(ranks, per_node, tmp_path):
    mdp.tool("make-shape-model", "--hidden", 64, "--intermediate", 64, "--layers", 2, "--vocab", 256, "--experts", 3, "--top-k", 3, "--out",
             tmp_path / "model")
    for said, counted in sent(ranks, per_node, tmp_path, tmp_path / "model", [700] * 12):
        assert said == counted > 0


@pytest.mark.parametrize("name, ranks, per_node", [("qwen2_moe", 4, 4), ("deepseek_v3", 4, 2), ("mixtral", 8, 3)])
def test_bytes_sent_are_foretold_to_a_tenth_where_routing_is_unknown(name, ranks, per_node, tmp_path):
    for said, counted in sent(ranks, per_node, tmp_path, mdp.GOLDEN / name, [130, 300, 90, 600, 250, 64, 200, 5, 100, 700, 800, 30]):
        assert said == pytest.approx(counted, rel=0.1)


def test_each_round_is_foretold_for_the_experts_that_it_finds(tmp_path):
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    words = ["run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--method", "reap", "--keep", 2, "--rounds", 3]
    said = foretold(1, tmp_path, *words)
    mdp.succeed(1, *words, "--out", tmp_path / "out", "--profile")
    counted = mdp.read_json(tmp_path / "out" / "profile.json")["passes"]
    flop = [one["all"]["flop"]["total"] for one in counted]
    assert [one["all_ranks"]["flop"] for one in said["passes"]] == flop and flop[0] > flop[1] > flop[2] > flop[3] == 0
    assert [one["pass"] for one in said["passes"]] == ["observe", "observe, round 2 of 3", "observe, round 3 of 3", "write model.h5"]
    assert said["flop"] == sum(flop)
    read = [one["all"]["bytes_read"]["total"] for one in counted]
    assert said["passes"][3]["all_ranks"]["bytes_read"] == read[3]  # of whichever experts stay


def test_a_dry_run_foretells_both_passes_of_run(tmp_path):
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    words = ["run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep", 6]
    said = foretold(2, tmp_path, *words)
    mdp.succeed(2, *words, "--out", tmp_path / "out", "--profile")
    counted = mdp.read_json(tmp_path / "out" / "profile.json")["passes"]
    assert said["flop"] == sum(one["all"]["flop"]["total"] for one in counted)


def test_a_dry_run_is_about_any_number_of_ranks_and_nodes(tmp_path):
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    words = ["eval", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens]
    said = {ranks: foretold(ranks, tmp_path, *words, "--ranks-per-node", 8) for ranks in (1, 64)}
    assert [said[64][key] for key in ("ranks", "nodes")] == [64, 8] and said[1]["nodes"] == 1
    assert said[1]["flop"] == said[64]["flop"]
    assert said[64]["most_of_a_rank"]["flop"] < said[1]["flop"]
    mdp.refuse(1, 2, "--ranks asks about ranks that need not exist, so it goes with --dry-run only", *words, "--out", tmp_path / "e",
               "--ranks", 3)


# ---- writing

@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """33 MB."""
    return mdp.make_pruned(tmp_path_factory.mktemp("pruned"), 4, "--hidden", 512, "--intermediate", 512, "--layers", 2, "--experts", 8,
                           "--vocab", 4096)


def size_of(path):
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


RESULTS = {"hdf5": {"write model.h5": "model.h5"}, "safetensors": {"write hf": "hf"}}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("form", ["hdf5", "safetensors"])
def test_writing_has_a_profile_whose_bytes_are_foretold_exactly(form, ranks, pruned, tmp_path):
    out = tmp_path / "out"
    said = json.loads(mdp.succeed(1, *mdp.apply_to(pruned, out, form, "--dry-run", "--json", "--ranks", ranks)).stdout)
    assert not out.exists()
    mdp.succeed(ranks, *mdp.apply_to(pruned, out, form, "--profile"))
    (one,) = mdp.read_json(out / "profile.json")["passes"]
    result = out / RESULTS[form][one["pass"]]
    for column in ("seconds", "bytes_read", "bytes_written"):
        assert sum(phase[column]["mean"] for phase in one["phases"].values()) == pytest.approx(one["all"][column]["mean"], rel=1e-6)
    assert said["bytes_written"] == one["all"]["bytes_written"]["total"] == size_of(result)
    assert said["bytes_read"] == one["all"]["bytes_read"]["total"]
    for key, of in (("least_of_a_rank", "min"), ("most_of_a_rank", "max")):
        assert said[key]["bytes_read"] == one["all"]["bytes_read"][of]
        assert said[key]["bytes_written"] == one["all"]["bytes_written"][of]
    tensors = load_files(result if form == "safetensors" else exported(out, tmp_path / "hf"))
    kept = sum(t.numel() * t.element_size() for t in tensors.values())
    assert one["phases"]["read"]["bytes_read"]["total"] == kept + side_files(pruned / "model")
    assert one["phases"]["write"]["seconds"]["max"] > 0.0 and (one["phases"]["wait-ranks"]["seconds"]["max"] > 0.0)


def load_files(folder):
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in safetensors.torch.load_file(path).items()}


def exported(out, folder):
    mdp.succeed(1, "export", "--model", out / "model.h5", "--out", folder)
    return folder


def side_files(folder):
    """Bytes of what is copied beside weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".safetensors" and path.name not in
               ("config.json", "model.safetensors.index.json"))


@pytest.mark.parametrize("form, times", [("hdf5", 1), ("safetensors", 1), ("both", 2)])
def test_ranks_of_a_node_read_each_byte_once_for_a_result_by_the_count_of_the_kernel(form, times, pruned, tmp_path):
    """Against `info`, which reads what every start reads, and a dry run, which reads what is needed to know the model."""
    ranks = 3

    def count(*words):
        mdp.succeed(ranks, *words, within=[mdp.PYTHON, mdp.TESTS / "reads_of.py", tmp_path])
        return sum(int((tmp_path / f"reads-{rank}").read_text()) for rank in range(ranks))

    before = count(*mdp.apply_to(pruned, tmp_path / "dry", "safetensors", "--dry-run"))
    found = count(*mdp.apply_to(pruned, tmp_path / "out", form, "--profile")) - before
    read = sum(one["all"]["bytes_read"]["total"] for one in mdp.read_json(tmp_path / "out" / "profile.json")["passes"])
    assert times * 0.4 * size_of(pruned / "model") < read < times * 0.7 * size_of(pruned / "model")  # half of the experts, and the rest
    assert read <= found <= read + 2_000_000 * ranks


def test_export_has_a_profile(pruned, tmp_path):
    mdp.succeed(2, *mdp.apply_to(pruned, tmp_path / "out", "hdf5"))
    words = ["export", "--model", tmp_path / "out" / "model.h5", "--out", tmp_path / "hf"]
    said = json.loads(mdp.succeed(2, *words, "--dry-run", "--json").stdout)
    result = mdp.succeed(2, *words, "--profile")
    assert re.search(r"^plan +export +read .* a rank   write", result.stderr, re.M), str(result)
    (one,) = mdp.read_json(tmp_path / "hf.profile.json")["passes"]
    assert said["bytes_written"] == one["all"]["bytes_written"]["total"] == size_of(tmp_path / "hf")
