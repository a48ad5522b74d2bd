#!/usr/bin/env python3
"""fault_walk.py [--runs N] [--seed S] [--first K] [--only COMMAND...] [--out FOLDER] [--leaks]: a walk of faulted runs over all commands.

In each run one fallible operation, or every so many, fails on one rank, on several or on all (--fault-every and its
kin, debug builds). What must hold: the run ends in time; all ranks end with the same code, one that fits the fault; one
sentence when it failed, none when not; what stands under a final name is complete and right; the inputs are as they
were; afterwards the same command without faults succeeds: with --resume, on other ranks, where the command takes resume
points (as often as it can here), and sometimes with --overwrite. Interrupted system calls and partial transfers must
not be noticed at all.

As a program it prints one line for each run that broke a rule, and the figures at the end. test_faults.py walks a short
way. MDP_PROGRAM names the program; a build with sanitizers is recognised by what it says, and with --leaks it looks for
memory that a failing run leaves.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile

import h5py
import numpy as np

import mdp

TIMEOUT = 120
NOISE = ("HDF5-DIAG", "MPI_Abort", "Segmentation", "AddressSanitizer", "LeakSanitizer", "runtime error", "went apart", "backtrace")
CODES = {"io": {73, 74}, "alloc": {70, 71}, "enospc": {73, 74}, "eio": {73, 74}, "short": set()}
KINDS = ["io", "alloc", "io,alloc", "short", "enospc", "eio", "enospc,eio", "io,alloc,short,enospc,eio"]

Case = collections.namedtuple("Case", "number command ranks threads kinds where every ranks_hit clean_after")


def cases(n, seed, first=0):
    """The run of a number depends on the number and the seed alone."""
    for number in range(first, first + n):
        choose = random.Random(f"{seed} {number}")
        ranks = choose.choice([2, 4])
        hit = choose.choice(["-1", str(choose.randrange(ranks)), ",".join(map(str, sorted(choose.sample(range(ranks), 2))))])
        often = choose.random() < 0.25
        yield Case(number, list(Walk.COMMANDS)[number % len(Walk.COMMANDS)], ranks, choose.choice([1, 2]), choose.choice(KINDS),
                   choose.random(), int(10 ** choose.uniform(0, 2.5)) if often else None, hit, choose.random() < 0.2)


def same_json(ours, theirs):
    """Equal but for what a run says about itself."""
    drop = {"seconds", "tokens_per_second", "n_ranks", "date", "memory", "ranks", "threads"}
    strip = lambda value: {k: strip(v) for k, v in value.items() if k not in drop} if isinstance(value, dict) else (
        [strip(v) for v in value] if isinstance(value, list) else value)
    return strip(ours) == strip(theirs)


def h5_content(path):
    """{name: bytes} of every dataset."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: np.asarray(item[()]).tobytes()}) if isinstance(item, h5py.Dataset) else None)
    return found


class Walk:
    """Inputs made once, what each command gives without faults, and how one faulted run is judged."""
    COMMANDS = {"run": ["plan.json", "stats.h5", "model.h5", "hf"], "observe": ["stats.h5"], "plan": ["plan.json"],
                "apply": ["model.h5", "hf"], "eval": ["eval.json"], "export": ["hf"], "inspect": [], "verify": [], "info": [],
                "dump": ["eval.json", "dump.h5"],  # eval with --dump, which cannot go on
                "merge": ["merged.json", "merged.h5"], "refit": ["fitted.json", "fitted.h5"],
                "retype": ["hf"]}  # export with --type
    PROPER = {"dump": "eval", "retype": "export"}
    GOES_ON = {"run", "observe", "merge", "apply", "eval", "export", "refit", "retype"}

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.inputs = self.folder / "in"
        (self.inputs / "model").mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(mdp.GOLDEN / "mixtral" / name, self.inputs / "model")
        mdp.golden_tokens("mixtral", self.inputs / "tokens.h5")
        made = self.folder / "made"
        self._whole(made, "run")
        for name in ("stats.h5", "plan.json", "model.h5"):
            shutil.copy(made / name, self.inputs)
        groups = mdp.read_json(self.inputs / "plan.json")
        for layer in groups["layers"]:
            layer["dropped"], layer["experts"] = [], [{"from": [2 * i, 2 * i + 1], "action": "merge", "weights": [0.25, 0.75], "align": "weight"} for i in range(4)]
        (self.inputs / "groups.json").write_text(json.dumps(groups))
        self.whole, self.said, self.n_operation = {}, {}, {}
        for command in self.COMMANDS:
            self._whole(self.folder / "whole" / command, command)
        self.untouched = mdp.digests(self.inputs)

    def _whole(self, out, command):
        out.parent.mkdir(parents=True, exist_ok=True)
        result = mdp.succeed(1, *self.words(command, out, 1), timeout=TIMEOUT)
        if hasattr(self, "said"):
            self.said[command] = result.stdout
            self.whole[command] = out
        return result

    def words(self, command, out, threads):
        """The command line; everything it writes is below `out`."""
        given, forward = self.inputs, ["--threads", threads]
        points = ["--checkpoint-every", 0] if command in self.GOES_ON else []
        model, tokens = ["--model", given / "model"], ["--tokens", given / "tokens.h5"]
        choice = ["--method", "reap", "--keep", 4]
        if command in ("observe", "plan", "eval", "dump", "export", "merge", "refit", "retype"):
            out.mkdir(exist_ok=True)
        return [self.PROPER.get(command, command), *points, *{
            "run": lambda: [*model, *tokens, *choice, "--eval-tokens", given / "tokens.h5", "--format", "both", *forward, "--out", out],
            "observe": lambda: [*model, *tokens, "--similarity", "output-cosine,output-mean-cosine,cka-rbf,weight-surrogate,weight-aligned-cosine,router-logit,router-row,co-activation",
                                *forward, "--out", out / "stats.h5"],
            "plan": lambda: ["--stats", given / "stats.h5", *choice, "--out", out / "plan.json"],
            "apply": lambda: [*model, "--plan", given / "plan.json", "--format", "both", "--out", out],
            "eval": lambda: [*model, *tokens, "--plan", given / "plan.json", *forward, "--out", out / "eval.json"],
            "dump": lambda: [*model, *tokens, "--plan", given / "plan.json", "--dump", out / "dump.h5", *forward, "--out", out / "eval.json"],
            "export": lambda: ["--model", given / "model.h5", "--out", out / "hf"],
            "merge": lambda: [*model, "--plan", given / "groups.json", *forward, "--out", out / "merged.json"],
            "retype": lambda: ["--model", given / "model.h5", "--type", "fp8", "--out", out / "hf"],
            "refit": lambda: [*model, *tokens, "--plan", given / "plan.json", "--ridge", "1e-2", "--refit", "joint", *forward, "--out", out / "fitted.json"],
            "inspect": lambda: [given / "model.h5", "--json"],
            "verify": lambda: [given / "model.h5"],
            "info": lambda: [],
        }[command]()]

    def count(self, case):
        """Fallible operations of these kinds that rank 0 passes without faults."""
        key = case.command, case.ranks, case.kinds
        if key not in self.n_operation:
            out = self.folder / "count"
            shutil.rmtree(out, ignore_errors=True)
            result = mdp.succeed(case.ranks, *self.words(case.command, out, 1), "--fault-kinds", case.kinds, "--log-level", "debug",
                                 timeout=TIMEOUT)
            self.n_operation[key] = max([1, *(int(line.split()[-3]) for line in result.stderr.splitlines()
                                              if line.endswith(" fallible operations"))])
        return self.n_operation[key]

    def equal(self, command, out, name):
        ours, theirs = out / name, self.whole[command] / name
        if name == "eval.json":
            return same_json(mdp.read_json(ours), mdp.read_json(theirs))
        if name == "dump.h5":
            return h5_content(ours) == h5_content(theirs)
        return mdp.digests(ours) == mdp.digests(theirs)

    def judge(self, case, result, out):
        """Yields what is wrong."""
        allowed = set().union(*(CODES[kind] for kind in case.kinds.split(","))) | {0}
        code = result.codes[0]
        if len(set(result.codes)) != 1 or code not in allowed:
            yield f"codes {result.codes}, expected one of {sorted(allowed)}"
        if len(result.errors()) != (code != 0):
            yield f"{len(result.errors())} sentences"
        if any(noise in result.stderr + result.stdout for noise in NOISE):
            yield "noise"
        for name in self.COMMANDS[case.command]:
            if (out / name).exists():
                if not self.equal(case.command, out, name):
                    yield f"{name} is damaged"
            elif code == 0:
                yield f"{name} is missing after success"
        if code == 0 and case.command in ("inspect", "verify") and result.stdout != self.said[case.command]:
            yield "another output"
        if mdp.digests(self.inputs) != self.untouched:
            yield "an input was changed"

    def complete(self, command, out):
        return all((out / name).exists() and self.equal(command, out, name) for name in self.COMMANDS[command])

    def go_on(self, case, words, out):
        """What is wrong when the command goes on after the failure, and how that looked."""
        result = mdp.run({1: 3, 2: 4, 4: 2}[case.ranks], *words, "--resume", timeout=TIMEOUT)
        left = [path for path in out.rglob("*.state") if path.is_dir()]
        good = set(result.codes) == {0} and not left and self.complete(case.command, out)
        return [] if good else ["--resume afterwards does not give the result"], str(result)

    def step(self, case):
        """(what is wrong, exit code, how the run looked) of one faulted run."""
        out = self.folder / "out" / str(case.number)
        out.parent.mkdir(exist_ok=True)
        words = self.words(case.command, out, case.threads)
        if case.every:
            every, seed = case.every, case.number
        else:  # one operation
            every = 10 ** 9
            seed = every - 1 - int(case.where * self.count(case))
        try:
            result = mdp.run(case.ranks, *words, "--fault-every", every, "--fault-seed", seed, "--fault-kinds", case.kinds,
                             "--fault-rank", case.ranks_hit, timeout=TIMEOUT)
        except AssertionError as hang:
            return ["hang"], None, str(hang)
        wrong, shown, failed = list(self.judge(case, result, out)), str(result), result.codes[0]
        try:
            if failed and not wrong and case.command in self.GOES_ON:
                wrong, again = self.go_on(case, words, out)
                shown += again if wrong else ""
            if case.clean_after and not wrong and self.COMMANDS[case.command]:
                result = mdp.run(case.ranks, *words, "--overwrite", timeout=TIMEOUT)
                if set(result.codes) != {0} or not self.complete(case.command, out):
                    wrong, shown = ["a clean run afterwards does not give the result"], shown + str(result)
        except AssertionError as hang:
            wrong, shown = ["hang afterwards"], shown + str(hang)
        if not wrong:
            shutil.rmtree(out, ignore_errors=True)
        return wrong, failed, shown


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--runs", type=int, default=2000)
    parse.add_argument("--seed", type=int, default=1)
    parse.add_argument("--first", type=int, default=0, help="number of the first run")
    parse.add_argument("--only", nargs="+", choices=Walk.COMMANDS, help="of these runs, only those of some commands")
    parse.add_argument("--out", help="keep what went wrong here")
    parse.add_argument("--leaks", action="store_true", help="of a build with AddressSanitizer")
    options = parse.parse_args()
    if options.leaks:
        os.environ["ASAN_OPTIONS"] = "detect_leaks=1:fast_unwind_on_malloc=0"
        os.environ["LSAN_OPTIONS"] = f"suppressions={mdp.TESTS / 'lsan.supp'}:print_suppressions=0"
    folder = pathlib.Path(options.out or tempfile.mkdtemp())
    walk, codes, wrongs = Walk(folder), collections.Counter(), collections.Counter()
    for case in cases(options.runs, options.seed, options.first):
        if options.only and case.command not in options.only:
            continue
        wrong, code, shown = walk.step(case)
        codes[code] += 1
        wrongs.update(wrong)
        if wrong:
            print(f"WRONG {case.number}: {'; '.join(wrong)}\n{case}\n{shown}\n", flush=True)
        if case.number % 100 == 99:
            print(f"{case.number + 1} runs: codes {dict(codes)}, wrong {dict(wrongs)}", flush=True)
    print(json.dumps({"runs": sum(codes.values()), "seed": options.seed, "codes": {str(k): n for k, n in sorted(codes.items(), key=str)},
                      "wrong": dict(wrongs)}))
    if not options.out:
        shutil.rmtree(folder)
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
