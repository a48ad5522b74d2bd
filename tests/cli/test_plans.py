"""Budgets against slow, obvious versions; plan.json against its schema; fewer experts per token against transformers."""
import copy
import fractions
import itertools
import json

import h5py
import jsonschema
import numpy as np
import pytest
import torch
import transformers
import xxhash

import mdp

USAGE, BAD_INPUT = 2, 65
MODEL = mdp.GOLDEN / "mixtral"  # 3 layers of 8 experts, top-2
SCHEMA = jsonschema.Draft202012Validator(mdp.read_json(mdp.ROOT / "doc" / "plan.schema.json"))


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    tokens = mdp.golden_tokens("mixtral", folder / "tokens.h5")
    mdp.succeed(2, "observe", "--model", MODEL, "--tokens", tokens, "--out", folder / "stats.h5")
    return folder / "stats.h5"


def plan(stats, out, *words, ranks=1):
    mdp.succeed(ranks, "plan", "--stats", stats, *words, "--out", out)
    content = mdp.read_json(out)
    SCHEMA.validate(content)
    return content


def kept(content):
    return [[e["from"][0] for e in layer["experts"]] for layer in content["layers"]]


def scores(content):
    return [layer["scores"] for layer in content["layers"]]


# ---- slow versions

def best(row, n):
    """The n best experts; of equal ones the higher stay."""
    return sorted(sorted(range(len(row)), key=lambda e: (row[e], e))[len(row) - n:])


def ranked(rows, keep, least):
    """The set of removed (layer, expert) that ranks all together: remove one after the other, always the worst allowed."""
    gone = set()
    while len(gone) < sum(map(len, rows)) - keep * len(rows):
        left = [len(row) - sum(layer == i for layer, _ in gone) for i, row in enumerate(rows)]
        gone.add(min((x for x in itertools.product(range(len(rows)), range(len(rows[0]))) if x not in gone and left[x[0]] > least),
                     key=lambda x: (rows[x[0]][x[1]], x)))
    return [[e for e in range(len(row)) if (i, e) not in gone] for i, row in enumerate(rows)]


def trapezoid(n_layer, n_expert, keep, low):
    """Exact: between two corners of the sum over layers it is a line."""
    slope = [1 + fractions.Fraction(i, max(n_layer - 1, 1)) for i in range(n_layer)]

    def share(c):
        return [min(max(c * s, low), n_expert) for s in slope]
    corners = sorted({fractions.Fraction(x) / s for s in slope for x in (0, low, n_expert)})
    for a, b in zip(corners, corners[1:]):
        if sum(share(a)) <= n_layer * keep <= sum(share(b)):
            rise = sum(share(b)) - sum(share(a))
            c = a + (b - a) * (n_layer * keep - sum(share(a))) / rise if rise else a
    floors = [int(x) for x in share(c)]
    order = sorted(range(n_layer), key=lambda i: (floors[i] - share(c)[i], i))
    for i in order[:n_layer * keep - sum(floors)]:
        floors[i] += 1
    return floors


# ---- budgets

@pytest.mark.parametrize("keep", [2, 3, 4, 5, 6, 7, 8])
def test_trapezoid_gives_deeper_layers_more(keep, stats, tmp_path):
    content = plan(stats, tmp_path / "p.json", "--method", "frequency", "--budget", "trapezoid", "--keep", keep)
    counts = trapezoid(3, 8, keep, 2)
    assert kept(content) == [best(row, n) for row, n in zip(scores(content), counts)]
    assert counts == sorted(counts)


@pytest.mark.parametrize("keep, least", [(3, 2), (4, 2), (5, 2), (4, 3), (5, 5)])
def test_global_is_one_ranking(keep, least, stats, tmp_path):
    content = plan(stats, tmp_path / "p.json", "--method", "reap", "--budget", "global", "--keep", keep, "--min-keep", least)
    assert kept(content) == ranked(scores(content), keep, least)


def test_keep_file_gives_every_layer_its_number(stats, tmp_path):
    (tmp_path / "keep.json").write_text('{"2": 7, "0": 2, "1": 5}')
    content = plan(stats, tmp_path / "p.json", "--method", "reap", "--keep-file", tmp_path / "keep.json", ranks=3)
    assert kept(content) == [best(row, n) for row, n in zip(scores(content), [2, 5, 7])]
    assert content["recipe"]["keep"] == [2, 5, 7] and content["uniform"] is False


@pytest.mark.parametrize("words, counts", [
    (["--keep", 4, "--keep-multiple-of", 4], [4, 4, 4]),
    (["--keep-ratio", 0.63, "--keep-multiple-of", 4], [4, 4, 4]),  # 5 of 8
    (["--keep-ratio", 0.75, "--keep-multiple-of", 4], [8, 8, 8]),  # 6 of 8: half goes up
    (["--keep", 4, "--keep-multiple-of", 2, "--budget", "trapezoid"], [2, 4, 6]),
])
def test_layers_keep_multiples(words, counts, stats, tmp_path):
    content = plan(stats, tmp_path / "p.json", "--method", "reap", *words)
    assert kept(content) == [best(row, n) for row, n in zip(scores(content), counts)]


@pytest.mark.parametrize("multiple", [2, 3, 4])
def test_global_is_rounded_to_multiples_by_largest_remainder(multiple, stats, tmp_path):
    words = ["--method", "frequency", "--budget", "global", "--keep", 4]
    free = [len(x) for x in kept(plan(stats, tmp_path / "free.json", *words))]
    content = plan(stats, tmp_path / "p.json", *words, "--keep-multiple-of", multiple)
    counts = [len(x) for x in kept(content)]
    assert all(n % multiple == 0 and n >= 2 for n in counts) and sum(counts) == 12
    assert kept(content) == [best(row, n) for row, n in zip(scores(content), counts)]
    # no other numbers of this kind lie nearer to the free ones
    choices = [x for x in itertools.product(range(multiple * -(-2 // multiple), 9, multiple), repeat=3) if sum(x) == 12]
    assert sum(abs(a - b) for a, b in zip(counts, free)) == min(sum(abs(a - b) for a, b in zip(x, free)) for x in choices)


@pytest.mark.parametrize("words, sentence", [
    (["--keep", 5, "--keep-multiple-of", 2], r"layer 0: 5 experts to keep are not a multiple of 2"),
    (["--keep", 8, "--keep-multiple-of", 16], r"layer 0: .*multiple of 16"),
    (["--keep", 8, "--keep-multiple-of", 5, "--budget", "global"], r"layer 0: with multiples of 5 .* 5 to 5 experts"),
    (["--keep", 4, "--top-k", 3], r"layer 0: --top-k 3 is more than the 2 experts"),
    (["--keep", 4, "--top-k", 0], r"--top-k"),
    (["--keep", 4, "--min-keep", 3], r"--min-keep has a meaning only with"),
    (["--keep", 4, "--budget", "trapezoid", "--normalise", "layer-sum"], r"--normalise has a meaning only with"),
    (["--budget", "trapezoid"], r"--keep"),
    (["--keep", 1, "--budget", "trapezoid"], r"--keep 1 is less than the 2"),
], ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "")
def test_impossible_numbers_are_refused_before_anything_runs(words, sentence, stats, tmp_path):
    mdp.refuse(3, USAGE, sentence, "run", "--model", MODEL, "--tokens", stats.parent / "tokens.h5", "--method", "reap",
               *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, code, sentence", [
    ('{"0": 2, "1": 5}', USAGE, r"layer 2 has experts, but --keep-file does not say"),
    ('{"0": 2, "1": 5, "2": 5, "3": 5}', USAGE, r"layer 3 is in --keep-file, but has no experts"),
    ('{"0": 2, "1": 1, "2": 5}', USAGE, r"layer 1: keeping 1 experts is less than the 2"),
    ('{"0": 2, "1": 9, "2": 5}', USAGE, r"layer 1: 9 experts cannot be kept of 8"),
    ('{"0": 2, "0": 3, "1": 4, "2": 5}', BAD_INPUT, r"keep\.json"),
    ('{"0": 2, "00": 3, "1": 4, "2": 5}', BAD_INPUT, r"keep\.json: layer 0 is listed twice"),
    ('{"0": 2, "one": 3}', BAD_INPUT, r"keep\.json: 'one' is not the number of a layer"),
    ('{"0": 2.5}', BAD_INPUT, r"keep\.json: layer 0: .*integer"),
    ("[2, 3, 4]", BAD_INPUT, r"keep\.json: must be a JSON object"),
    ("{", BAD_INPUT, r"keep\.json"),
])
def test_wrong_keep_files_are_refused(text, code, sentence, stats, tmp_path):
    (tmp_path / "keep.json").write_text(text)
    mdp.refuse(2, code, sentence, "plan", "--stats", stats, "--method", "reap", "--keep-file", tmp_path / "keep.json",
               "--out", tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


# ---- rounds

@pytest.mark.parametrize("method, budget", [("reap", "uniform"), ("easy", "uniform"), ("soft", "global")])
def test_rounds_equal_pruning_writing_and_observing_again(method, budget, stats, tmp_path):
    """Each round sees what the round before leaves: the same as a checkpoint written in between."""
    tokens, step = stats.parent / "tokens.h5", ["--method", method, "--budget", budget]
    mdp.succeed(3, "run", "--model", MODEL, "--tokens", tokens, *step, "--keep", 4, "--rounds", 2, "--out", tmp_path / "out")
    both = mdp.read_json(tmp_path / "out" / "plan.json")
    SCHEMA.validate(both)
    assert both["recipe"]["options"]["rounds"] == 2 and both["recipe"]["keep"] == 4
    one = plan(stats, tmp_path / "one.json", *step, "--keep", 6)
    mdp.succeed(1, "apply", "--model", MODEL, "--plan", tmp_path / "one.json", "--out", tmp_path / "half")
    mdp.succeed(1, "observe", "--model", tmp_path / "half" / "model.h5", "--tokens", tokens, "--out", tmp_path / "half.h5")
    two = plan(tmp_path / "half.h5", tmp_path / "two.json", *step, "--keep", 4)
    assert [[before[e] for e in after] for before, after in zip(kept(one), kept(two))] == kept(both)
    for original, first_round, second, left in zip(scores(both), scores(one), scores(two), kept(one)):
        for e in range(8):
            assert original[e] == (second[left.index(e)] if e in left else first_round[e]), e
    single = plan(stats, tmp_path / "single.json", *step, "--keep", 4)
    assert scores(single) != scores(both)
    assert mdp.digests(tmp_path / "out" / "stats.h5") == mdp.digests(stats)  # of the model as it is


def test_rounds_do_not_depend_on_ranks_and_one_round_is_none(stats, tmp_path):
    words = ["run", "--model", MODEL, "--tokens", stats.parent / "tokens.h5", "--method", "reap", "--keep", 3, "--out"]
    for ranks in (1, 4):
        mdp.succeed(ranks, *words, tmp_path / f"r{ranks}", "--rounds", 3)
    assert (tmp_path / "r1" / "plan.json").read_bytes() == (tmp_path / "r4" / "plan.json").read_bytes()
    mdp.succeed(2, *words, tmp_path / "one", "--rounds", 1)
    plan(stats, tmp_path / "p.json", "--method", "reap", "--keep", 3)
    assert (tmp_path / "one" / "plan.json").read_bytes() == (tmp_path / "p.json").read_bytes()


@pytest.mark.parametrize("budget, enough", [
    (["--keep", 6], 2), (["--keep", 4, "--keep-multiple-of", 4], 1), (["--keep", 6, "--budget", "global"], 2),
    (["--keep-file", '{"0": 8, "1": 5, "2": 7}'], 3), (["--top-k", 1], 1),
])
def test_there_are_no_more_rounds_than_experts_to_remove(budget, enough, stats, tmp_path):
    if budget[0] == "--keep-file":
        (tmp_path / "keep.json").write_text(budget[1])
        budget = ["--keep-file", tmp_path / "keep.json"]
    words = ["run", "--model", MODEL, "--tokens", stats.parent / "tokens.h5", "--method", "reap", *budget]
    many = mdp.succeed(2, *words, "--rounds", 100, "--out", tmp_path / "many", "--profile")
    mdp.succeed(2, *words, "--rounds", enough, "--out", tmp_path / "enough")
    assert f"--rounds 100: {enough} are enough" in many.stderr, str(many)
    assert [one["pass"] for one in mdp.read_json(tmp_path / "many" / "profile.json")["passes"]] == ["observe"] * enough + ["write model.h5"]
    assert (tmp_path / "many" / "plan.json").read_bytes() == (tmp_path / "enough" / "plan.json").read_bytes()


@pytest.mark.parametrize("method", ["random", "characteristic"])
def test_rounds_are_refused_where_nothing_would_be_seen(method, stats, tmp_path):
    mdp.refuse(2, USAGE, f"--rounds .*'{method}'", "run", "--model", MODEL, "--tokens", stats.parent / "tokens.h5", "--method", method,
               "--keep", 4, "--rounds", 2, "--out", tmp_path / "out")


# ---- recipes

def test_recipe_says_what_it_stands_for_and_is_that(stats, tmp_path):
    result = mdp.succeed(2, "plan", "--stats", stats, "--method", "seer", "--keep", 4, "--top-k", 1, "--out", tmp_path / "seer.json")
    assert result.stderr.count("method seer stands for --method soft --budget global\n") == 1, str(result)
    plan(stats, tmp_path / "long.json", "--method", "soft", "--budget", "global", "--keep", 4, "--top-k", 1)
    assert (tmp_path / "seer.json").read_bytes() == (tmp_path / "long.json").read_bytes()
    content = plan(stats, tmp_path / "own.json", "--method", "seer", "--budget", "uniform", "--keep", 4)
    assert content["recipe"]["budget"] == "uniform" and content["recipe"]["method"] == "soft"


# ---- fewer experts per token

def test_top_k_alone_keeps_everything_and_equals_transformers(stats, tmp_path):
    """The virtual model of `eval`, the one that was written, and transformers with another number of experts per token."""
    tokens = stats.parent / "tokens.h5"
    mdp.succeed(2, "run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--top-k", 1, "--eval-tokens", tokens,
                "--format", "safetensors", "--out", tmp_path / "out")
    content = mdp.read_json(tmp_path / "out" / "plan.json")
    SCHEMA.validate(content)
    assert kept(content) == [list(range(8))] * 3 and [layer["k"] for layer in content["layers"]] == [1, 1, 1]
    before, after = mdp.read_json(MODEL / "config.json"), mdp.read_json(tmp_path / "out" / "hf" / "config.json")
    assert {key for key in after if after[key] != before.get(key)} == {"num_experts_per_tok"} and after["num_experts_per_tok"] == 1
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, num_experts_per_tok=1, dtype=torch.float32).eval()
    total, n = 0.0, 0
    with h5py.File(tokens) as text, torch.no_grad():
        ids, offsets = text["golden/input_ids"][...].astype(np.int64), text["golden/offsets"][...]
        for a, b in zip(offsets, offsets[1:]):
            if b - a < 2:
                continue
            row = torch.tensor(ids[a:b])[None]
            total += float(torch.nn.functional.cross_entropy(model(row).logits[0, :-1].double(), row[0, 1:], reduction="sum"))
            n += int(b - a) - 1
    expected = np.exp(total / n)
    found = mdp.perplexity(tmp_path / "out" / "eval.json", plan=True)["total"]
    assert abs(found / expected - 1) < 1e-4, (found, expected)
    assert abs(mdp.perplexity(tmp_path / "out" / "eval.json")["total"] / expected - 1) > 1e-3  # top-2 is another model
    mdp.succeed(1, "eval", "--model", tmp_path / "out" / "hf", "--tokens", tokens, "--out", tmp_path / "written.json")
    assert mdp.perplexity(tmp_path / "written.json")["total"] == found


def test_report_counts_active_parameters_and_flop_per_token(stats, tmp_path):
    tokens = stats.parent / "tokens.h5"
    result = mdp.succeed(2, "run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 1, "--top-k", 1, "--out", tmp_path / "out")
    report, config = mdp.read_json(tmp_path / "out" / "report.json"), mdp.read_json(MODEL / "config.json")
    d, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    assert report["before"]["active_parameters"] - report["after"]["active_parameters"] == layers * (3 * d * f + 7 * d)
    assert report["before"]["flop_per_token"] - report["after"]["flop_per_token"] == 2 * layers * (3 * d * f + 7 * d)
    assert "FLOP per token" in result.stdout


def test_k_that_differs_between_layers_can_be_tried_but_not_written(stats, tmp_path):
    content = plan(stats, tmp_path / "p.json", "--method", "reap", "--keep", 4, "--top-k", 1)
    del content["layers"][1]["k"]
    (tmp_path / "p.json").write_text(json.dumps(content))
    SCHEMA.validate(content)
    words = ["--model", MODEL, "--plan", tmp_path / "p.json", "--out"]
    mdp.refuse(2, BAD_INPUT, r'layer 1: "k" is not that of layer 0', "apply", *words, tmp_path / "out")
    mdp.succeed(2, "eval", *words, tmp_path / "eval.json", "--tokens", stats.parent / "tokens.h5")


# ---- plan.json

def array_of(path, values, arrays):
    arrays[path] = values
    return {"path": path, "xxh3": xxhash.xxh3_128(values.tobytes()).hexdigest()}


def with_action(content, action, arrays):
    """The plan with the first kept experts of layer 1 under another action."""
    experts = content["layers"][1]["experts"]
    entry = experts[0]
    if action in ("merge", "condense"):
        entry["from"] += experts.pop(1)["from"]
        entry["weights"] = [0.25, 0.75]
    if action == "merge":
        entry.update(align="weight", arrays={"gate": array_of("/layers/1/0/gate", np.arange(6).reshape(2, 3), arrays)})
    if action == "constant":
        entry["arrays"] = {"value": array_of("/layers/1/0/value", np.arange(5, dtype=np.float32), arrays)}
    if action == "neurons":
        entry["neurons"] = "5" * 20
    if action == "mask":
        entry["mask"] = {"keep": 2, "of": 4}
        entry["arrays"] = {name: array_of(f"/m/{name}", np.arange(4, dtype=np.float32), arrays) for name in ("input_norm", "hidden_norm")}
    entry["action"] = action
    content["uniform"] = len({len(layer["experts"]) for layer in content["layers"]}) == 1
    return content


def write(content, arrays, path):
    path.write_text(json.dumps(content))
    with h5py.File(path.with_suffix(".h5"), "w") as out:
        for name, values in arrays.items():
            out[name] = values


ACTIONS = ["merge", "constant", "condense", "neurons", "mask"]


@pytest.fixture(scope="module")
def plain(stats):
    return plan(stats, stats.parent / "plain.json", "--method", "reap", "--keep", 5)


@pytest.mark.parametrize("action", ACTIONS)
def test_action_that_cannot_be_carried_out_is_named(action, plain, tmp_path):
    """A merge can be, when all of the expert is in plan.h5, a mask, with norms of the right widths, and a cut of all experts."""
    arrays = {}
    content = with_action(copy.deepcopy(plain), action, arrays)
    write(content, arrays, tmp_path / "p.json")
    SCHEMA.validate(content)
    code, sentence = {
        "merge": (BAD_INPUT, r"layer 1, expert \d+: the plan merges it, and has no 'up'"),
        "mask": (BAD_INPUT, r"p\.h5: array '/m/input_norm' has 16 bytes in one run, expected 256 \(F32\); it is not of this model"),
        "neurons": (BAD_INPUT, r"p\.json: layer 0: expert \d+ is not cut, and others are"),
    }.get(action, (USAGE, rf"p\.json: layer 1, expert \d+: the action '{action}'.*cannot be carried out"))
    mdp.refuse(2, code, sentence, "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zeroed_experts_are_carried_out(plain, tmp_path):
    write(with_action(copy.deepcopy(plain), "zero", {}), {}, tmp_path / "p.json")
    SCHEMA.validate(mdp.read_json(tmp_path / "p.json"))
    mdp.succeed(2, "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "out")


@pytest.mark.parametrize("spoil, sentence", [
    (lambda arrays: arrays.update({"/layers/1/0/value": np.arange(1, 6, dtype=np.float32)}), r"p\.h5: array '/layers/1/0/value' of layer 1, expert \d.*checksum"),
    (lambda arrays: arrays.clear(), r"p\.h5: has no array '/layers/1/0/value', which layer 1, expert"),
    (None, r"p\.h5: cannot open for reading: No such file"),
], ids=["changed", "missing", "no-file"])
def test_arrays_that_are_not_those_of_the_plan_are_refused(spoil, sentence, plain, tmp_path):
    arrays = {}
    content = with_action(copy.deepcopy(plain), "constant", arrays)
    if spoil:
        spoil(arrays)
    write(content, arrays, tmp_path / "p.json")
    if not spoil:
        (tmp_path / "p.h5").unlink()
    mdp.refuse(3, BAD_INPUT, sentence, "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "out")


def with_values(plain, path, shapes):
    """A plan of three constant experts, whose arrays in plan.h5 have these shapes; the arrays."""
    arrays, content = {}, copy.deepcopy(plain)
    for number, shape in enumerate(shapes):
        values = np.random.default_rng(number).standard_normal(shape, np.float32)
        content["layers"][1]["experts"][number].update(
            action="constant", arrays={"value": array_of(f"/layers/1/{number}/value", values, arrays)})
    write(content, arrays, path)
    return content, arrays


def test_ranks_share_out_large_arrays_and_read_them_in_pieces(plain, tmp_path):
    shapes = [(3, 600001), (3, 2, 300001), (9000, 201)]  # more than a piece each, none a multiple of it
    _, arrays = with_values(plain, tmp_path / "p.json", shapes)
    with_values(plain, tmp_path / "small.json", [(1,), (1,), (1,)])
    read = {}
    for name in "small", "p":  # MPI may read a lot at its start (/proc/kallsyms)
        mdp.refuse(3, USAGE, "the action 'constant'.*cannot be carried out", "apply", "--model", MODEL, "--plan", tmp_path / f"{name}.json",
                   "--out", tmp_path / "out", within=[mdp.PYTHON, mdp.TESTS / "reads_of.py", tmp_path])
        read[name] = [int((tmp_path / f"reads-{rank}").read_text(encoding="ascii")) for rank in range(3)]
    largest = max(values.nbytes for values in arrays.values())
    for rank in range(3):
        assert 0.9 * largest < read["p"][rank] - read["small"][rank] < 1.2 * largest, rank


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_first_array_that_is_wrong_is_named_on_any_number_of_ranks(ranks, plain, tmp_path):
    content, arrays = with_values(plain, tmp_path / "p.json", [(4,), (5,), (6,)])
    for number in 1, 2:
        arrays[f"/layers/1/{number}/value"][0] = 7
    write(content, arrays, tmp_path / "p.json")
    mdp.refuse(ranks, BAD_INPUT, r"p\.h5: array '/layers/1/1/value'.*checksum", "apply", "--model", MODEL, "--plan", tmp_path / "p.json",
               "--out", tmp_path / "out")


def first(content):
    return content["layers"][1]["experts"][0]


@pytest.mark.parametrize("action, change, sentence", [
    ("merge", lambda c: first(c).pop("weights"), "needs 'weights'"),
    ("merge", lambda c: first(c).update(weights=[-1, 2]), "weight"),
    ("merge", lambda c: first(c).update(align="best"), "align"),
    ("merge", lambda c: first(c)["arrays"].update(value=first(c)["arrays"]["gate"]), "no array 'value'"),
    ("merge", lambda c: first(c)["arrays"]["gate"].update(xxh3="12"), "xxh3"),
    ("merge", lambda c: first(c)["arrays"]["gate"].update(path="x"), "path"),
    ("merge", lambda c: first(c).update({"from": first(c)["from"][:1], "weights": [1]}), "from"),
    ("constant", lambda c: first(c).pop("arrays"), "needs the array 'value'"),
    ("constant", lambda c: first(c).update(weights=[1]), "no 'weights'"),
    ("constant", lambda c: first(c).update(align="none"), "no 'align'"),
    ("mask", lambda c: first(c)["arrays"].pop("hidden_norm"), "needs both norms or none"),
    ("mask", lambda c: first(c).pop("mask"), "needs a 'mask'"),
    ("mask", lambda c: first(c).update(mask={"sparsity": 1}), "between 0 and 1"),
    ("mask", lambda c: first(c).update(mask={"sparsity": 0.5, "keep": 2, "of": 4}), "needs a 'mask'"),
    ("mask", lambda c: first(c).update(mask={"keep": 0, "of": 4}), "N from 1 to M - 1"),
    ("mask", lambda c: first(c).update(mask={"keep": 1, "of": 300}), "M at most 256"),
    ("mask", lambda c: first(c).update(mask={"sparsity": 0.5, "by": "me"}), "'by'"),
    ("mask", lambda c: first(c)["arrays"].update(down=first(c)["arrays"]["hidden_norm"]), "no array 'down'"),
    ("keep", lambda c: first(c).update(mask={"sparsity": 0.5}), "no 'mask'"),
    ("neurons", lambda c: first(c).pop("neurons"), "'neurons' must be hex digits"),
    ("neurons", lambda c: first(c).update(neurons="0" * 20), "'neurons' must be hex digits"),
    ("neurons", lambda c: first(c).update(arrays={"router": {"path": "/x", "xxh3": "0" * 32}}), "no array 'router'"),
    ("keep", lambda c: first(c).update(neurons="f"), "no 'neurons'"),
    ("zero", lambda c: first(c).update(arrays={"down": {"path": "/x", "xxh3": "0" * 32}}), "no array 'down'"),
    ("keep", lambda c: first(c).update({"from": [0, 1]}), "from one expert"),
    ("keep", lambda c: first(c).update(action="kepp"), "kepp"),
    ("keep", lambda c: first(c).update(note="mine"), "note"),
    ("keep", lambda c: c["layers"][1].update(k=0), "'k'"),
    ("keep", lambda c: c["layers"][1].update(router="mean"), "router"),
])
def test_schema_and_program_refuse_the_same_entries(action, change, sentence, plain, tmp_path):
    arrays = {}
    content = with_action(copy.deepcopy(plain), action, arrays)
    SCHEMA.validate(content)
    change(content)
    write(content, arrays, tmp_path / "p.json")
    assert not SCHEMA.is_valid(content)
    mdp.refuse(1, BAD_INPUT, f"layer 1: .*{sentence}", "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "out")


@pytest.mark.parametrize("words", [
    ["--method", "random", "--keep", 3, "--seed", 5],
    ["--method", "soft", "--soft-mask", "all", "--keep", 4, "--budget", "global", "--normalise", "layer-sum"],
    ["--method", "ean", "--keep", 8],
    ["--method", "reap", "--keep", 4, "--pruned-route", "zero"],
    ["--method", "characteristic", "--keep", 2, "--top-k", 1],
], ids=lambda words: " ".join(map(str, words)))
def test_plans_are_valid_and_survive_their_own_reading(words, stats, tmp_path):
    """Whatever is written is valid (asserted in `plan`), applies, and is stored in model.h5 as it was."""
    plan(stats, tmp_path / "p.json", *words)
    mdp.succeed(2, "apply", "--model", MODEL, "--plan", tmp_path / "p.json", "--out", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "model.h5") as result:
        text = result["plan"][()]
    assert (text if isinstance(text, bytes) else bytes(text)).decode() == (tmp_path / "p.json").read_text()
