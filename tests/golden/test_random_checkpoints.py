"""Checkpoints drawn at random from what the families can be, against transformers: see tests/random_checkpoints.py.

tests/campaigns/random-checkpoints does the same for any number of them.
"""
import re

import pytest

import mdp
import random_checkpoints

# One of each family and another Phi; together they have every kind of weights, rope, router and file that is drawn.
SEEDS = [4, 6, 22, 28, 29, 36, 54, 65, 78, 80, 115, 127, 167, 193, 231, 237, 238, 262, 264, 270, 285, 296, 299, 301, 319, 366,
         381, 384, 387]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_checkpoint_equals_transformers_before_and_after_pruning(seed, tmp_path):
    random_checkpoints.compare(seed, tmp_path)


def test_seeds_cover_what_is_drawn():
    """Every value of every property that the first 400 cases have, the seeds above have too."""
    all_cases, ours = (set().union(*(properties(random_checkpoints.draw(seed)) for seed in seeds)) for seeds in (range(400), SEEDS))
    assert all_cases == ours


def properties(case):
    settings = case.settings
    rope = settings.get("rope_parameters") or {}
    found = {(key, getattr(case, key)) for key in ("family", "stored", "padded", "stacked", "older", "brief", "through_native")}
    found |= {(key, value) for key, value in settings.items() if isinstance(value, bool)}
    found |= {("rope", rope.get("rope_type"), "alpha" in rope, "mscale" in rope, rope.get("truncate"))}
    found |= {("shards", case.n_shard), ("block", case.stored.startswith("FP8") and case.block), ("act", settings.get("hidden_act"))}
    if "head_dim" in settings:
        found.add(("heads make up the width", settings["head_dim"] * settings["num_attention_heads"] == settings["hidden_size"]))
    if "num_attention_heads" in settings:
        found.add(("one kv head", settings["num_key_value_heads"] == 1 < settings["num_attention_heads"]))
    found.add(("groups", settings.get("n_group", 1) > 1, settings.get("topk_group", 1) < settings.get("n_group", 1)))
    return found


def test_the_page_of_families_is_up_to_date():
    """doc/families.md lists every family of the program, and none that is not compared with transformers."""
    made = mdp.tool("families", "--check", check=False)
    assert made.returncode == 0, made.stderr
    rows = [line.split("|") for line in (mdp.ROOT / "doc" / "families.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [row[1].strip(" `") for row in rows] == mdp.info()["families"]
    assert all(re.search("[1-9]", row[-2]) for row in rows)
