"""Merged experts against another way to merge, and plans whose parts do not belong together."""
import json

import h5py
import numpy as np
from safetensors.numpy import load_file

import mdp

PARTS = {"gate": "w1", "up": "w3", "down": "w2"}


def merged(tmp_path, weights):
    """Experts 1, 4 and 6 of the tiny Mixtral's first layer merged: the plan's path."""
    mdp.succeed(1, "plan", "--model", mdp.GOLDEN / "mixtral", "--method", "random", "--keep", 6, "--out", tmp_path / "p.json", "--quiet")
    plan = mdp.read_json(tmp_path / "p.json")
    for layer in plan["layers"]:
        layer["dropped"] = []
        layer["experts"] = [{"from": [e], "action": "keep"} for e in (0, 2, 3, 5, 7)]
        layer["experts"].insert(1, {"from": [1, 4, 6], "action": "merge", "weights": weights, "align": "none"})
    (tmp_path / "p.json").write_text(json.dumps(plan))
    mdp.succeed(2, "merge", "--model", mdp.GOLDEN / "mixtral", "--plan", tmp_path / "p.json", "--out", tmp_path / "q.json", "--quiet")
    return tmp_path / "q.json"


def test_sub_moe_without_truncation_is_the_weighted_sum(tmp_path):
    """Sub-MoE (arXiv 2506.23266) decomposes the members side by side, W = U S [V_1 ... V_n], and merges the V_i: all ranks kept, that is our sum."""
    weights = [0.5, 0.2, 0.3]
    plan, tensors = merged(tmp_path, weights), load_file(mdp.GOLDEN / "mixtral" / "model.safetensors")
    for part, name in PARTS.items():
        members = [tensors[f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight"].astype(np.float64) for e in (1, 4, 6)]
        u, s, v = np.linalg.svd(np.concatenate(members, axis=1), full_matrices=False)
        wanted = (u * s) @ sum(w * block for w, block in zip(weights, np.split(v, 3, axis=1)))
        assert np.abs(mdp.plan_array(plan, 0, 1, part) - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_an_array_that_is_missing_in_plan_h5_is_refused(tmp_path):
    plan = merged(tmp_path, [0.5, 0.2, 0.3])
    with h5py.File(plan.with_suffix(".h5"), "a") as arrays:
        del arrays[mdp.read_json(plan)["layers"][2]["experts"][1]["arrays"]["up"]["path"]]
    mdp.refuse(2, 65, "which layer 2, expert 1, needs as 'up'", "apply", "--model", mdp.GOLDEN / "mixtral", "--plan", plan, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "model.h5").exists()


def test_ream_lets_experts_join_the_best_that_are_like_them(tmp_path):
    model, tokens = mdp.GOLDEN / "mixtral", mdp.golden_tokens("mixtral", tmp_path / "t.h5")
    mdp.succeed(2, "observe", "--model", model, "--tokens", tokens, "--similarity", "gated-output-logit", "--out", tmp_path / "stats.h5", "--quiet")
    mdp.succeed(1, "plan", "--stats", tmp_path / "stats.h5", "--method", "ream", "--keep", 4, "--out", tmp_path / "p.json", "--quiet")
    with h5py.File(tmp_path / "stats.h5") as stats:
        for layer in mdp.read_json(tmp_path / "p.json")["layers"]:
            scores, alike = np.array(layer["scores"]), stats[f"layers/{layer['layer']}/similarity/gated-output-logit"][...]
            centres = sorted(np.argsort(-scores)[:4].tolist())
            groups = {c: [c] for c in centres}
            for e in set(range(8)) - set(centres):
                groups[max(centres, key=lambda c: alike[c, e])].append(e)
            assert sorted(e["from"] for e in layer["experts"]) == sorted(map(sorted, groups.values()))
            for expert in layer["experts"]:
                if len(expert["from"]) > 1:
                    assert expert["align"] == "weight" and expert["router"] == "dominant"
                    assert np.allclose(expert["weights"], scores[expert["from"]] / scores[expert["from"]].sum(), atol=1e-8)
