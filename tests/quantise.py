"""Checkpoints of few bits made from others with ml_dtypes, and decoded again with numpy: what a reader of them is compared with."""
import json

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

import mdp

F8 = torch.float8_e4m3fn


def load(folder):
    """{name: tensor} of all weight files of a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def save(tensors, config, folder):
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def blockwise(shape, block):
    """[rows, columns] -> two index arrays that spread scales [.., ceil(rows / b0), ceil(columns / b1)] over the values."""
    return np.arange(shape[-2])[:, None] // block[0], np.arange(shape[-1])[None, :] // block[1]


def is_quantised(name, tensor):
    return tensor.dim() > 1 and any(part in name for part in ("_proj", ".w1.", ".w2.", ".w3."))


def encode_fp8(values, block, power_of_two):
    """Codes and scales; the scale of a block makes its largest value 448, the largest of E4M3."""
    rows, columns = blockwise(values.shape, block)
    largest = np.zeros((*values.shape[:-2], rows.max() + 1, columns.max() + 1), np.float32)
    np.maximum.at(largest, (..., rows, columns), np.abs(values))
    scale = np.maximum(largest / 448, 1e-20).astype(np.float32)
    if power_of_two:
        scale = np.exp2(np.ceil(np.log2(scale))).astype(np.float32)
    return (values / scale[..., rows, columns]).astype(ml_dtypes.float8_e4m3fn), scale


def fp8_of(tensors, config, block=(128, 128), e8m0=False, settings=None):
    """Tensors and config of the checkpoint with its projections in blocks of FP8."""
    tensors = dict(tensors)
    for name in [name for name in tensors if is_quantised(name, tensors[name])]:
        codes, scale = encode_fp8(tensors[name].float().numpy(), block, e8m0)
        tensors[name] = torch.from_numpy(codes.view(np.uint8)).view(F8)
        scale = torch.from_numpy(scale)
        tensors[f"{name}_scale_inv"] = scale.to(torch.float8_e8m0fnu) if e8m0 else scale
    if settings is None:
        settings = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(block)}
    return tensors, {**config, "quantization_config": settings}


COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"], "config_groups": {"group_0": {
    "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}}}}
STATIC = {"quant_method": "fp8", "activation_scheme": "static"}


def wide_fp8_of(tensors, config, by_row):
    """Tensors and config of the checkpoint with its projections in FP8: with a bf16 scale for each row, as compressed-tensors stores
    them, or with one f32 scale, and one for inputs."""
    tensors = dict(tensors)
    for i, name in enumerate([name for name in tensors if is_quantised(name, tensors[name])]):
        values = tensors[name].float().numpy()
        codes, scale = encode_fp8(values, (1 if by_row else values.shape[0], values.shape[1]), False)
        tensors[name] = torch.from_numpy(codes.view(np.uint8)).view(F8)
        tensors[f"{name}_scale"] = torch.from_numpy(scale).bfloat16() if by_row else torch.from_numpy(scale).reshape(())
        if not by_row:
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor(0.5 + i / 64)
    return tensors, {**config, "quantization_config": COMPRESSED if by_row else STATIC}


def wide_fp8(source, folder, by_row):
    return save(*wide_fp8_of(load(source), mdp.read_json(source / "config.json"), by_row), folder)


def fp8(source, folder, *how, **more):
    """The checkpoint with its projections in blocks of FP8."""
    return save(*fp8_of(load(source), mdp.read_json(source / "config.json"), *how, **more), folder)


def mxfp4_of(tensors, config, rng):
    """A gpt_oss whose experts are codes of MXFP4 at random, 32 in 16 bytes for each scale."""
    result = {}
    for name, tensor in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            result[name] = tensor
            continue
        n_expert, n_in, n_out = tensor.shape
        result[f"{name}_blocks"] = torch.from_numpy(rng.integers(0, 256, (n_expert, n_out, n_in // 32, 16), np.uint8))
        result[f"{name}_scales"] = torch.from_numpy(rng.integers(121, 124, (n_expert, n_out, n_in // 32), np.uint8))
    return result, {**config, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}}


def decoded(tensors, config):
    """Tensors and config with the same values in f32: f32(code) * scale, not rounded further."""
    config = dict(config)
    block = config.pop("quantization_config", {}).get("weight_block_size")
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(("_scale_inv", "_scale")):
            continue
        if tensor.dtype != F8:
            result[name] = tensor.float()
            continue
        codes = tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        if f"{name}_scale" in tensors:  # of a row, or the only one
            result[name] = torch.from_numpy(codes * tensors[f"{name}_scale"].float().numpy())
            continue
        scale = tensors[f"{name}_scale_inv"]
        if scale.dtype != torch.float32:
            scale = torch.from_numpy(scale.view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
        result[name] = torch.from_numpy(codes * scale.numpy()[(..., *blockwise(codes.shape, block))])
    return result, config


def decode(source, folder):
    """The checkpoint with the same values in f32."""
    return save(*decoded(load(source), mdp.read_json(source / "config.json")), folder)
