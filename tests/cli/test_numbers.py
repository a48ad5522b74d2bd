"""Numbers that are not finite are named, and the same ones on any number of ranks; --allow-nonfinite goes on with 0. And the
edges of routing: one expert, all experts, none for some, one token, sequences of one token, more ranks than rows."""
import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mdp

RANKS = (1, 4)
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"


def make(folder, change=lambda weights: None, **config):
    """A copy of the golden Mixtral checkpoint with other weights and other numbers in config.json."""
    folder.mkdir()
    weights = load_file(mdp.GOLDEN / "mixtral" / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = (mdp.GOLDEN / "mixtral" / "config.json").read_text()
    for key, value in config.items():
        text, n = re.subn(rf'"{key}": [^,\n]+', f'"{key}": {value}', text)
        assert n == 1, key
    (folder / "config.json").write_text(text)
    return folder


@pytest.fixture
def tokens(tmp_path):
    return mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")


def spoil(*places):
    """Put values at (name, index, value)."""
    def change(weights):
        for name, index, value in places:
            weights[name] = weights[name].copy()
            weights[name][index] = value
    return change


def refused(model, tokens, tmp_path, sentence, command="observe"):
    """The same sentence on 1 and 4 ranks, nothing written."""
    said = {mdp.refuse(ranks, 65, sentence, command, "--model", model, "--tokens", tokens, "--out", tmp_path / "out.h5").errors()[0]
            for ranks in RANKS}
    assert len(said) == 1, said
    assert not (tmp_path / "out.h5").exists()


W1, W2, W3 = (lambda layer, expert, w=w: EXPERT.format(layer, expert, w) for w in ("w1", "w2", "w3"))


def test_the_lowest_layer_then_expert_is_named_with_its_weight(tokens, tmp_path):
    model = make(tmp_path / "model", spoil((W3(2, 0), (0, 0), np.nan), (W2(1, 6), (1, 1), np.nan), (W1(1, 3), (2, 5), np.inf)))
    refused(model, tokens, tmp_path, r"model: layer 1: the output of expert 3 is not finite for token \d+ of 'golden' \(position \d+ of "
            rf"its sequence\): '{re.escape(W1(1, 3))}' holds an infinity \(row 2, column 5\)\. --allow-nonfinite")
    refused(model, tokens, tmp_path, "layer 1: the output of expert 3", command="eval")


@pytest.mark.parametrize("place, sentence", [
    ("model.layers.1.self_attn.q_proj.weight", r"layer 1: the output of attention .* token 0 of .*q_proj\.weight' holds a NaN \(row 3, "),
    ("model.layers.2.post_attention_layernorm.weight", r"layer 2: the output of expert 0 .* '.*post_attention_layernorm.weight' holds a NaN \(row 0, column 0\)"),
    ("model.embed_tokens.weight", r"layer 0: the output of attention is not finite for token \d+ .* the embedding of token id \d+ is not "),
])
def test_weights_that_every_token_meets(place, sentence, tokens, tmp_path):
    def change(weights):
        weights[place] = weights[place].copy()
        weights[place][(3 if place.count("proj") else slice(None)),] = np.nan
    refused(make(tmp_path / "model", change), tokens, tmp_path, sentence)


def test_tensors_that_are_not_computed_with_are_not_to_blame(tokens, tmp_path):
    """Names that look like the layer's, such as those of layers that predict tokens further ahead."""
    place = "model.layers.1.self_attn.q_proj.weight"

    def change(weights):
        weights[place] = weights[place].copy()
        weights[place][3, 5] = np.nan
        return {**weights, "another.layers.1.weight": np.full((2, 2), np.nan, np.float32)}
    refused(make(tmp_path / "model", change), tokens, tmp_path, rf"layer 1: .* '{re.escape(place)}' holds a NaN \(row 3, column 5\)")


def test_weights_in_few_bits_are_looked_at_with_their_scales(tmp_path):
    weight = "model.layers.1.mlp.experts.3.up_proj.weight"
    model, file = shutil.copytree(mdp.GOLDEN / "deepseek_v3_fp8", tmp_path / "model"), tmp_path / "model" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    data = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:data])[f"{weight}_scale_inv"]
    scales = np.frombuffer(raw, np.float32, 6, data + entry["data_offsets"][0]).reshape(entry["shape"])
    scales[1, 2] = np.nan  # blocks of 128 x 128
    file.write_bytes(raw)
    refused(model, mdp.golden_tokens("deepseek_v3_fp8", tmp_path / "tokens.h5"), tmp_path,
            rf"layer 1: the output of expert 3 .* '{re.escape(weight)}' with its scales '{re.escape(weight)}_scale_inv' holds a NaN "
            r"\(row 128, column 256\)")


def test_activations_that_outgrow_float32(tokens, tmp_path):
    def change(weights):
        for name in (W1(0, 2), W3(0, 2)):
            weights[name] = weights[name] * np.float32(1e25)
    refused(make(tmp_path / "model", change), tokens, tmp_path,
            "layer 0: the output of expert 2 .* there is no NaN or infinity in the layer's weights, so activations outgrow float32")


def datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) and name != "seal" else None)
    return found


def test_allowed_they_count_as_zero(tokens, tmp_path):
    """A NaN in a row of w2 spoils one value of each output: the statistics are those of a checkpoint with zeros in that row."""
    nan = make(tmp_path / "nan", spoil((W2(1, 3), (4, 0), np.nan)))
    zero = make(tmp_path / "zero", spoil((W2(1, 3), 4, 0.0)))
    mdp.succeed(1, "observe", "--model", zero, "--tokens", tokens, "--out", tmp_path / "zero.h5")
    expected = datasets(tmp_path / "zero.h5")
    n = int(expected["layers/1/counts"][:, 3].sum())
    for ranks in RANKS:
        out = tmp_path / f"nan{ranks}.h5"
        result = mdp.succeed(ranks, "observe", "--model", nan, "--tokens", tokens, "--allow-nonfinite", "--out", out)
        assert f"{n:,} activations were not finite and counted as 0, the first in layer 1" in result.stderr, str(result)
        found = datasets(out)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert mdp.digests(tmp_path / "nan1.h5") == {".": mdp.digests(tmp_path / "nan4.h5").popitem()[1]}


def test_allowed_they_are_counted_across_a_stop(tokens, tmp_path):
    """Stopped after every layer, the number and the first layer are those of an unbroken run; with or without is noticed."""
    nan = make(tmp_path / "nan", spoil((W2(0, 3), (4, 0), np.nan), (W2(2, 1), (4, 0), np.nan)))
    words = ["observe", "--model", nan, "--tokens", tokens, "--allow-nonfinite", "--out"]
    said = re.search(r"\S+ activations were not finite .*", mdp.succeed(2, *words, tmp_path / "whole.h5").stderr)[0]
    assert said.endswith("the first in layer 0")
    for ranks in (1, 3, 2):
        result = mdp.run(ranks, *words, tmp_path / "parts.h5", "--resume", "--stop-at", 1)
        assert set(result.codes) == {75}, str(result)
    without = [word for word in words if word != "--allow-nonfinite"]
    mdp.refuse(2, 2, "of a run with --allow-nonfinite; go on with the same options", *without, tmp_path / "parts.h5", "--resume")
    result = mdp.succeed(2, *words, tmp_path / "parts.h5", "--resume")
    assert said in result.stderr, str(result)
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


# ---- edges of routing

def one_expert(weights):
    """Expert 0 alone; its router row is all there is to choose from."""
    kept = {name: value for name, value in weights.items() if not re.search(r"experts\.[1-9]", name)}
    return {name: value[:1].copy() if name.endswith("gate.weight") else value for name, value in kept.items()}


def blind(weights):
    """Routers that see nothing: all logits are equal, so every token takes the lowest experts."""
    return {name: np.zeros_like(value) if name.endswith("gate.weight") else value for name, value in weights.items()}


def loss_of_transformers(folder, sequences):
    """Mean loss of all predicted positions."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    total, n = 0.0, 0
    with torch.no_grad():
        for ids in sequences:
            if len(ids) < 2:
                continue
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
            n += len(ids) - 1
    return total / n


@pytest.mark.parametrize("change, config", [
    (one_expert, {"num_local_experts": 1, "num_experts_per_tok": 1}), (lambda weights: weights, {"num_experts_per_tok": 8})],
    ids=["one-expert", "all-experts"])
def test_one_expert_or_all_of_them(change, config, tmp_path):
    """With sequences of one token among the others; the loss is that of transformers."""
    model = make(tmp_path / "model", change, **config)
    random = np.random.default_rng(1)
    sequences = [random.integers(0, 100, n).tolist() for n in (1, 17, 2, 1, 40)]
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": sequences[:2], "b": sequences[2:]})
    n_expert = config.get("num_local_experts", 8)
    ends = set()
    for ranks in RANKS:
        out = tmp_path / f"stats{ranks}.h5"
        mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out)
        ends.add(mdp.digests(out).popitem()[1])
        mdp.succeed(ranks, "eval", "--model", model, "--tokens", tokens, "--out", tmp_path / f"eval{ranks}.json")
        stream = mdp.read_json(tmp_path / f"eval{ranks}.json")["streams"][0]
        assert stream["n_predicted"]["total"] == 56
        assert abs(stream["nll"]["total"] - loss_of_transformers(model, sequences)) < 1e-4
    assert len(ends) == 1
    for layer in (0, 1):
        assert (datasets(out)[f"layers/{layer}/counts"] == [[18] * n_expert, [43] * n_expert]).all()


def test_experts_that_no_token_takes(tmp_path):
    """All tokens take experts 0 and 1; without the others nothing changes, and every criterion ranks them last."""
    model = make(tmp_path / "model", blind)
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"same": [[7] * 64, [7] * 64], "other": [[1, 2, 3]]})
    mdp.succeed(3, "observe", "--model", model, "--tokens", tokens, "--out", tmp_path / "stats.h5")
    counts = datasets(tmp_path / "stats.h5")["layers/0/counts"]
    assert (counts == [[3, 3, 0, 0, 0, 0, 0, 0], [128, 128, 0, 0, 0, 0, 0, 0]]).all()
    for criterion in ("frequency", "reap", "ean-mean"):
        plan = tmp_path / f"{criterion}.json"
        mdp.succeed(1, "plan", "--stats", tmp_path / "stats.h5", "--method", criterion, "--keep", 2, "--out", plan)
        assert [[e["from"] for e in layer["experts"]] for layer in mdp.read_json(plan)["layers"]][0] == [[0], [1]], criterion
    for ranks in RANKS:
        out = tmp_path / f"eval{ranks}.json"
        mdp.succeed(ranks, "eval", "--model", model, "--plan", plan, "--tokens", tokens, "--out", out)
        original, pruned = mdp.read_json(out)["streams"]
        assert pruned["nll"] == original["nll"] and pruned["kl_to_original"]["total"] == 0.0


def test_one_expert_takes_every_token_and_can_be_all_that_is_left(tmp_path):
    """With one choice a token, expert 0 has all the work; pruned to it alone, which transformers loads, nothing changes."""
    model = make(tmp_path / "model", blind, num_experts_per_tok=1)
    sequences = [[7, 8, 9, 10] * 16, [5, 4, 3]]
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"all": sequences})
    ends = set()
    for ranks in RANKS:
        out = tmp_path / f"out{ranks}"
        mdp.succeed(ranks, "run", "--model", model, "--tokens", tokens, "--eval-tokens", tokens, "--method", "reap", "--keep", 1,
                    "--format", "both", "--out", out)
        assert (datasets(out / "stats.h5")["layers/1/counts"] == [[67, 0, 0, 0, 0, 0, 0, 0]]).all()
        original, pruned = mdp.read_json(out / "eval.json")["streams"]
        assert pruned["nll"] == original["nll"] and pruned["kl_to_original"]["total"] == 0.0
        assert abs(pruned["nll"]["total"] - loss_of_transformers(out / "hf", sequences)) < 1e-4
        ends.add(tuple(mdp.digests(out / name).popitem()[1] for name in ("stats.h5", "plan.json", "model.h5")))
    assert len(ends) == 1


def test_one_token_in_all(tmp_path):
    """More ranks than rows: statistics are those of that token; nothing is predicted, so there is no loss."""
    model = make(tmp_path / "model")
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"one": [[5]]})
    ends = set()
    for ranks in RANKS:
        out = tmp_path / f"stats{ranks}.h5"
        mdp.succeed(ranks, "observe", "--model", model, "--tokens", tokens, "--out", out)
        assert datasets(out)["layers/0/counts"].sum() == 2
        ends.add(mdp.digests(out).popitem()[1])
        mdp.succeed(ranks, "eval", "--model", model, "--tokens", tokens, "--out", tmp_path / f"eval{ranks}.json")
        stream = mdp.read_json(tmp_path / f"eval{ranks}.json")["streams"][0]
        assert stream["n_predicted"]["total"] == 0 and stream["nll"]["total"] is None and stream["perplexity"]["total"] is None
    assert len(ends) == 1
    mdp.succeed(1, "plan", "--stats", out, "--method", "reap", "--keep", 4, "--out", tmp_path / "plan.json")


def test_categories_without_tokens_are_named(tmp_path):
    model = make(tmp_path / "model")
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"full": [[1, 2]], "hollow": [[]]})
    refused(model, tokens, tmp_path, "category 'hollow' has no tokens")
