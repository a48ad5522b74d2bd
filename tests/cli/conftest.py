"""Shared by the tests of the command line: a checkpoint that a test may spoil, and text for it."""
import shutil

import pytest

import mdp


@pytest.fixture
def model(tmp_path):
    """A copy of the golden Mixtral checkpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(mdp.GOLDEN / "mixtral" / name, folder / name)
    return folder


@pytest.fixture
def tokens(tmp_path):
    return mdp.golden_tokens("mixtral", tmp_path / "tokens.h5")
