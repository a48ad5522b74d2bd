"""Checkpoints of random parameters, made and saved by transformers, and what it computes of them."""
import contextlib
import json
import re

import h5py
import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

import mdp

SIZES = dict(vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=40, max_position_embeddings=256)


def class_of(model_type):
    """What makes and loads such a model: of text, or of text and images."""
    of_text = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return transformers.AutoModelForCausalLM if of_text else transformers.AutoModelForImageTextToText


def save_random(model_type, settings, folder, seed=5, **how):
    """Save such a model: matrices that make lively routers and attention, norms around 1, biases around 0."""
    model = class_of(model_type).from_config(transformers.AutoConfig.for_model(model_type, **settings))
    rng = np.random.default_rng(seed)
    stored = [*model.named_parameters(), *(b for b in model.named_buffers() if b[0].endswith("e_score_correction_bias"))]
    with torch.no_grad():
        for name, parameter in sorted(dict(stored).items()):
            values = rng.standard_normal(tuple(parameter.shape))
            if name.endswith("e_score_correction_bias"):
                values = 0.2 * values - 0.3  # sums below zero, where closed groups at zero would show
            elif name.endswith("A_log"):
                values = 0.3 * values - 2.5  # decays of about a tenth a token: the state remembers more than a chunk of them
            elif parameter.dim() == 1:
                values = 1 + 0.3 * values if "norm" in name else 0.3 * values
            else:
                values *= parameter.shape[-1] ** -0.5
            parameter.copy_(torch.from_numpy(values))
    model.save_pretrained(folder, **how)
    # transformers 5 always writes the list that it derived; older files leave that to the reader.
    config = mdp.read_json(folder / "config.json")
    kept = {key: value for key, value in config.items() if key != "layer_types" or key in settings}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


def load(folder, **how):
    """The model in float32, which must find every tensor and leave none over."""
    model, info = class_of(mdp.read_json(folder / "config.json")["model_type"]).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True,
        **how)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(kind), (kind, info[kind])
    return model.float().eval()


@contextlib.contextmanager
def masked(model, kept):
    """The model with experts that are not in kept[layer] at minus infinity when a token chooses: their logits, and where the
    router has them their biases."""
    masks, linear = {}, torch.nn.functional.linear
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        match = re.search(r"(?:layers|blocks)\.(\d+)\..*(gate|router|wg)\b.*weight$|layers\.(\d+)\..*e_score_correction_bias$", name)
        if not match or "shared" in name:
            continue
        mask = torch.full((parameter.shape[-1] if match[3] else len(parameter),), -torch.inf)
        mask[kept[int(match[1] or match[3])]] = 0
        if match[3]:
            parameter.data += mask
        else:
            masks[parameter.data_ptr()] = mask
    assert len(masks) == len(kept)

    def masking(x, weight, bias=None):
        y = linear(x, weight, bias)
        return y + masks[weight.data_ptr()] if weight.data_ptr() in masks else y

    torch.nn.functional.linear = masking
    try:
        yield model
    finally:
        torch.nn.functional.linear = linear


def write_tokens(vocabulary, path):
    rng = np.random.default_rng(7)
    return mdp.write_tokens(path, {"text": [rng.integers(0, vocabulary, n) for n in (1, 40, 23)]})


def assert_same_logits(folder, tokens, tmp_path, ranks):
    """Our logits of a checkpoint and those of transformers differ by rounding alone."""
    out = tmp_path / f"{folder.name}.h5"
    mdp.succeed(ranks, "eval", "--model", folder, "--tokens", tokens, "--dump", out, "--out", tmp_path / f"{folder.name}.json")
    model = load(folder)
    assert_dump_equals(out, tokens, model)
    return model


def assert_dump_equals(out, tokens, model):
    """The logits of a dump are those of the model within rounding."""
    with h5py.File(tokens) as text, h5py.File(out) as dump, torch.no_grad():
        ids, offsets = text["text/input_ids"][...].astype(np.int64), text["text/offsets"][...]
        for i, (start, end) in enumerate(zip(offsets[:-1], offsets[1:])):
            theirs = model(input_ids=torch.from_numpy(ids[None, start:end]), use_cache=False).logits[0].numpy()
            ours = dump[f"original/text/{i}/logits"][...]
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 1e-4 * np.sqrt(np.mean(theirs.astype(np.float64) ** 2)), (out, i)


def pruned_config(config, **changes):
    """config.json after experts were removed: no layers that predict further tokens are counted, which transformers writes for models
    without any."""
    counts = {key: 0 for key in ("num_nextn_predict_layers", "num_mtp_layers") if key in config}
    return {**config, **counts, **changes}


def prune(model, tokens, keep, out, form="safetensors"):
    """The Hugging Face folder of the model with `keep` experts in every layer that has some."""
    mdp.succeed(2, "run", "--model", model, "--tokens", tokens, "--method", "reap", "--keep", keep, "--format", form, "--out", out)
    return out / "hf"
