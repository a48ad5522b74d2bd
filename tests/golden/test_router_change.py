"""router-norm-change, router-change-abs and --pruned-route, on a model and what it was fine-tuned from, in plain numpy."""
import json
import shutil

import h5py
import numpy as np
import pytest
import safetensors.numpy

import mdp

ROUTER = "model.layers.{}.block_sparse_moe.gate.weight"
DOWN = "model.layers.{}.block_sparse_moe.experts.{}.w2.weight"


def save(folder, tensors):
    (folder / "model.safetensors").unlink()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def tuned():
    return mdp.GOLDEN / "mixtral"


@pytest.fixture(scope="module")
def pretrained(tuned, tmp_path_factory):
    """The same model with longer and shorter router rows; all else is NaN, since nothing else may be read."""
    folder = tmp_path_factory.mktemp("pretrained") / "mixtral"
    shutil.copytree(tuned, folder)
    random = np.random.default_rng(3)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith("gate.weight"):
            tensors[name] = (value * (1 + 0.1 * random.standard_normal((len(value), 1)))).astype(value.dtype)
        else:
            tensors[name] = np.full_like(value, np.nan)
    save(folder, tensors)
    return folder


def change(tuned, pretrained, layer):
    norm = [np.sqrt((safetensors.numpy.load_file(folder / "model.safetensors")[ROUTER.format(layer)].astype(float)**2).sum(1))
            for folder in (tuned, pretrained)]
    return norm[0] - norm[1]


@pytest.mark.parametrize("method", ["router-norm-change", "router-change-abs"])
def test_scores_are_the_change_of_norms(method, tuned, pretrained, tmp_path):
    mdp.succeed(3, "plan", "--model", tuned, "--pretrained", pretrained, "--method", method, "--keep", 4, "--out", tmp_path / "plan.json")
    for layer in mdp.read_json(tmp_path / "plan.json")["layers"]:
        want = change(tuned, pretrained, layer["layer"])
        assert (want < 0).any() and (want > 0).any()
        want = np.abs(want) if method == "router-change-abs" else want
        assert np.abs(np.array(layer["scores"]) - want).max() <= 1e-6 * np.abs(want).max()
        assert [expert["from"][0] for expert in layer["experts"]] == sorted(np.argsort(-want)[:4].tolist())


def test_routers_that_did_not_change_are_refused(tuned, tmp_path):
    same = shutil.copytree(tuned, tmp_path / "same")
    tensors = safetensors.numpy.load_file(same / "model.safetensors")
    tensors[DOWN.format(0, 0)] += 1  # LoRA on other weights
    save(same, tensors)
    mdp.refuse(2, 65, "no router row of .* differs from .*frozen, or LoRA", "plan", "--model", tuned, "--pretrained", same, "--method",
               "router-norm-change", "--keep", 4, "--out", tmp_path / "plan.json")


def test_models_that_do_not_correspond_are_refused(tuned, tmp_path):
    mdp.refuse(2, 65, "--pretrained names the model that was fine-tuned into the other", "plan", "--model", tuned, "--pretrained",
               mdp.DEMO, "--method", "router-norm-change", "--keep", 4, "--out", tmp_path / "plan.json")
    mdp.refuse(1, 2, "'router-norm-change' needs --pretrained", "plan", "--model", tuned, "--method", "router-norm-change", "--keep", 4,
               "--out", tmp_path / "plan.json")
    mdp.refuse(1, 2, "--pretrained has no meaning for method 'magnitude'", "plan", "--model", tuned, "--pretrained", mdp.DEMO,
               "--method", "magnitude", "--keep", 4, "--out", tmp_path / "plan.json")


def test_help_says_what_was_proven(tmp_path):
    text = " ".join(mdp.succeed(1, "plan", "--help").stdout.split())
    assert "proven for binary classification on a simplified MoE, verified on vision models" in text
    assert "fine-tuning belongs after it" in text


@pytest.fixture(scope="module")
def zeroed(tuned, pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    mdp.succeed(2, "plan", "--model", tuned, "--pretrained", pretrained, "--method", "router-norm-change", "--pruned-route", "zero",
                "--keep", 4, "--out", folder / "plan.json")
    mdp.succeed(3, "apply", "--model", tuned, "--plan", folder / "plan.json", "--format", "both", "--out", folder / "out")
    return folder


def test_zero_leaves_all_but_the_down_projection_of_pruned_experts(tuned, pretrained, zeroed):
    before = safetensors.numpy.load_file(tuned / "model.safetensors")
    after = safetensors.numpy.load_file(next((zeroed / "out" / "hf").glob("*.safetensors")))
    gone = {DOWN.format(layer, e) for layer in range(3) for e in np.argsort(change(tuned, pretrained, layer))[:4]}
    assert before.keys() == after.keys() and len(gone) == 12
    for name, value in before.items():
        assert np.array_equal(after[name], np.zeros_like(value) if name in gone else value), name
    assert json.loads((zeroed / "out" / "hf" / "config.json").read_text())["num_local_experts"] == 8
    with h5py.File(zeroed / "out" / "model.h5") as native:
        down = native["model/layers/0/block_sparse_moe/experts/w2/weight"][...]
    assert [not expert.any() for expert in down] == [DOWN.format(0, e) in gone for e in range(8)]


def test_a_zeroing_plan_in_memory_computes_what_the_written_checkpoint_computes(tuned, zeroed, tmp_path):
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    mdp.succeed(2, "eval", "--model", tuned, "--plan", zeroed / "plan.json", "--tokens", tokens, "--dump", tmp_path / "virtual.h5", "--out",
                tmp_path / "virtual.json")
    mdp.succeed(1, "eval", "--model", zeroed / "out" / "model.h5", "--tokens", tokens, "--dump", tmp_path / "real.h5", "--out",
                tmp_path / "real.json")
    planned = [s for s in mdp.read_json(tmp_path / "virtual.json")["streams"] if s["plan"]]
    original = [s for s in mdp.read_json(tmp_path / "virtual.json")["streams"] if not s["plan"]]
    assert planned[0]["nll"] == mdp.read_json(tmp_path / "real.json")["streams"][0]["nll"] != original[0]["nll"]


def test_a_zeroed_checkpoint_computes_in_transformers_what_ours_computes(zeroed, tmp_path):
    import torch
    import transformers
    tokens = mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
    mdp.succeed(1, "eval", "--model", zeroed / "out" / "hf", "--tokens", tokens, "--dump", tmp_path / "ours.h5", "--out", tmp_path / "e.json")
    network = transformers.AutoModelForCausalLM.from_pretrained(zeroed / "out" / "hf", dtype=torch.float32)
    with h5py.File(tokens) as text, h5py.File(tmp_path / "ours.h5") as ours, torch.no_grad():
        offsets, stream = text["golden/offsets"][...], ours[next(iter(ours))]
        for i, (first, end) in enumerate(zip(offsets, offsets[1:])):
            theirs = network(torch.tensor(text["golden/input_ids"][first:end].astype(np.int64))[None]).logits[0].numpy()
            assert np.abs(stream[f"golden/{i}/logits"][...] - theirs).max() <= 1e-4
