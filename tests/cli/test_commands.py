"""What the user sees: help, dry run, inspect, info, configuration files, quiet, overwrite, the run directory."""
import json

import pytest

import mdp

COMMANDS = ["run", "observe", "plan", "merge", "refit", "recover", "apply", "eval", "frontier", "export", "inspect", "info"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return mdp.golden_tokens("mixtral", tmp_path_factory.mktemp("commands") / "tokens.h5")


def words(tokens, out):
    return ["run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--method", "reap", "--keep", 4, "--out", out]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_is_on_stdout_once(command, ranks):
    result = mdp.succeed(ranks, command, "--help")
    assert result.stdout.count("moe-dist-prune") >= 1 and result.stdout.count(f"moe-dist-prune {command}") >= 1, str(result)
    assert not result.errors()


def test_help_names_every_command():
    result = mdp.succeed(2, "--help")
    for command in COMMANDS:
        assert result.stdout.count(f"\n  {command} ") == 1, str(result)


def test_help_of_plan_names_methods_and_defaults():
    text = mdp.succeed(1, "plan", "--help").stdout
    for method in [*mdp.CRITERIA, "random"]:
        assert method in text
    for option in ("--keep", "--keep-ratio", "--prune-ratio", "--budget", "--min-keep", "--normalise"):
        assert option in text


def test_run_is_the_default_command_and_fills_the_run_directory(tokens, tmp_path):
    result = mdp.succeed(2, *words(tokens, tmp_path / "out")[1:])
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"model.h5", "plan.json", "stats.h5", "report.json", "report.html", "run.log", "effective-config.json", "moe-dist-prune.json"}, names
    assert "before" in result.stdout and "after" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr  # no escape codes when not on a terminal


def test_quiet_says_nothing(tokens, tmp_path):
    result = mdp.succeed(2, *words(tokens, tmp_path / "out"), "--quiet")
    assert result.stderr == "" and result.stdout == "", str(result)


def test_dry_run_estimates_and_writes_nothing(tokens, tmp_path):
    result = mdp.succeed(3, *words(tokens, tmp_path / "out"), "--dry-run")
    assert not (tmp_path / "out").exists()
    said = result.stdout + result.stderr
    for part in ("FLOP", "read", "write", "rank"):
        assert part in said, said


def test_config_file_gives_the_same_run(tokens, tmp_path):
    mdp.succeed(2, *words(tokens, tmp_path / "one"), "--format", "both")
    mdp.succeed(2, "run", "--config", tmp_path / "one" / "effective-config.json", "--out", tmp_path / "two")
    for name in ("plan.json", "stats.h5", "model.h5", "hf"):
        assert mdp.digests(tmp_path / "one" / name) == mdp.digests(tmp_path / "two" / name), name


def test_overwrite_replaces_an_earlier_result(tokens, tmp_path):
    mdp.succeed(2, *words(tokens, tmp_path / "out"), "--format", "both")
    before = mdp.digests(tmp_path / "out" / "hf")
    again = [*words(tokens, tmp_path / "out"), "--format", "both", "--overwrite"]
    again[again.index("--keep") + 1] = 6
    mdp.succeed(2, *again)
    after = mdp.digests(tmp_path / "out" / "hf")
    assert before.keys() == after.keys() and before != after
    assert not list((tmp_path / "out").rglob("*.partial*"))


def test_keep_ratio_and_prune_ratio_round_half_up(tokens, tmp_path):
    mdp.succeed(2, "observe", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--out", tmp_path / "stats.h5")
    # round(R * 8), half up: 0.4375 * 8 = 3.5 -> 4; 0.42 * 8 = 3.36 -> 3. Pruning R keeps 8 - round(R * 8).
    for option, ratio, kept in (("--keep-ratio", 0.4375, 4), ("--keep-ratio", 0.42, 3), ("--prune-ratio", 0.4375, 4), ("--prune-ratio", 0.42, 5)):
        out = tmp_path / f"{option}{ratio}.json"
        mdp.succeed(1, "plan", "--stats", tmp_path / "stats.h5", "--method", "reap", option, ratio, "--out", out)
        assert [len(layer["experts"]) for layer in mdp.read_json(out)["layers"]] == [kept] * 3, (option, ratio)


@pytest.mark.parametrize("ranks", [1, 3])
def test_inspect_reads_every_kind_of_file(ranks, demo_run):
    for path in (mdp.DEMO, demo_run / "model.h5", demo_run / "hf", demo_run / "stats.h5", demo_run / "plan.json", mdp.CALIB):
        assert mdp.succeed(ranks, "inspect", path).stdout.strip(), path
        json.loads(mdp.succeed(ranks, "inspect", path, "--json").stdout)


def test_info_names_versions_and_kernel():
    text = mdp.succeed(2, "info").stdout
    for part in ("0.1.0", "HDF5", "OpenBLAS", "MPI"):
        assert part in text, text
    assert json.loads(mdp.succeed(2, "info", "--json").stdout)


def test_peak_memory_per_rank_is_reported(tokens, tmp_path):
    result = mdp.succeed(2, *words(tokens, tmp_path / "out"))
    report = json.dumps(mdp.read_json(tmp_path / "out" / "report.json"))
    assert "peak" in (result.stdout + result.stderr).lower() and "peak" in report
