"""What the two checkpoint writers leave on disk, read by libraries that this project did not write.

The files are those of a made-up checkpoint with every kind of tensor (sample_output.h), written by a test program.
"""
import ctypes
import os
import pathlib
import subprocess

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors

import mdp

WRITER = mdp.PROGRAM.parent / "tests" / "mpi_write_checkpoint"
# safetensors' own names for the number formats of the sample when it writes
WRITTEN_AS = {"BF16": "bfloat16", "BOOL": "bool", "F32": "float32", "F16": "float16", "F4": "float4_e2m1fn_x2", "F64": "float64",
              "F8_E4M3": "float8_e4m3fn", "I64": "int64", "C64": "complex64"}


def write(ranks, source, out):
    return subprocess.run([mdp.TESTS / "mpiexec", str(ranks), WRITER, source, out], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder with all.h5 and all/, written on 3 ranks."""
    folder = tmp_path_factory.mktemp("written")
    result = write(3, folder / "source.bin", folder)
    assert result.returncode == 0, result.stderr
    return folder


def shards(written):
    return sorted((written / "all").glob("*.safetensors"))


@pytest.fixture(scope="module")
def tensors(written):
    """{name: {dtype, shape, data}} of the HF folder, as safetensors reads it."""
    found = {}
    for path in shards(written):
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            assert name not in found
            found[name] = tensor
    return found


def datasets(file):
    """{hf_name: dataset} of a model.h5."""
    found = {}
    file.visititems(lambda _, item: found.update({item.attrs["hf_name"].decode(): item}) if "hf_name" in item.attrs else None)
    return found


def raw(dataset):
    """The stored bytes, by way of the file's own type."""
    out = np.empty(dataset.shape, dtype=f"V{dataset.id.get_type().get_size()}")
    if out.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, out, mtype=dataset.id.get_type())
    return out.tobytes()


def stacked(tensors, pattern, n):
    return [tensors[pattern.replace("{expert}", str(i))] for i in range(n)]


def test_shards_are_byte_for_byte_what_safetensors_writes(written):
    assert len(shards(written)) == 3
    for path in shards(written):
        specs, alive = {}, []
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            data, shape = ctypes.create_string_buffer(bytes(tensor["data"]), max(1, len(tensor["data"]))), list(tensor["shape"])
            if tensor["dtype"] == "F4":
                shape[-1] //= 2  # it takes pairs
            specs[name] = safetensors.TensorSpec(dtype=WRITTEN_AS[tensor["dtype"]], shape=shape, data_ptr=ctypes.addressof(data),
                                                 data_len=len(tensor["data"]))
            alive.append(data)
        assert bytes(safetensors.serialize(specs, {"format": "pt"})) == path.read_bytes(), path.name


def test_shards_keep_to_their_size_and_the_index_is_exact(written, tensors):
    index = mdp.read_json(written / "all" / "model.safetensors.index.json")
    held = {name: path.name for path in shards(written) for name, _ in safetensors.deserialize(path.read_bytes())}
    assert index["weight_map"] == held and len(held) == len(tensors)
    assert index["metadata"]["total_size"] == sum(len(t["data"]) for t in tensors.values())
    for path in shards(written):
        inside = [len(t["data"]) for _, t in safetensors.deserialize(path.read_bytes())]
        assert sum(inside) <= 200000 or len(inside) == 1


def test_model_h5_has_the_same_tensors_bit_for_bit(written, tensors):
    with h5py.File(written / "all.h5") as file:
        names = set()
        for name, dataset in datasets(file).items():
            experts = stacked(tensors, name, len(dataset)) if "{expert}" in name else [tensors[name]]
            assert raw(dataset) == b"".join(bytes(t["data"]) for t in experts), name
            assert dataset.attrs["stored_type"].decode() == experts[0]["dtype"]
            assert dataset.chunks is None and dataset.compression is None
            names |= {name.replace("{expert}", str(i)) for i in range(len(experts))}
        assert names == set(tensors)


@pytest.mark.filterwarnings("ignore:invalid value")  # noise has signalling NaNs in it
def test_h5py_shows_the_numbers(written, tensors):
    kinds = {"model.bf16": ml_dtypes.bfloat16, "model.router": ml_dtypes.bfloat16, "model.f16": np.float16, "model.f64": np.float64,
             "model.i64": np.int64, "model.cube": np.float32, "lm_head.weight": np.float32, "model.scalar": np.float32}
    with h5py.File(written / "all.h5") as file:
        for name, kind in kinds.items():
            expected = np.frombuffer(bytes(tensors[name]["data"]), dtype=kind).reshape(tensors[name]["shape"])
            shown = file[name.replace(".", "/")][()]
            np.testing.assert_array_equal(np.asarray(shown, dtype=np.float64), expected.astype(np.float64), err_msg=name)
        pattern = "model.layers.1.mlp.experts.{expert}.up_proj.weight"
        stack = file["model/layers/1/mlp/experts/up_proj/weight"]
        expected = np.stack([np.frombuffer(bytes(t["data"]), dtype=ml_dtypes.bfloat16).reshape(17, 258)
                             for t in stacked(tensors, pattern, 12)])
        np.testing.assert_array_equal(stack[...].astype(np.float64), expected.astype(np.float64))
        np.testing.assert_array_equal(stack.attrs["original_expert"], 2 * np.arange(12) + 1)
        assert file["model/none"].shape == (0, 4) and file["model/f4"].shape == (5, 3) and file["model/c64"].shape == (2, 24)


def test_texts_side_files_and_checksums_are_the_same_in_both(written):
    manifest = mdp.read_json(written / "all" / "moe-dist-prune.json")
    with h5py.File(written / "all.h5") as file:
        assert file["config"][()] == (written / "all" / "config.json").read_bytes()
        for name in ("empty.txt", "generation_config.json", "tokenizer.json"):
            assert file["files"][name][...].tobytes() == (written / "all" / name).read_bytes()
        sums = {}
        for name, dataset in datasets(file).items():
            values = np.atleast_1d(dataset.attrs["xxh3_128"])
            sums.update({name.replace("{expert}", str(i)): value.decode() for i, value in enumerate(values)})
        assert manifest["checksums"] == sums
        assert manifest["plan"]["scores"] == [0.25, 1] and manifest["provenance"] == {"seed": 7}
        assert {key: file.attrs[key] for key in ("format", "version", "complete", "n_layers")} == {
            "format": b"moe-dist-prune checkpoint", "version": b"1.0", "complete": 1, "n_layers": 2}


@pytest.mark.parametrize("kibibytes", [4, 16, 24, 100, 400, 580, 700])
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_full_file_system_ends_in_one_sentence(ranks, kibibytes, written, tmp_path):
    """At every stage: HDF5's metadata, weights, the safetensors files. The source lies elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here (needs root with CAP_SYS_ADMIN)")
    try:
        result = write(ranks, written / "source.bin", disk)
        said = [line for line in result.stderr.splitlines() if line.startswith("write_checkpoint: ")]
        assert result.returncode == 74 and len(said) == 1, result.stderr
        assert "no space left" in said[0].lower() and str(disk) in said[0]
        assert "Segmentation" not in result.stderr and "HDF5-DIAG" not in result.stderr
        left = [pathlib.Path(p).name for p in disk.iterdir()]
        assert left == [] or left == ["all.h5"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
