"""Multiple choice: tasks.h5 as tools/tokenize makes it, what is refused, and the same numbers on any number of ranks."""
import json

import h5py
import numpy as np
import pytest

import mdp

JSONL = mdp.FIXTURES / "text" / "tasks.jsonl"
GOOD = mdp.TWO_ITEMS


def few_tokens(path):
    return mdp.write_tokens(path, {"text": [[0, 5, 6, 7], [0, 9, 8]]})


def evaluate(ranks, folder, name, tasks, *options):
    tokens = few_tokens(folder / f"{name}-tokens.h5")
    mdp.succeed(ranks, "eval", "--model", mdp.DEMO, "--tokens", tokens, "--tasks", tasks, *options, "--out", folder / f"{name}.json")
    return mdp.read_json(folder / f"{name}.json")["streams"]


def test_tokenize_makes_the_tokens_of_the_joined_text(tmp_path):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(mdp.DEMO / "tokenizer.json"))
    mdp.tool("tokenize", "--tokenizer", mdp.DEMO, "--tasks", "--out", tmp_path / "tasks.h5", JSONL)
    assert (tmp_path / "tasks.h5").read_bytes() == mdp.TASKS.read_bytes()
    next_item = {}
    with h5py.File(mdp.TASKS) as tasks:
        for line in JSONL.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            i = next_item[item["task"]] = next_item.get(item["task"], -1) + 1
            row = {name: tasks[f"{item['task']}/{name}"] for name in GOOD}
            context = row["context_ids"][row["context_offsets"][i]:row["context_offsets"][i + 1]].tolist()
            first, end = row["item_offsets"][i:i + 2]
            assert context[0] == 0 and end - first == len(item["choices"]) and row["answer"][i] == item["answer"]
            for j, text in zip(range(first, end), item["choices"], strict=True):
                choice = row["choice_ids"][row["choice_offsets"][j]:row["choice_offsets"][j + 1]].tolist()
                assert context + choice == tokenizer.encode(item["context"] + text).ids
                assert row["choice_bytes"][j] == len(text.encode())
        assert {task: len(tasks[task]["answer"]) for task in tasks} == {task: n + 1 for task, n in next_item.items()}


@pytest.mark.parametrize("item, sentence", [
    ({"task": "t", "context": "a", "choices": ["b"], "answer": 0}, "two are the least"),
    ({"task": "t", "context": "a", "choices": ["b", "c"], "answer": 2}, "answer 2 is none of 2 choices"),
    ({"task": "t", "context": "a", "choices": ["b", ""], "answer": 0}, "a choice is empty"),
    ({"task": "t", "choices": ["b", "c"], "answer": 0}, "line 1: expected an object"),
    ({"task": "a/b", "context": "a", "choices": ["b", "c"], "answer": 0}, "use a name without '/'"),
])
def test_tokenize_refuses_items(item, sentence, tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    result = mdp.tool("tokenize", "--tokenizer", mdp.DEMO, "--tasks", "--out", tmp_path / "t.h5", tmp_path / "items.jsonl", check=False)
    assert result.returncode == 1 and sentence in result.stderr and not (tmp_path / "t.h5").exists()


def test_items_may_have_different_numbers_of_choices(tmp_path):
    """The log-likelihoods are those of the logits of the whole sequences."""
    result = evaluate(2, tmp_path, "eval", mdp.write_tasks(tmp_path / "tasks.h5", {"b": GOOD, "a": GOOD}))[0]["tasks"]
    sequences = [[0, 5, 6, 8], [0, 5, 6, 9, 10], [0, 7, 11], [0, 7, 12], [0, 7, 13]]
    tokens = mdp.write_tokens(tmp_path / "whole.h5", {"whole": sequences})
    mdp.succeed(1, "eval", "--model", mdp.DEMO, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "whole.json")
    sums = []
    with h5py.File(tmp_path / "dump.h5") as dump:
        for i, (ids, given) in enumerate(zip(sequences, [3, 3, 2, 2, 2])):
            logits = dump[f"original/whole/{i}/logits"][...].astype(np.float64)
            log_p = logits - logits.max(axis=1, keepdims=True)
            log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
            sums.append(sum(log_p[t - 1, ids[t]] for t in range(given, len(ids))))
    lengths = {"accuracy_sum": np.ones(5), "accuracy_token": np.array([1, 2, 1, 1, 1]), "accuracy_byte": np.array(GOOD["choice_bytes"])}
    assert list(result) == ["a", "b"]
    for task in result.values():
        assert [len(choices) for choices in task["loglikelihood"]] == [2, 3]
        assert np.allclose(sum(task["loglikelihood"], []), sums, atol=1e-5)
        for name, length in lengths.items():
            value = np.array(sums) / length
            assert task[name] == ((value[:2].argmax() == 1) + (value[2:].argmax() == 2)) / 2, name


def test_equal_choices_go_to_the_first(tmp_path):
    rows = {"context_ids": [0, 5], "context_offsets": [0, 1, 2], "item_offsets": [0, 2, 4], "choice_ids": [9] * 4,
            "choice_offsets": [0, 1, 2, 3, 4], "choice_bytes": [1] * 4, "answer": [0, 1]}
    task = evaluate(1, tmp_path, "eval", mdp.write_tasks(tmp_path / "tasks.h5", {"same": rows}))[0]["tasks"]["same"]
    assert [task[name] for name in ("accuracy_sum", "accuracy_token", "accuracy_byte")] == [0.5] * 3


@pytest.mark.parametrize("change, sentence", [
    ({"answer": [1, 3]}, r"task 'bad', item 1 has 3 choices and the answer 3; expected at least 2"),
    ({"answer": [-1, 0]}, r"item 0 has 2 choices and the answer -1"),
    ({"answer": []}, r"task 'bad' has no items"),
    ({"context_ids": [0, 5, 2048, 0, 7]}, r"context_ids, position 2: token id 2048 is outside the vocabulary of 2048"),
    ({"choice_ids": [8, 9, -1, 11, 12, 13]}, r"choice_ids, position 2: token id -1 is outside"),
    ({"context_offsets": [0, 0, 5]}, r"item 0 has an empty context"),
    ({"context_offsets": [0, 3, 4]}, r"context_offsets of task 'bad' must be 3 numbers that rise from 0 to 5"),
    ({"item_offsets": [0, 5]}, r"item_offsets of task 'bad' must be 3 numbers"),
    ({"item_offsets": [0, 1, 5]}, r"item 0 has 1 choices"),
    ({"choice_offsets": [0, 1, 1, 4, 5, 6]}, r"item 0: choice 1 is empty"),
    ({"choice_offsets": [0, 3, 1, 4, 5, 6]}, r"choice_offsets of task 'bad' must be 6 numbers"),
    ({"choice_bytes": [2, 0, 1, 1, 1]}, r"item 0: choice 1 is empty"),
])
def test_refuses_tasks_that_do_not_fit(change, sentence, tmp_path):
    tasks = mdp.write_tasks(tmp_path / "tasks.h5", {"a good one": GOOD, "bad": {**GOOD, **change}})
    mdp.refuse(2, 65, sentence, "eval", "--model", mdp.DEMO, "--tokens", few_tokens(tmp_path / "t.h5"), "--tasks", tasks,
               "--out", tmp_path / "eval.json")
    assert not (tmp_path / "eval.json").exists()


def test_refuses_a_file_of_another_kind(tmp_path):
    words = ["eval", "--model", mdp.DEMO, "--tokens", few_tokens(tmp_path / "t.h5"), "--out", tmp_path / "eval.json", "--tasks"]
    mdp.refuse(2, 65, r"there is no dataset /c/context_ids", *words, mdp.EVAL)
    mdp.refuse(1, 65, r"there is no task", *words, mdp.write_tasks(tmp_path / "empty.h5", {}))


def test_streams_are_the_same_on_any_number_of_ranks_and_threads(tmp_path):
    (tmp_path / "items.jsonl").write_text("".join(JSONL.read_text(encoding="utf-8").splitlines(True)[::40]), encoding="utf-8")
    mdp.tool("tokenize", "--tokenizer", mdp.DEMO, "--tasks", "--out", tmp_path / "tasks.h5", tmp_path / "items.jsonl")
    with h5py.File(mdp.EVAL) as text:
        tokens = mdp.write_tokens(tmp_path / "tokens.h5", {c: [text[f"{c}/input_ids"][:n]] for c, n in (("c", 700), ("math", 1100))})
    mdp.succeed(1, "observe", "--model", mdp.DEMO, "--tokens", tokens, "--out", tmp_path / "stats.h5")
    mdp.succeed(1, "plan", "--stats", tmp_path / "stats.h5", "--method", "reap", "--keep", 4, "--out", tmp_path / "plan.json")
    found = []
    for ranks, threads in ((1, 1), (3, 1), (1, 2)):
        out = tmp_path / f"{ranks}-{threads}.json"
        mdp.succeed(ranks, "eval", "--model", mdp.DEMO, "--tokens", tokens, "--tasks", tmp_path / "tasks.h5", "--plan", tmp_path / "plan.json",
                    "--threads", threads, "--out", out)
        found.append(json.dumps(mdp.read_json(out)["streams"]))
    assert found[0] == found[1] == found[2]


def test_run_answers_tasks_without_text(tmp_path):
    result = mdp.succeed(2, "run", "--model", mdp.DEMO, "--tokens", few_tokens(tmp_path / "t.h5"), "--tasks",
                         mdp.write_tasks(tmp_path / "tasks.h5", {"only": GOOD}), "--method", "frequency", "--keep", 4, "--out", tmp_path / "out")
    before, after = mdp.read_json(tmp_path / "out" / "eval.json")["streams"]
    assert before["nll"] == after["kl_to_original"] == {"total": None, "categories": {}}
    assert before["tasks"]["only"]["loglikelihood"] != after["tasks"]["only"]["loglikelihood"]
    assert "only" in result.stdout and "perplexity" not in result.stdout
