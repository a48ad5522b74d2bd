"""What is written loads elsewhere with the same values: transformers, safetensors and h5py are the judges."""
import json

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mdp


def load_hf(folder):
    """{name: tensor} of all weight files of a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy()


def kept_experts(plan, layer):
    return [expert["from"][0] for expert in plan["layers"][layer]["experts"]]


def expected_tensors(original, plan):
    """What pruning must give, made from the original with torch alone."""
    result = {}
    for name, tensor in original.items():
        part = name.split(".")
        if "block_sparse_moe" not in part:
            result[name] = tensor
            continue
        kept = kept_experts(plan, int(part[2]))
        if part[4] == "gate":
            result[name] = tensor[kept]
        elif int(part[5]) in kept:
            result[".".join(part[:5] + [str(kept.index(int(part[5])))] + part[6:])] = tensor
    return result


def test_every_tensor_is_the_original_bit_for_bit(demo_run):
    want = expected_tensors(load_hf(mdp.DEMO), mdp.read_json(demo_run / "plan.json"))
    ours = load_hf(demo_run / "hf")
    assert ours.keys() == want.keys()
    for name, tensor in want.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert np.array_equal(bits(ours[name]), bits(tensor)), name


def test_config_changes_in_the_expert_count_only(demo_run):
    before, after = mdp.read_json(mdp.DEMO / "config.json"), mdp.read_json(demo_run / "hf" / "config.json")
    assert after == {**before, "num_local_experts": 6}
    text = (mdp.DEMO / "config.json").read_text().replace('"num_local_experts": 8', '"num_local_experts": 6')
    assert (demo_run / "hf" / "config.json").read_text() == text


def test_side_files_are_copied(demo_run):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "reference.json"):
        assert (demo_run / "hf" / name).read_bytes() == (mdp.DEMO / name).read_bytes(), name


def test_transformers_loads_it_whole_and_agrees_on_perplexity(demo_run, tmp_path):
    """Perplexity of the export there = our evaluation of the export, of model.h5, and of the plan on the original model."""
    mdp.succeed(2, "eval", "--model", demo_run / "hf", "--tokens", mdp.EVAL, "--out", tmp_path / "hf.json")
    mdp.succeed(3, "eval", "--model", demo_run / "model.h5", "--tokens", mdp.EVAL, "--out", tmp_path / "h5.json")
    mdp.succeed(4, "eval", "--model", mdp.DEMO, "--plan", demo_run / "plan.json", "--tokens", mdp.EVAL, "--out", tmp_path / "virtual.json")
    report = mdp.tool("compare-with-transformers", demo_run / "hf", "--tokens", mdp.EVAL, "--eval", tmp_path / "hf.json", "--json",
                      check=False)
    assert report.returncode == 0, report.stdout + report.stderr
    theirs = json.loads(report.stdout)
    assert theirs["loading"] == []
    mdp.assert_close(mdp.perplexity(tmp_path / "hf.json"), theirs["perplexity"])
    mdp.assert_close(mdp.perplexity(tmp_path / "h5.json"), theirs["perplexity"])
    mdp.assert_close(mdp.perplexity(tmp_path / "virtual.json", plan=True), theirs["perplexity"])
    mdp.assert_close(mdp.perplexity(demo_run / "eval.json", plan=True), theirs["perplexity"])


def test_logits_of_the_export_equal_transformers(demo_run, tmp_path):
    with h5py.File(mdp.EVAL) as text:
        mdp.write_tokens(tmp_path / "few.h5", {name: [text[name]["input_ids"][:256]] for name in ("c", "math")})
    mdp.succeed(2, "eval", "--model", demo_run / "hf", "--tokens", tmp_path / "few.h5", "--dump", tmp_path / "dump.h5",
                "--out", tmp_path / "eval.json")
    report = mdp.tool("compare-with-transformers", demo_run / "hf", "--tokens", tmp_path / "few.h5", "--dump", tmp_path / "dump.h5",
                      "--eval", tmp_path / "eval.json", check=False)
    assert report.returncode == 0, report.stdout + report.stderr


def test_the_judge_notices_a_missing_tensor_and_a_wrong_perplexity(demo_run, tmp_path):
    """compare-with-transformers can fail."""
    from safetensors.torch import save_file
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_hf(demo_run / "hf")
    del tensors["model.layers.1.block_sparse_moe.gate.weight"]
    tensors["model.layers.1.block_sparse_moe.gates.weight"] = torch.zeros(1)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (broken / "config.json").write_bytes((demo_run / "hf" / "config.json").read_bytes())
    report = mdp.tool("compare-with-transformers", broken, check=False)
    assert report.returncode == 1 and "missing" in report.stderr and "unexpected" in report.stderr, report.stderr
    before = mdp.tool("compare-with-transformers", demo_run / "hf", "--tokens", mdp.EVAL, "--eval", demo_run / "eval.json", check=False)
    assert before.returncode == 1 and "perplexity of" in before.stderr  # the original stream is another model


@pytest.mark.parametrize("ranks", [1, 3])
def test_export_equals_the_direct_route(ranks, demo_run, tmp_path):
    mdp.succeed(ranks, "export", "--model", demo_run / "model.h5", "--out", tmp_path / "hf")
    assert mdp.digests(tmp_path / "hf") == mdp.digests(demo_run / "hf")


def raw(dataset):
    """The stored bytes of a dataset, without conversion."""
    data = np.empty(dataset.shape, dtype=f"u{dataset.dtype.itemsize if dataset.dtype.itemsize != 4 or not is_bf16(dataset) else 2}")
    dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, data, mtype=dataset.id.get_type())
    return data


def is_bf16(dataset):
    return dataset.id.get_type().get_size() == 2


def text_of(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def test_h5py_reads_model_h5_with_equal_values(demo_run):
    """Every tensor of hf/ stands in model.h5 under its hf_name, same bits, same values, contiguous, marked complete."""
    left = load_hf(demo_run / "hf")
    with h5py.File(demo_run / "model.h5") as checkpoint:
        assert text_of(checkpoint.attrs["format"]) == "moe-dist-prune checkpoint"
        assert checkpoint.attrs["complete"] == 1

        def check(stored, values, name):
            tensor = left.pop(name)
            assert np.array_equal(stored.reshape(-1).view(np.uint8), bits(tensor).reshape(-1)), name
            assert np.array_equal(values.astype(np.float32), tensor.float().numpy()), name

        def visit(name, item):
            if not isinstance(item, h5py.Dataset) or not name.startswith("model/") and "hf_name" not in item.attrs:
                return
            assert item.chunks is None and item.id.get_offset() is not None, name
            pattern, stored, values = text_of(item.attrs["hf_name"]), raw(item), item[...]
            assert text_of(item.attrs["stored_type"]) == "BF16", name
            if "{expert}" not in pattern:
                check(stored, values, pattern)
                return
            plan_kept = kept_experts(mdp.read_json(demo_run / "plan.json"), int(pattern.split(".")[2]))
            assert item.attrs["original_expert"].tolist() == plan_kept
            assert len(item.attrs["xxh3_128"]) == item.shape[0]
            for expert in range(item.shape[0]):
                check(stored[expert], values[expert], pattern.replace("{expert}", str(expert)))

        checkpoint.visititems(visit)
    assert not left, f"not in model.h5: {sorted(left)[:5]}"


def test_unequal_counts_are_written_to_model_h5_and_refused_for_hf(tmp_path):
    """A plan of the global budget with different counts: stats and plan stay, no model files when hf/ was asked for."""
    words = ["run", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--method", "weighted-ean", "--budget", "global", "--keep", 6]
    mdp.refuse(2, 2, r"keeps \d experts in layer \d and \d in layer \d.*--format hdf5", *words, "--format", "both", "--out", tmp_path / "both")
    assert not mdp.read_json(tmp_path / "both" / "plan.json")["uniform"]
    assert (tmp_path / "both" / "stats.h5").is_file()
    assert not (tmp_path / "both" / "model.h5").exists() and not (tmp_path / "both" / "hf").exists()
    mdp.succeed(3, *words, "--out", tmp_path / "native")
    plan = mdp.read_json(tmp_path / "native" / "plan.json")
    mdp.succeed(2, "eval", "--model", tmp_path / "native" / "model.h5", "--tokens", mdp.EVAL, "--out", tmp_path / "pruned.json")
    mdp.succeed(3, "eval", "--model", mdp.DEMO, "--plan", tmp_path / "native" / "plan.json", "--tokens", mdp.EVAL,
                "--out", tmp_path / "virtual.json")
    assert len({len(layer["experts"]) for layer in plan["layers"]}) > 1
    mdp.assert_close(mdp.perplexity(tmp_path / "pruned.json"), mdp.perplexity(tmp_path / "virtual.json", plan=True), 1e-9)
    mdp.refuse(2, 65, r"\d experts in layer \d and \d in layer \d", "export", "--model", tmp_path / "native" / "model.h5", "--out", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_layers_alone_are_those_of_the_whole_result(demo_run, tmp_path):
    mdp.succeed(2, "apply", "--model", mdp.DEMO, "--plan", demo_run / "plan.json", "--layers", "1-2", "--format", "both",
                "--out", tmp_path / "part")
    whole, part = load_hf(demo_run / "hf"), load_hf(tmp_path / "part" / "hf")
    assert part.keys() == {name for name in whole if name.startswith(("model.layers.1.", "model.layers.2."))}
    assert all(np.array_equal(bits(tensor), bits(whole[name])) for name, tensor in part.items())
    mdp.succeed(1, "verify", tmp_path / "part" / "hf")
    mdp.succeed(1, "verify", tmp_path / "part" / "model.h5")
    for words in ("2-9", "1", "2-1"):
        mdp.refuse(1, 2, f"--layers .*{words}", "apply", "--model", mdp.DEMO, "--plan", demo_run / "plan.json", "--layers", words,
                   "--out", tmp_path / "none")
