"""proficiency: windows of 8,192 tokens over the router logits of transformers, dropping experts on the way, in plain numpy."""
import shutil

import numpy as np
import pytest
import safetensors.numpy

import mdp

WINDOW, BETA, KEEP, K = 8192, 0.3, 4, 2
SEQUENCE = 100


def reference(z):
    """Router logits of all tokens in order [T, E] -> mean shares [E] and the experts that stay."""
    alive, total, alpha = list(range(z.shape[1])), np.zeros(z.shape[1]), np.zeros(z.shape[1])
    dropped_on_the_way = 0

    def weakest():
        return min(alive, key=lambda e: (alpha[e], e))

    for window, first in enumerate(range(0, len(z), WINDOW), 1):
        part = z[first:first + WINDOW][:, alive]
        best = np.argsort(-part, axis=1, kind="stable")[:, :K]
        g = np.exp(np.take_along_axis(part, best, 1))
        g /= g.sum(1, keepdims=True)
        share = np.zeros(len(alive))
        np.add.at(share, best, g)
        for e, s in zip(alive, share / share.sum()):
            total[e] += s
            alpha[e] = total[e] / window
        while len(alive) > KEEP and alpha[weakest()] < BETA / len(alive):
            alive.remove(weakest())
            dropped_on_the_way += 1
    while len(alive) > KEEP:
        alive.remove(weakest())
    return alpha, alive, dropped_on_the_way


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The golden mixtral with some router rows so small that their experts are rarely chosen."""
    folder = tmp_path_factory.mktemp("model") / "mixtral"
    shutil.copytree(mdp.GOLDEN / "mixtral", folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for layer, expert in ((0, 2), (0, 5), (2, 7)):
        tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"][expert] *= 0.05
    (folder / "model.safetensors").unlink()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tokens():
    ids = np.random.default_rng(7).integers(0, 512, (220, SEQUENCE))  # 22,000 tokens: two windows and a short one
    return {"code": ids[:90], "math": ids[90:]}


@pytest.fixture(scope="module")
def logits(model, tokens):
    """[layers, T, E] in the order of the tokens file."""
    import torch
    import transformers
    network = transformers.MixtralForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    seen = [[] for _ in network.model.layers]
    for index, layer in enumerate(network.model.layers):
        gate = layer.mlp.gate
        gate.register_forward_pre_hook(lambda gate, x, index=index: seen[index].append(
            x[0].reshape(-1, x[0].shape[-1]).double() @ gate.weight.double().T))
    with torch.no_grad():
        for ids in torch.tensor(np.concatenate(list(tokens.values()))).split(55):
            network(ids)
    return np.stack([torch.cat(parts).numpy() for parts in seen])


@pytest.fixture(scope="module")
def plans(model, tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    path = mdp.write_tokens(folder / "tokens.h5", {name: list(ids) for name, ids in tokens.items()})
    texts = []
    for ranks, words in ((1, []), (3, []), (2, ["--batch-tokens", 16384, "--threads", 2])):
        out = folder / f"{ranks}.json"
        mdp.succeed(ranks, "plan", "--model", model, "--tokens", path, "--method", "proficiency", "--keep", KEEP, "--out", out, *words)
        texts.append(out.read_bytes())
    return texts, mdp.read_json(folder / "1.json")


def test_layout_does_not_show(plans):
    assert plans[0][0] == plans[0][1] == plans[0][2]


def test_shares_and_choice_equal_the_reference(plans, logits):
    on_the_way = []
    for layer, z in zip(plans[1]["layers"], logits):
        alpha, alive, dropped = reference(z)
        assert [expert["from"][0] for expert in layer["experts"]] == alive
        assert np.abs(np.array(layer["scores"]) - alpha).max() <= 1e-4 * alpha.max()
        on_the_way.append(dropped)
    assert on_the_way[0] == 2 and on_the_way[1] == 0  # else the windows would not be tested


def test_it_says_what_it_needs(model, tmp_path):
    mdp.refuse(2, 2, "'proficiency' runs the model itself: it needs --model PATH and --tokens FILE", "plan", "--model", model, "--method",
               "proficiency", "--keep", 4, "--out", tmp_path / "plan.json")
    mdp.refuse(1, 2, "'proficiency' must know how many experts each layer keeps", "plan", "--model", model, "--tokens", mdp.CALIB,
               "--method", "proficiency", "--budget", "global", "--keep", 4, "--out", tmp_path / "plan.json")
