"""Running moe-dist-prune on some ranks, and reading what it writes with libraries that this project did not write."""
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import h5py
import numpy as np

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
TOOLS = ROOT / "tools"
PROGRAM = pathlib.Path(os.environ.get("MDP_PROGRAM", ROOT / "build" / "ci" / "moe-dist-prune"))
FIXTURES = TESTS / "fixtures"
DEMO = FIXTURES / "mixtral-demo"
GOLDEN = FIXTURES / "golden"
CALIB = FIXTURES / "text" / "calib.h5"
EVAL = FIXTURES / "text" / "eval.h5"
TASKS = FIXTURES / "text" / "tasks.h5"
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable  # for rank.py, as any user
TWO_ITEMS = {"context_ids": [0, 5, 6, 0, 7], "context_offsets": [0, 3, 5], "item_offsets": [0, 2, 5],
             "choice_ids": [8, 9, 10, 11, 12, 13], "choice_offsets": [0, 1, 3, 4, 5, 6], "choice_bytes": [2, 5, 1, 1, 1],
             "answer": [1, 2]}  # of one task
COUNT_KEYS = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"]
CRITERIA = ["frequency", "soft", "ean", "ean-mean", "weighted-ean", "reap"]


@dataclasses.dataclass
class Result:
    """One finished run: codes and peak memory in KiB by rank, and what it said."""
    codes: list
    peaks: list
    stdout: str
    stderr: str
    command: str

    def errors(self):
        """The sentences of failure: lines that begin with the program's name and a colon, but for warnings."""
        return re.findall(r"^moe-dist-prune: (?!warning: )(.*)$", self.stderr, re.M)

    def __str__(self):
        return f"{self.command}\ncodes {self.codes}\n--- stdout\n{self.stdout[-3000:]}\n--- stderr\n{self.stderr[-3000:]}"


def run(ranks, *words, env=None, timeout=120, prefix=(), within=(), program=PROGRAM):
    """Run the program; a run that does not end in time is killed and fails the test.

    `prefix` starts the launcher, `within` each rank's program.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        command = [*map(str, prefix), str(TESTS / "mpiexec"), str(ranks), PYTHON, "-IS", str(TESTS / "rank.py"), folder,
                   *map(str, within), str(program), *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                   env={**os.environ, **(env or {})}, start_new_session=True)
        shown = " ".join([*(f"{k}={v}" for k, v in (env or {}).items()), "mpiexec", str(ranks), "moe-dist-prune", *map(str, words)])
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise AssertionError(f"hangs: not done after {timeout} s: {shown}\n{stdout[-2000:]}\n{stderr[-2000:]}") from None
        codes, peaks = [], []
        for rank in range(ranks):
            path = pathlib.Path(folder) / str(rank)
            code, peak = path.read_text().split() if path.exists() else (-1, 0)
            codes.append(int(code))
            peaks.append(int(peak))
        return Result(codes, peaks, stdout, stderr, shown)


def succeed(ranks, *words, **how):
    result = run(ranks, *words, **how)
    assert result.codes == [0] * ranks, str(result)
    return result


def refuse(ranks, code, sentence, *words, **how):
    """The run must end with `code` on every rank and say exactly one sentence, which matches the pattern `sentence`."""
    result = run(ranks, *words, **how)
    assert result.codes == [code] * ranks, str(result)
    assert len(result.errors()) == 1, str(result)
    assert re.search(sentence, result.errors()[0]), f"'{result.errors()[0]}' does not match '{sentence}'\n{result}"
    for noise in ("HDF5-DIAG", "MPI_Abort", "Segmentation", "AddressSanitizer", "backtrace"):
        assert noise not in result.stderr + result.stdout, str(result)
    return result


def tool(name, *words, check=True):
    """Run a Python tool of tools/ with this interpreter."""
    return subprocess.run([sys.executable, str(TOOLS / name), *map(str, words)], capture_output=True, text=True, check=check, timeout=300)


def make_pruned(folder, keep, *shape):
    """folder/model, whose weights are random so that nothing of it is a hole, and a plan that keeps `keep` of its experts."""
    tool("make-shape-model", *shape, "--out", folder / "model")
    succeed(1, "plan", "--model", folder / "model", "--method", "random", "--keep", keep, "--out", folder / "plan.json")
    return folder


def apply_to(pruned, out, form, *words):
    """Words of `apply` on what make_pruned has made."""
    return ["apply", "--model", pruned / "model", "--plan", pruned / "plan.json", "--format", form, "--out", out, *words]


def write_tokens(path, categories):
    """{category: [ids, ...]} -> tokens.h5."""
    with h5py.File(path, "w") as out:
        for name, sequences in categories.items():
            out[f"{name}/input_ids"] = np.concatenate([*sequences, []]).astype(np.uint32)
            out[f"{name}/offsets"] = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return path


def write_tasks(path, tasks):
    """{task: {dataset: values}} -> tasks.h5."""
    with h5py.File(path, "w") as out:
        for task, rows in tasks.items():
            for name, values in rows.items():
                out[f"{task}/{name}"] = np.array(values, np.int64)
    return path


def write_plan(model, kept, path):
    """A plan that keeps the experts `kept` = {layer: [...]}."""
    keep = {len(experts) for experts in kept.values()}
    assert len(keep) == 1
    succeed(1, "plan", "--model", model, "--method", "random", "--keep", keep.pop(), "--out", path)
    plan = read_json(path)
    for layer in plan["layers"]:
        chosen = kept[layer["layer"]]
        everyone = {e["expert"] for e in layer["dropped"]} | {e["from"][0] for e in layer["experts"]}
        layer["experts"] = [{"from": [int(e)], "action": "keep"} for e in chosen]
        layer["dropped"] = [{"expert": e, "action": "drop"} for e in sorted(everyone - set(map(int, chosen)))]
    path.write_text(json.dumps(plan))
    return path


def golden_tokens(name, path):
    """The sequences of a golden file, in order, as one category `golden`."""
    with h5py.File(GOLDEN / name / "golden.h5") as golden:
        return write_tokens(path, {"golden": [golden[f"seq{i}/input_ids"][...] for i in range(int(golden.attrs["num_sequences"]))]})


def digests(folder):
    """{relative path: sha256} of every file below a folder (or of one file)."""
    folder = pathlib.Path(folder)
    paths = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def native_places(path):
    """{tensor or side file: (first byte, number of bytes)} of a model.h5, one for each expert of a stack."""
    places = {}

    def visit(name, item):
        if not isinstance(item, h5py.Dataset) or item.id.get_offset() is None or item.dtype.kind in "SO" or name == "seal":
            return
        begin, size = item.id.get_offset(), item.id.get_storage_size()
        hf_name = item.attrs.get("hf_name", name.split("/")[-1].encode())
        hf_name = hf_name.decode() if isinstance(hf_name, bytes) else str(hf_name)
        n = item.shape[0] if "{expert}" in hf_name else 1
        for e in range(n):
            places[hf_name.replace("{expert}", str(e))] = (begin + e * size // n, size // n)

    with h5py.File(path) as file:
        file.visititems(visit)
    return places


def folder_places(path):
    """The same of a safetensors file, by its header."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + n])
    return {name: (8 + n + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items() if name != "__metadata__"}


def unfinished(state):
    """{name: path} of the unfinished outputs in a state folder."""
    return {path.name: path for path in pathlib.Path(state).glob("making.*/*.partial")}


def measures(path):
    """An eval.json without what tells of the machine."""
    return [{key: value for key, value in stream.items() if key not in ("name", "plan")} for stream in read_json(path)["streams"]]


def results(out):
    """What `run --format both` has made, but for what tells of the machine and of the way there."""
    found = {name: digests(out / name) for name in ("plan.json", "stats.h5", "model.h5", "hf")}
    return {**found, "eval": measures(out / "eval.json")} if (out / "eval.json").exists() else found


def phase_of(out):
    """How far a killed run has come, from what it left."""
    points = list((out / ".state").glob("pass-*.h5"))
    there = {path.name for path in out.glob("*")} | set(unfinished(out / ".state"))
    for name, phase in (("hf", "after hf"), ("hf.partial", "hf"), ("model.h5", "after model.h5"), ("model.h5.partial", "model.h5"),
                        ("plan.json", "eval"), ("plan.h5", "after refit"), ("plan.h5.partial", "refit"), ("stats.h5", "plan")):
        if name in there:
            return phase
    return "observe" if points else "before the first point"


def info():
    """What the program says it can do."""
    return json.loads(subprocess.run([PROGRAM, "info", "--json"], capture_output=True, text=True, check=True, timeout=60).stdout)


def read_json(path):
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def plan_array(plan_path, layer, kept, name):
    """What a plan has of an expert in plan.h5 beside it."""
    expert = read_json(plan_path)["layers"][layer]["experts"][kept]
    with h5py.File(plan_path.with_suffix(".h5")) as arrays:
        assert arrays.attrs["complete"] == 1
        return arrays[expert["arrays"][name]["path"]][...]


def perplexity(path, plan=False):
    """{category or 'total': perplexity} of the original (or the first planned) stream of an eval.json."""
    stream = next(s for s in read_json(path)["streams"] if (s["plan"] is not None) == plan)
    return {**stream["perplexity"]["categories"], "total": stream["perplexity"]["total"]}


def assert_close(ours, theirs, relative=1e-4):
    """Equal keys, and values within a relative tolerance."""
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert abs(ours[key] - theirs[key]) <= relative * abs(theirs[key]), (key, ours[key], theirs[key])


def steps_of_the_demo(ranks, out, timeout=120):
    """Digests of what observe, plan and apply make of the demo and 640 tokens (two packs), on so many ranks."""
    out.mkdir()
    tokens = write_tokens(out / "tokens.h5", {"a": [[(7 * i + j) % 100 for j in range(64)] for i in range(10)]})
    succeed(ranks, "observe", "--model", DEMO, "--tokens", tokens, "--out", out / "stats.h5", timeout=timeout)
    succeed(ranks, "plan", "--stats", out / "stats.h5", "--method", "reap", "--keep", 6, "--out", out / "plan.json", timeout=timeout)
    succeed(ranks, "apply", "--model", DEMO, "--plan", out / "plan.json", "--format", "both", "--out", out / "written", timeout=timeout)
    return {name: digests(out / name) for name in ("stats.h5", "plan.json", "written/model.h5", "written/hf")}
