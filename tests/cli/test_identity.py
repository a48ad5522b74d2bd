"""The same bytes for any number of ranks, threads, batch, node split and split of transfers, within one BLAS kernel."""
import pytest

import mdp

RESULTS = ["plan.json", "stats.h5", "model.h5", "hf"]


def prune(folder, ranks, *words, env=None):
    out = folder / "out"
    mdp.succeed(ranks, "run", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--method", "reap", "--keep", 6, "--format", "both", "--out", out,
                *words, env=env, timeout=300)
    found = {name: mdp.digests(out / name) for name in RESULTS}
    assert len(found["hf"]) >= 4  # config, tokenizer, generation config, weights
    return found


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return prune(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("ranks, words, env", [
    pytest.param(2, [], {}, id="2-ranks"),
    pytest.param(3, [], {}, id="3-ranks"),
    pytest.param(4, [], {}, id="4-ranks"),
    pytest.param(8, [], {}, id="8-ranks"),
    pytest.param(1, ["--threads", 2], {}, id="2-threads"),
    pytest.param(3, ["--threads", 2], {}, id="3-ranks-2-threads"),
    pytest.param(1, ["--batch-tokens", 16384], {}, id="batch-16384"),
    pytest.param(2, ["--batch-tokens", 32768], {}, id="batch-32768"),
    pytest.param(4, ["--batch-tokens", 16384], {}, id="4-ranks-batch-16384"),
    pytest.param(4, [], {"MDP_RANKS_PER_NODE": "2"}, id="2-nodes"),
    pytest.param(8, [], {"MDP_RANKS_PER_NODE": "3"}, id="3-nodes-of-3-3-2"),
    pytest.param(3, [], {"MDP_COUNT_MAX": "1000"}, id="count-max-1000"),
])
def test_bytes_do_not_depend_on_the_layout(ranks, words, env, one_rank, tmp_path):
    assert prune(tmp_path, ranks, *words, env=env) == one_rank


def has_avx512():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        return " avx512f " in info.read()


@pytest.mark.parametrize("kernel", ["Haswell", "SkylakeX"])
def test_bytes_do_not_depend_on_the_layout_within_a_kernel(kernel, tmp_path):
    if kernel == "SkylakeX" and not has_avx512():
        pytest.skip("this CPU has no AVX-512, so OpenBLAS has no SkylakeX kernel here")
    results = []
    for ranks, words in ((1, []), (3, ["--threads", 2, "--batch-tokens", 16384])):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        results.append(prune(folder, ranks, *words, env={"OPENBLAS_CORETYPE": kernel}))
    assert results[0] == results[1]


def test_model_h5_route_and_steps_give_the_same_bytes(one_rank, tmp_path):
    """observe, plan and apply one after the other write what run writes."""
    mdp.succeed(2, "observe", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--out", tmp_path / "stats.h5")
    mdp.succeed(1, "plan", "--stats", tmp_path / "stats.h5", "--method", "reap", "--keep", 6, "--out", tmp_path / "plan.json")
    mdp.succeed(3, "apply", "--model", mdp.DEMO, "--plan", tmp_path / "plan.json", "--format", "both", "--out", tmp_path / "out")
    assert mdp.digests(tmp_path / "stats.h5") == one_rank["stats.h5"]
    assert mdp.digests(tmp_path / "plan.json") == one_rank["plan.json"]
    assert mdp.digests(tmp_path / "out" / "hf") == one_rank["hf"]
    assert mdp.digests(tmp_path / "out" / "model.h5") == one_rank["model.h5"]


METHODS = mdp.info()["methods"]
BUDGETS = [["--keep", 4], ["--keep", 4, "--budget", "global"], ["--keep", 4, "--budget", "trapezoid"], ["--keep-file", "keep.json"],
           ["--keep", 4, "--budget", "global", "--normalise", "layer-z"], ["--keep", 5, "--top-k", 1]]


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Statistics, text and budget of a small model: what plans are made from."""
    folder = tmp_path_factory.mktemp("observed")
    mdp.golden_tokens("mixtral", folder / "tokens.h5")
    mdp.succeed(2, "observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", folder / "tokens.h5", "--subsets", 4, "--out",
                folder / "stats.h5")
    (folder / "keep.json").write_text('{"0": 6, "1": 2, "2": 5}', encoding="utf-8")
    return folder


def compares(method):
    """Does the method look at the routers of two models?"""
    return method in ("router-norm-change", "router-change-abs")


def evidence(method, folder):
    """What a plan by this method is made from."""
    if compares(method):
        return ["--model", mdp.FIXTURES / "mixtral-demo-math", "--pretrained", mdp.DEMO]
    model = ["--model", mdp.GOLDEN / "mixtral"]
    return [*model, "--tokens", folder / "tokens.h5"] if method == "proficiency" else [*model, "--stats", folder / "stats.h5"]


@pytest.mark.parametrize("method, budget", [
    *((method, BUDGETS[0 if method in ("proficiency", "naee") or compares(method) else i % len(BUDGETS)]) for i, method in enumerate(METHODS)),
    *(("reap", budget) for budget in BUDGETS)])
def test_plans_do_not_depend_on_ranks(method, budget, observed, tmp_path):
    """Every criterion, every budget."""
    budget = [observed / word if word == "keep.json" else word for word in budget]
    for ranks in (1, 3):
        mdp.succeed(ranks, "plan", "--method", method, *evidence(method, observed), *budget, "--out", tmp_path / f"{ranks}.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "3.json").read_bytes()


def test_more_ranks_than_cores_packs_and_rows(tmp_path):
    """16 ranks for two packs; tests/campaigns/many-ranks goes to 64."""
    assert mdp.steps_of_the_demo(16, tmp_path / "16") == mdp.steps_of_the_demo(1, tmp_path / "1")
