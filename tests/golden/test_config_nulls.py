"""Keys of config.json that are null or left out mean to this program what they mean to transformers.

tests/campaigns/config-keys tries all keys of all families.
"""
import json

import pytest

import config_keys
import mdp
from families import assert_dump_equals, load, write_tokens


# Where null is no class default: flags do not hold, and a rope of a part of each head is one of the whole.
@pytest.mark.parametrize("family, older, key", [
    ("glm4_moe", True, "partial_rotary_factor"),
    ("qwen3_next", True, "partial_rotary_factor"),
    ("minimax_m2", True, "partial_rotary_factor"),
    ("glm4_moe", False, "num_nextn_predict_layers"),
    ("deepseek_v3", False, "rope_interleave"),
    ("deepseek_v3", False, "norm_topk_prob"),
    ("deepseek_v3", False, "num_nextn_predict_layers"),
    ("dots1", False, "norm_topk_prob"),
    ("dbrx", False, "max_seq_len"),
    ("mixtral", False, "sliding_window"),
])
def test_null_is_what_it_is_to_transformers(family, older, key, tmp_path):
    folder = config_keys.make(family, older, tmp_path / "made")
    tokens, config = write_tokens(mdp.read_json(folder / "config.json")["vocab_size"], tmp_path / "tokens.h5"), mdp.read_json(folder / "config.json")
    assert key in config or key == "partial_rotary_factor"
    (folder / "config.json").write_text(json.dumps({**config, key: None}), encoding="utf-8")
    mdp.succeed(2, "eval", "--model", folder, "--tokens", tokens, "--dump", tmp_path / "dump.h5", "--out", tmp_path / "eval.json")
    assert_dump_equals(tmp_path / "dump.h5", tokens, load(folder))
