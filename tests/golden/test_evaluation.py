"""What eval measures equals transformers' own results, or numpy on the logits that --dump writes."""
import json

import h5py
import numpy as np
import pytest
import torch
import transformers

import mdp

REFERENCE = mdp.read_json(mdp.DEMO / "reference.json")
MEASURES = ["nll", "kl_to_original", "top1_agreement", "exact_match"]


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def measure(ids, logits, original):
    """Sums over one sequence, by the definitions: (nll, kl, positions that agree, 1 when the last half is exact)."""
    p, q, target = log_softmax(original[:-1].astype(np.float64)), log_softmax(logits[:-1].astype(np.float64)), ids[1:]
    right = logits[:-1].argmax(axis=1) == target  # numpy's argmax takes the first of equals
    return np.array([-q[np.arange(len(target)), target].sum(), (np.exp(p) * (p - q)).sum(),
                     (logits[:-1].argmax(axis=1) == original[:-1].argmax(axis=1)).sum(), right[-(len(ids) // 2):].all()])


def expected(tokens, dump, stream):
    """{measure: {category or 'total': mean}} of a stream of a dump."""
    sums, counts = {}, {}
    with h5py.File(tokens) as text, h5py.File(dump) as arrays:
        for category in text:
            offsets = text[f"{category}/offsets"][...]
            for i in range(len(offsets) - 1):
                ids = text[f"{category}/input_ids"][offsets[i]:offsets[i + 1]]
                result = measure(ids, arrays[f"{stream}/{category}/{i}/logits"][...], arrays[f"original/{category}/{i}/logits"][...])
                for name in (category, "total"):
                    sums[name] = sums.get(name, 0) + result
                    counts[name] = counts.get(name, 0) + np.array([len(ids) - 1] * 3 + [1])
    return {measure: {name: (sums[name] / counts[name])[m] for name in sums} for m, measure in enumerate(MEASURES)}


def means(result, measure):
    return {**result[measure]["categories"], "total": result[measure]["total"]}


def short_text(path, n=2, length=90):
    """The first sequences of two categories of the evaluation text, cut."""
    with h5py.File(mdp.EVAL) as text:
        return mdp.write_tokens(path, {c: text[f"{c}/input_ids"][:n * 256].reshape(n, 256)[:, :length] for c in ("c", "spanish")})


def greedy_text(path, folder):
    """Sequences of 5 tokens: with the last two, only the last one, and none as the demo predicts them greedily."""
    rng = np.random.default_rng(5)
    sequences, wanted = [list(rng.integers(1, 900, 3)) for _ in range(9)], [2, 1, 0] * 3
    for step in range(2):
        mdp.write_tokens(path, {"text": sequences})
        mdp.succeed(1, "eval", "--model", mdp.DEMO, "--tokens", path, "--dump", folder / f"greedy{step}.h5", "--out", folder / f"greedy{step}.json")
        with h5py.File(folder / f"greedy{step}.h5") as dump:
            best = [int(dump[f"original/text/{i}/logits"][-1].argmax()) for i in range(len(sequences))]
        sequences = [s + [b if n >= 2 - step else (b + 1) % 900] for s, b, n in zip(sequences, best, wanted)]
    return mdp.write_tokens(path, {"text": sequences})


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Two plans of the demo: 6 and 3 of 8 experts, chosen on a little text."""
    folder = tmp_path_factory.mktemp("plans")
    tokens = short_text(folder / "tokens.h5")
    mdp.succeed(1, "observe", "--model", mdp.DEMO, "--tokens", tokens, "--out", folder / "stats.h5")
    for keep in (6, 3):
        mdp.succeed(1, "plan", "--stats", folder / "stats.h5", "--method", "reap", "--keep", keep, "--out", folder / f"{keep}.json")
    return [folder / "6.json", folder / "3.json"]


def test_measures_of_many_plans_equal_numpy_on_the_logits(plans, tmp_path):
    tokens, options = short_text(tmp_path / "tokens.h5"), [word for plan in plans for word in ("--plan", plan)]
    mdp.succeed(2, "eval", "--model", mdp.DEMO, "--tokens", tokens, *options, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    streams = mdp.read_json(tmp_path / "eval.json")["streams"]
    assert [s["plan"] for s in streams] == [None, *map(str, plans)]
    for stream in streams:
        theirs = expected(tokens, tmp_path / "dump.h5", stream["name"].replace("/", ":"))
        for name, allowed in zip(MEASURES, (1e-5, 1e-5, 1e-9, 1e-9)):
            ours = means(stream, name)
            assert ours.keys() == theirs[name].keys()
            for key, value in theirs[name].items():
                assert abs(ours[key] - value) <= allowed, (stream["name"], name, key, ours[key], value)
        assert np.isclose(stream["perplexity"]["total"], np.exp(stream["nll"]["total"]), rtol=1e-7)
    original, less, least = streams
    assert means(original, "kl_to_original") == {"c": 0, "spanish": 0, "total": 0}
    assert means(original, "top1_agreement") == {"c": 1, "spanish": 1, "total": 1}
    assert 0.01 < less["kl_to_original"]["total"] < least["kl_to_original"]["total"]
    assert 1 > less["top1_agreement"]["total"] > least["top1_agreement"]["total"]


def test_overlap_equals_numpy_on_the_logits_and_what_it_takes_is_foretold(plans, tmp_path):
    """The sum over the vocabulary of the lesser probability; nothing else of the evaluation changes."""
    tokens = short_text(tmp_path / "tokens.h5")
    words = ["eval", "--model", mdp.DEMO, "--tokens", tokens, "--plan", plans[0], "--plan", plans[1]]
    mdp.succeed(1, *words, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "without.json")
    mdp.succeed(3, *words, "--overlap", "--batch-tokens", 90, "--profile", "--out", tmp_path / "eval.json")
    told = json.loads(mdp.succeed(3, *words, "--overlap", "--batch-tokens", 90, "--dry-run", "--json", "--gflops-per-rank", 9, "--out", tmp_path / "dry.json").stdout)
    (done,) = mdp.read_json(tmp_path / "eval.json.profile.json")["passes"]
    assert done["all"]["flop"]["total"] == told["flop"]
    ours, without = mdp.measures(tmp_path / "eval.json"), mdp.measures(tmp_path / "without.json")
    with h5py.File(tokens) as text, h5py.File(tmp_path / "dump.h5") as arrays:
        for stream, (name, measured) in enumerate(zip(["original", *(str(plan).replace("/", ":") for plan in plans)], ours)):
            shared = {c: [] for c in text}
            for c in text:
                for i in range(2):
                    p, q = (np.exp(log_softmax(arrays[f"{s}/{c}/{i}/logits"][:-1].astype(np.float64))) for s in ("original", name))
                    shared[c].append(np.minimum(p, q).sum(1))
            theirs = {**{c: np.mean(rows) for c, rows in shared.items()}, "total": np.mean(list(shared.values()))}
            mdp.assert_close(means(measured, "overlap"), theirs, 1e-5)
            assert (means(measured, "overlap")["total"] == 1) == (stream == 0)
            del measured["overlap"]
    assert ours == without


def residuals(folder, sequences):
    """[layer][sequence] residual stream after each layer, by transformers."""
    model, rows = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
    for layer in model.model.layers:
        found = []
        rows.append(found)
        layer.register_forward_hook(lambda _, __, out, found=found: found.append((out[0] if isinstance(out, tuple) else out).double().numpy()))
    with torch.no_grad():
        for ids in sequences:
            model(torch.tensor(ids[None].astype(np.int64)))
    return rows


def test_layer_errors_equal_those_of_transformers(plans, tmp_path):
    tokens = short_text(tmp_path / "tokens.h5")
    mdp.succeed(3, "eval", "--model", mdp.DEMO, "--tokens", tokens, "--plan", plans[0], "--plan", plans[1], "--out", tmp_path / "eval.json")
    original, _, least = mdp.read_json(tmp_path / "eval.json")["streams"]
    mdp.succeed(1, "apply", "--model", mdp.DEMO, "--plan", plans[1], "--format", "safetensors", "--out", tmp_path / "out")
    with h5py.File(tokens) as text:
        sequences = [text[f"{c}/input_ids"][...].reshape(2, 90)[i] for c in text for i in range(2)]
    before, after = (residuals(folder, sequences) for folder in (mdp.DEMO, tmp_path / "out" / "hf"))
    theirs = [np.sqrt(sum(((b - a) ** 2).sum() for a, b in zip(*layer)) / sum((a ** 2).sum() for a in layer[0]))
              for layer in zip(before, after, strict=True)]
    assert np.allclose(least["layer_error"], theirs, rtol=1e-4, atol=0)
    assert original["layer_error"] == [0] * len(theirs) and theirs[0] > 0.01


def test_exact_match_is_about_the_last_half_of_each_text(tmp_path):
    tokens = greedy_text(tmp_path / "tokens.h5", tmp_path)
    mdp.succeed(2, "eval", "--model", mdp.DEMO, "--tokens", tokens, "--out", tmp_path / "eval.json")
    assert np.isclose(mdp.read_json(tmp_path / "eval.json")["streams"][0]["exact_match"]["total"], 1 / 3)


def check_choices(tasks, task, loglikelihoods):
    """One task of eval.json beside transformers' sums of its items, in order."""
    result, theirs = tasks[task], REFERENCE["multiple_choice"][task]
    assert result["n"] == theirs["items"] == len(loglikelihoods)
    assert np.abs(np.array(result["loglikelihood"]) - loglikelihoods).max() <= 1e-3
    for ours, name in (("accuracy_sum", "acc_sum"), ("accuracy_token", "acc_norm_tokens"), ("accuracy_byte", "acc_norm_bytes")):
        assert result[ours] == theirs[name], (task, ours)


def test_multiple_choice_equals_transformers_item_for_item(tmp_path):
    tokens = short_text(tmp_path / "tokens.h5", 1, 8)
    mdp.succeed(2, "eval", "--model", mdp.DEMO, "--tokens", tokens, "--tasks", mdp.TASKS, "--out", tmp_path / "eval.json", timeout=600)
    by_task = {}
    for line, sums in zip((mdp.TASKS.parent / "tasks.jsonl").read_text(encoding="utf-8").splitlines(),
                          REFERENCE["multiple_choice_loglikelihoods"], strict=True):
        by_task.setdefault(json.loads(line)["task"], []).append(sums)
    tasks = mdp.read_json(tmp_path / "eval.json")["streams"][0]["tasks"]
    assert list(tasks) == sorted(by_task)
    for task, sums in by_task.items():
        check_choices(tasks, task, np.array(sums))
