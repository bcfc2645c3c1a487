"""Two checkouts measured by turns; called by `scripts/against-commit`.

A machine changes its pace within minutes, so only what runs in the same minutes is compared: each
turn measures both, in alternating order, and the ratio of a figure is the median of its turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODEL = "sounding/assets/nano"
BENCH = {
    "prefill": ["bench", MODEL, "--prefill", "2048", "--decode", "0", "--runs", "3", "--json"],
    "decode": ["bench", MODEL, "--prefill", "", "--decode", "64", "--runs", "3", "--json"],
    "train": [
        "bench",
        "nano",
        "--train",
        "--no-mtp",
        "--tokens",
        "4x1024",
        "--runs",
        "2",
        "--json",
    ],
}
COLD = ["complete", "examples/total.py:6"]


def measure(tree: Path, what: str) -> float:
    """How fast one checkout is: tokens per second, or completions per second from a cold start."""
    arguments = COLD if what == "cold" else BENCH[what]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sounding", *arguments], cwd=tree, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{tree}: {what} failed: {done.stderr.strip()[-500:]}")
    if what == "cold":
        return 1 / seconds
    report = json.loads(done.stdout)
    figures = [report] if what == "train" else [r for r in report["rows"] if r["kind"] == what]
    return float(figures[0]["tokens_per_second"])


def main() -> None:
    """Measure, and print a row per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mine", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--what", default="prefill,decode,train,cold")
    asked = parser.parse_args()
    for what in asked.what.split(","):
        pairs = []
        for turn in range(asked.turns):
            order = (asked.mine, asked.other) if turn % 2 else (asked.other, asked.mine)
            found = {tree: measure(tree, what) for tree in order}
            pairs.append((found[asked.mine], found[asked.other]))
            print(f"{what}: turn {turn + 1} of {asked.turns}", end="\r", file=sys.stderr)
        ratio = statistics.median(mine / other for mine, other in pairs)
        mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{what:8} ratio {ratio:.3f}   {mine:10.2f} and {other:10.2f} per second", flush=True)


if __name__ == "__main__":
    main()
