"""Recovery by gradient: losses and gradients of torch autograd, a training that torch repeats, the same bytes on any number of ranks."""
import re

import h5py
import numpy as np
import pytest

import mdp

torch = pytest.importorskip("torch")
RANKS = [1, 2, 3, 4, 8]
STEP = re.compile(r"layer (\d+), step (\d+) of (\d+): loss (\S+), norm (\S+),")


def student(family, folder):
    """(model, plan that keeps what the reference's student keeps, tokens of golden.h5) of a golden checkpoint."""
    model = mdp.GOLDEN / family
    with h5py.File(model / "recover.h5") as file:
        kept = {int(name[5:]): list(map(int, file["kept"][name][...])) for name in file["kept"]}
    return model, mdp.write_plan(model, kept, folder / "plan.json"), mdp.golden_tokens(family, folder / "tokens.h5")


def recover(ranks, model, plan, tokens, out, *words):
    return mdp.succeed(ranks, "recover", "--model", model, "--plan", plan, "--tokens", tokens, "--out", out, *words, timeout=300)


def steps_of(result):
    """{layer: [(loss, norm), ...]} of the log."""
    found = {}
    for layer, _, _, loss, norm in STEP.findall(result.stderr):
        found.setdefault(int(layer), []).append((float(loss), float(norm)))
    return found


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("inputs", ["original", "pruned"])
def test_loss_and_gradient_are_those_of_autograd(family, inputs, tmp_path):
    model, plan, tokens = student(family, tmp_path)
    result = recover(2, model, plan, tokens, tmp_path / "out.json", "--refit-target", "output", "--refit-inputs", inputs, "--refit-holdout", 0, "--epochs", 1,
                     "--lr", "1e-12", "--log-level", "debug")
    found = steps_of(result)
    with h5py.File(model / "recover.h5") as file:
        loss, table = file[f"loss/layer-{inputs}"][()], file[f"gradient/layer-{inputs}"]
        norms = dict(zip((name.decode() for name in table["names"][...]), table["norm"][...]))
    assert all(len(steps) == 1 for steps in found.values())
    assert sum(steps[0][0] for steps in found.values()) == pytest.approx(loss, rel=2e-5)
    for layer, steps in found.items():
        parts = [norm for name, norm in norms.items() if f".layers.{layer}." in name and (".experts." in name or name.endswith(".gate.weight"))]
        assert len(parts) > 3
        assert steps[0][1] == pytest.approx(np.linalg.norm(parts), rel=1e-4)


def first_block(model, kept, ids):
    """Inputs, targets and the student's weights of the first layer of a mixtral checkpoint, by transformers."""
    import transformers
    teacher = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    block = getattr(teacher.model.layers[0], "mlp", None) or teacher.model.layers[0].block_sparse_moe
    rows = []
    block.register_forward_hook(lambda module, given, gave: rows.append((given[0][0], (gave[0] if isinstance(gave, tuple) else gave)[0])))
    with torch.no_grad():
        for sequence in ids:
            teacher.model(torch.tensor(sequence.astype(np.int64))[None])
    x, z = (torch.cat([row[i].reshape(-1, row[i].shape[-1]) for row in rows]).double() for i in (0, 1))
    from safetensors.torch import load_file
    stored = load_file(model / "model.safetensors")
    name = "model.layers.0.block_sparse_moe."
    weights = {"router": torch.stack([stored[name + "gate.weight"][e] for e in kept])}
    for part, tensor in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        weights[part] = torch.stack([stored[f"{name}experts.{e}.{tensor}.weight"] for e in kept])
    return x, z, {key: value.double().requires_grad_(True) for key, value in weights.items()}


def block_of(x, w):
    p = torch.softmax(x @ w["router"].T, -1)
    g, chosen = torch.topk(p, 2, -1)
    g = g / g.sum(-1, keepdim=True)
    y = torch.stack([(torch.nn.functional.silu(x @ w["gate"][e].T) * (x @ w["up"][e].T)) @ w["down"][e].T for e in range(len(w["router"]))], 1)
    return (torch.gather(y, 1, chosen[..., None].expand(*chosen.shape, x.shape[-1])) * g[..., None]).sum(1)


@pytest.mark.parametrize("what", ["moe", "router", "experts"])
def test_a_training_is_that_of_torch(what, tmp_path):
    model, plan, tokens = student("mixtral", tmp_path)
    kept = [e["from"][0] for e in mdp.read_json(plan)["layers"][0]["experts"]]
    with h5py.File(tokens) as file:
        ids = np.split(file["golden/input_ids"][...], file["golden/offsets"][1:-1])
    x, z, w = first_block(model, kept, ids)
    start = {key: value.detach().clone() for key, value in w.items()}
    trained = [value for key, value in w.items() if what == "moe" or (key == "router") == (what == "router")]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    expected = []
    for step in range(10):
        optimiser.param_groups[0]["lr"] = 1e-3 if step >= 1 else 1e-3 * (step + 1)
        optimiser.zero_grad()
        loss = ((z - block_of(x, w)) ** 2).sum(-1).mean() / (z ** 2).sum(-1).mean()
        loss.backward()
        expected.append((float(loss.detach()), float(torch.nn.utils.clip_grad_norm_(trained, 0.5))))
        optimiser.step()
    result = recover(2, model, plan, tokens, tmp_path / "out.json", "--train", what, "--refit-target", "output", "--refit-holdout", 0, "--epochs", 10,
                     "--schedule", "constant", "--warmup", 0, "--weight-decay", 0.1, "--clip", 0.5, "--log-level", "debug")
    assert np.allclose(steps_of(result)[0], expected, rtol=2e-4)
    made = mdp.read_json(tmp_path / "out.json")["layers"][0]["experts"]
    with h5py.File(tmp_path / "out.h5") as arrays:
        for part in ("gate", "up", "down", "router"):
            for number, expert in enumerate(made):
                assert (part in expert["arrays"]) == (what == "moe" or (part == "router") == (what == "router"))
                if part not in expert["arrays"]:
                    continue
                found = arrays[expert["arrays"][part]["path"]][...].ravel().astype(np.float64)
                moved = np.abs(found - w[part][number].detach().numpy().ravel())
                assert np.abs(start[part][number].numpy().ravel() - found).max() > 1e-3
                assert (moved > 1e-4).mean() < 2e-3 and moved.max() < 2e-2


def test_bytes_are_the_same_on_any_ranks_and_threads(tmp_path):
    model, plan, tokens = student("qwen2_moe", tmp_path)
    results = []
    for ranks, threads in [*((n, 1) for n in RANKS), (2, 2)]:
        out = tmp_path / f"r{ranks}t{threads}.json"
        recover(ranks, model, plan, tokens, out, "--epochs", 3, "--step-tokens", 64, "--threads", threads, "--quiet")
        results.append((out.read_bytes(), out.with_suffix(".h5").read_bytes()))
    assert all(result == results[0] for result in results)
    assert mdp.read_json(out)["recipe"]["recover"]["layers"][0]["error_after"]["fitted"] > 0


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gpt_oss_mxfp4", "deepseek_v3_fp8", "phimoe"])
def test_what_is_measured_is_what_is_written_and_gives_more_of_what_was_there(family, tmp_path):
    model, plan, tokens = mdp.GOLDEN / family, tmp_path / "plan.json", mdp.golden_tokens(family, tmp_path / "tokens.h5")
    mdp.succeed(1, "plan", "--model", model, "--method", "random", "--keep-ratio", 0.5, "--out", plan)
    recover(3, model, plan, tokens, tmp_path / "t.json", "--epochs", 8, "--step-tokens", 64, "--refit-holdout", 0, "--quiet")
    for layer in mdp.read_json(tmp_path / "t.json")["recipe"]["recover"]["layers"]:
        assert layer["error_after"]["fitted"] < layer["error_before"]["fitted"]
    mdp.succeed(2, "eval", "--model", model, "--plan", tmp_path / "t.json", "--tokens", tokens, "--out", tmp_path / "virtual.json")
    mdp.succeed(2, "apply", "--model", model, "--plan", tmp_path / "t.json", "--out", tmp_path / "written", "--format", "safetensors")
    mdp.succeed(1, "eval", "--model", tmp_path / "written" / "hf", "--tokens", tokens, "--out", tmp_path / "real.json")
    mdp.succeed(1, "verify", tmp_path / "written" / "hf", "--model", model)
    virtual, real = (mdp.read_json(tmp_path / name) for name in ("virtual.json", "real.json"))
    assert virtual["streams"][1]["nll"] == real["streams"][0]["nll"]


def test_it_goes_on_from_what_a_refit_made_and_where_it_was_stopped(tmp_path):
    model, plan, tokens = student("mixtral", tmp_path)
    mdp.succeed(2, "refit", "--model", model, "--plan", plan, "--tokens", tokens, "--refit", "joint", "--ridge", "1e-2", "--refit-holdout", 0, "--out",
                tmp_path / "fitted.json")
    words = ["--train", "router", "--epochs", 2, "--refit-holdout", 0]
    recover(1, model, tmp_path / "fitted.json", tokens, tmp_path / "whole.json", *words)
    with h5py.File(tmp_path / "fitted.h5") as old, h5py.File(tmp_path / "whole.h5") as new:
        assert np.array_equal(old["layers/1/experts/0/down"][...], new["layers/1/experts/0/down"][...])
        assert "router" in new["layers/1/experts/0"]
    out = tmp_path / "stopped.json"
    stopped = mdp.run(3, "recover", "--model", model, "--plan", tmp_path / "fitted.json", "--tokens", tokens, "--out", out, *words, "--stop-at", 1)
    assert stopped.codes[0] == 75 or "stopped" in stopped.stderr, stopped
    recover(2, model, tmp_path / "fitted.json", tokens, out, *words, "--resume")
    assert out.with_suffix(".h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_router_of_one_expert_that_is_divided_by_itself_is_refused(tmp_path):
    model, plan, tokens = student("mixtral", tmp_path)
    text = plan.read_text()
    plan.write_text(text.replace('"router": "slice"', '"router": "slice", "k": 1'))
    mdp.refuse(2, 2, "no gradient", "recover", "--model", model, "--plan", plan, "--tokens", tokens, "--train", "router", "--out", tmp_path / "t.json")
