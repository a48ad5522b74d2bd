"""Shared by all Python tests: the demo run that several files look at, made once."""
import pytest

import mdp


def pytest_configure():
    if not mdp.PROGRAM.is_file():
        raise pytest.UsageError(f"{mdp.PROGRAM} does not exist: build it, or name another with MDP_PROGRAM")


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """Folder of `run` on the demo with 6 of 8 experts kept by reap, both formats, evaluated before and after, on 4 ranks."""
    out = tmp_path_factory.mktemp("demo") / "out"
    mdp.succeed(4, "run", "--model", mdp.DEMO, "--tokens", mdp.CALIB, "--eval-tokens", mdp.EVAL, "--method", "reap", "--keep", 6,
                "--format", "both", "--out", out)
    return out
