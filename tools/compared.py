"""What the tools that compare with other programs share: texts, our figures, an environment of PyPI's packages, and the verdict.

Needs h5py and numpy, and `environment` nothing but Python.
"""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(name, steps, size):
    """Go on in build/NAME, a virtual environment made by these commands of pip when it isn't there; `size` says how large it becomes."""
    folder = ROOT / "build" / name
    python, done = folder / "bin" / "python", folder / "complete"
    wanted = "\n".join(steps)
    if sys.prefix == str(folder):
        return
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        print(f"making {folder} from PyPI: {'; '.join(steps)}; {size}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for step in steps:
            subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *step.split()], check=True)
        done.write_text(wanted, encoding="utf-8")
    os.execv(python, [str(python), *sys.argv])


def read_sequences(path):
    """{category: [ids, ...]} in the order of the categories' names as bytes."""
    import h5py
    import numpy as np
    with h5py.File(path) as tokens:
        return {name: [tokens[name]["input_ids"][a:b].astype(np.int64)
                       for a, b in zip(tokens[name]["offsets"][:-1], tokens[name]["offsets"][1:])]
                for name in sorted(tokens, key=lambda name: name.encode())}


def perplexities(loss):
    """Of each category and in total, from {category: (sum of the losses, positions)}."""
    result = {category: math.exp(total / count) for category, (total, count) in loss.items() if count}
    result["total"] = math.exp(sum(t for t, _ in loss.values()) / sum(n for _, n in loss.values()))
    return result


def losses(categories, loss_of):
    """{category: (sum of the losses, positions)} where loss_of(ids) is that of all positions of a sequence but the first."""
    return {category: (sum(loss_of(ids.tolist()) for ids in sequences), sum(len(ids) - 1 for ids in sequences))
            for category, sequences in categories.items()}


def stream_of(path, name):
    """The stream of that name in an eval.json."""
    with open(path, encoding="utf-8") as text:
        streams = json.load(text)["streams"]
    for stream in streams:
        if stream["name"] == name:
            return stream
    sys.exit(f"{Path(sys.argv[0]).name}: {path} has no stream '{name}'; name one with --stream: {', '.join(s['name'] for s in streams)}")


def perplexity_of(path, name):
    """Our perplexities of a stream: those of the categories and the total."""
    perplexity = stream_of(path, name)["perplexity"]
    return {**perplexity["categories"], "total": perplexity["total"]}


def faults_between(theirs, ours, tolerance, program):
    """One sentence for each perplexity that differs by more than `tolerance`, relative."""
    if theirs.keys() != ours.keys():
        return [f"the categories differ: {', '.join(ours)} in eval.json, {', '.join(theirs)} in the tokens"]
    return [f"perplexity of {category}: {program} {theirs[category]:.6f}, ours {ours[category]:.6f}"
            for category in theirs if not abs(ours[category] - theirs[category]) <= tolerance * theirs[category]]


def show(theirs, ours):
    for category, value in theirs.items():
        print(f"{category:12} {value:12.6f}" + (f"  ours {ours.get(category, math.nan):12.6f}" if ours else ""))


def end(faults, well):
    """Print the faults, or that it went well, and leave with the exit status for it."""
    for fault in faults:
        print(f"{Path(sys.argv[0]).name}: {fault}", file=sys.stderr)
    print("FAILED" if faults else well)
    sys.exit(1 if faults else 0)


def words_of_a_comparison(parser):
    """The options that comparisons of perplexities share."""
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder")
    parser.add_argument("--tokens", metavar="FILE", required=True, help="tokens.h5 to compute perplexity on")
    parser.add_argument("--eval", metavar="FILE", help="eval.json of moe-dist-prune on the same tokens")
    parser.add_argument("--stream", default="original", help="stream of eval.json (default original)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of a perplexity, relative (default 1e-4)")


def compare_perplexity(options, program, loss_of):
    """Compute the perplexity of each category by `loss_of`, compare it with ours and leave."""
    theirs = perplexities(losses(read_sequences(options.tokens), loss_of))
    ours = perplexity_of(options.eval, options.stream) if options.eval else None
    show(theirs, ours)
    end(faults_between(theirs, ours, options.tolerance, program) if ours else [],
        "equal within tolerance" if ours else "loads and computes")
