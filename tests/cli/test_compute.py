"""--gemm and --compute: every library gives the reference's results, the same bytes on any ranks, and says its name where
results depend on it."""
import h5py
import pytest

import mdp

REFERENCE = mdp.read_json(mdp.DEMO / "reference.json")
MODEL = mdp.GOLDEN / "mixtral"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return mdp.golden_tokens("mixtral", tmp_path_factory.mktemp("compute") / "tokens.h5")


def computes(*words):
    """What the program would compute with; skips where it is built without the library or the processor cannot."""
    result = mdp.run(1, "info", *words)
    if "built without oneDNN" in result.stderr or "cannot multiply in bf16 here" in result.stderr:
        pytest.skip(result.errors()[0])
    assert result.codes == [0], str(result)
    return next(line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line.startswith("compute "))


def has_bf16_units():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        flags = info.read().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


@pytest.mark.parametrize("words, allowance", [(["--gemm", "onednn"], 1e-4), (["--compute", "bf16"], 5e-3)])
def test_perplexity_of_the_demo(words, allowance, tmp_path):
    """Against transformers in f32."""
    name = computes(*words)
    mdp.succeed(2, "eval", "--model", mdp.DEMO, "--tokens", mdp.EVAL, *words, "--out", tmp_path / "eval.json", timeout=300)
    found = mdp.perplexity(tmp_path / "eval.json")
    for category, reference in REFERENCE["perplexity"].items():
        assert abs(found[category] / reference["ppl"] - 1) <= allowance, (name, category, found[category], reference["ppl"])


@pytest.mark.parametrize("words", [["--gemm", "onednn"], ["--compute", "bf16"]])
def test_bytes_do_not_depend_on_ranks_and_threads(words, tokens, tmp_path):
    name = computes(*words)
    for out, (ranks, more) in {"1": (1, []), "3": (3, ["--threads", 2])}.items():
        mdp.succeed(ranks, "run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 4, *words, *more,
                    "--format", "both", "--out", tmp_path / out)
    for result in ("stats.h5", "plan.json", "model.h5", "hf"):
        assert mdp.digests(tmp_path / "1" / result) == mdp.digests(tmp_path / "3" / result), result
    assert mdp.read_json(tmp_path / "1" / "plan.json")["recipe"]["calibration"]["compute"] == name
    with h5py.File(tmp_path / "1" / "stats.h5") as stats:
        assert stats.attrs["compute"] == name.encode()
    with h5py.File(tmp_path / "1" / "model.h5") as model:
        assert name in str(model["provenance"][...])


def test_other_arithmetic_has_other_bits(tokens, tmp_path):
    """Were the options without effect, the tests above would show nothing."""
    found = set()
    for out, words in {"f32": [], "onednn": ["--gemm", "onednn"], "bf16": ["--compute", "bf16"]}.items():
        computes(*words)
        mdp.succeed(1, "observe", "--model", MODEL, "--tokens", tokens, *words, "--out", tmp_path / out)
        with h5py.File(tmp_path / out) as stats:
            found.add(stats["layers/2/norm_sum"][...].tobytes())
    assert len(found) == 3


def test_auto_measures_and_says_what_it_takes():
    computes("--compute", "bf16")
    result = mdp.succeed(1, "info", "--gemm", "auto", "--compute", "auto")
    said = next(line for line in result.stderr.splitlines() if "measured" in line)
    names = [computes(), computes("--gemm", "onednn"), computes("--gemm", "onednn", "--compute", "bf16")]
    assert all(name in said for name in names)
    taken = said.split("taking ")[1].strip()
    assert taken in names and f"compute          {taken}" in result.stdout
    if not has_bf16_units():
        assert taken.endswith(" f32")


def test_a_resumed_run_computes_as_it_began(tokens, tmp_path):
    computes("--gemm", "onednn")
    words = ["run", "--model", MODEL, "--tokens", tokens, "--method", "reap", "--keep", 4, "--out", tmp_path / "out"]
    for began, other in ((["--gemm", "onednn"], []), ([], ["--gemm", "onednn"])):
        assert set(mdp.run(2, *words, *began, "--stop-at", 1, "--overwrite").codes) == {75}
        mdp.refuse(2, 65, r"by other arithmetic \(--gemm, --compute, or another processor\): \S+ .* f32, now it is \S+ .* f32;",
                   *words, *other, "--resume")
        result = mdp.succeed(1, *words, "--gemm", "auto", "--resume", "--overwrite")
        assert "measured" not in result.stderr
        name = mdp.read_json(tmp_path / "out" / "plan.json")["recipe"]["calibration"]["compute"]
        assert ("oneDNN" in name) == bool(began)


def test_bf16_needs_a_library_that_has_it():
    mdp.refuse(2, 2, "--compute bf16 needs oneDNN; --gemm openblas multiplies in f32 only", "info", "--gemm", "openblas", "--compute",
               "bf16")
