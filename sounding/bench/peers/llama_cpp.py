"""Compare with llama.cpp on the same checkpoint, in alternation: `scripts/against-llama MODEL`.

llama.cpp's own script converts the checkpoint: experts stay in FP4, linear maps become Q8_0, the
head stays in bfloat16. The tokenizer is omitted, since only speed is measured.
"""

import argparse
import importlib
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from sounding.progress import progress_bar
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import FORMATS

PREFILL, DECODE, RUNS = "512,2048", 64, 3
Speeds = dict[str, float]  # tokens per second, by what is measured


def require_convertible(model: Path) -> None:
    """Raise ValueError if llama.cpp's own script cannot convert the checkpoint."""
    checkpoint = Checkpoint(model)
    if checkpoint.dialect != "published":
        raise ValueError(
            f"{model} has the layout of transformers, which llama.cpp does not convert; use the "
            "published one"
        )
    if checkpoint.storage.experts != "I8":
        raise ValueError(
            f"{model} has {FORMATS[checkpoint.storage.experts]} experts, which llama.cpp does not "
            "convert; convert them to FP4 with `sounding convert`"
        )


def convert(model: Path, source: Path, out: Path) -> None:
    """Convert the checkpoint with llama.cpp's script, without a tokenizer."""
    logging.disable(logging.INFO)
    sys.path[:0] = [str(source), str(source / "gguf-py")]

    def without_tokenizer(self: Any) -> None:
        self.gguf_writer.add_tokenizer_model("none")
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    importlib.import_module("conversion.deepseek").DeepseekV4Model.set_vocab = without_tokenizer
    sys.argv[1:] = [str(model), "--outfile", str(out), "--outtype", "q8_0"]
    importlib.import_module("convert_hf_to_gguf").main()


def ours(model: Path, threads: int) -> Speeds:
    """The measurements of `sounding bench`."""
    options = ["--prefill", PREFILL, "--decode", DECODE, "--runs", RUNS, "--threads", threads]
    rows = _output([sys.executable, "-m", "sounding", "bench", model, *options, "--json"])["rows"]
    return {_title(row["kind"], row["tokens"]): row["tokens_per_second"] for row in rows}


def theirs(program: Path, model: Path, threads: int) -> Speeds:
    """The measurements of `llama-bench`."""
    options = ["-p", PREFILL, "-n", DECODE, "-r", RUNS, "-t", threads, "-o", "json"]
    speeds = {}
    for row in _output([program, "-m", model, *options]):
        kind = "prefill" if row["n_prompt"] else "decode"
        speeds[_title(kind, row["n_prompt"] or row["n_gen"])] = row["avg_ts"]
    return speeds


def _title(kind: str, tokens: int) -> str:
    return f"{kind} {tokens:,}"


def _output(command: list[object]) -> Any:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main() -> None:
    """Convert, measure both sides in alternation, and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/against-llama", description=__doc__)
    parser.add_argument("folder", type=Path, help=argparse.SUPPRESS)  # where llama.cpp was built
    parser.add_argument("model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--check", action="store_true", help="only see if it can be converted")
    parser.add_argument("turns", type=int, nargs="?", default=3)
    arguments = parser.parse_args()
    try:
        require_convertible(arguments.model)
    except ValueError as error:
        raise SystemExit(f"scripts/against-llama: {error}") from None
    if arguments.check:
        return
    threads = psutil.cpu_count() or 1
    table = Table(box=box.SIMPLE, title=f"{arguments.model.name}, tokens/s on {threads} threads")
    table.add_column("what")
    for heading in ("Sounding", "llama.cpp", "ratios by turns"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "model.gguf"
        convert(arguments.model, arguments.folder / "vendor" / "llama.cpp", converted)
        program = arguments.folder / "built" / "bin" / "llama-bench"
        with progress_bar(MofNCompleteColumn()) as bar:
            turns = [
                (ours(arguments.model, threads), theirs(program, converted, threads))
                for _ in bar.track(range(arguments.turns), description="turns")
            ]
    for what in turns[0][0]:
        first, second = ([pair[side][what] for pair in turns] for side in (0, 1))
        ratios = sorted(one / two for one, two in zip(first, second, strict=True))
        speeds = (f"{statistics.median(speed):,.1f}" for speed in (first, second))
        table.add_row(what, *speeds, ", ".join(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
