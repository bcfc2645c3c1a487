"""`bench --train`: each side trains in its own process, so that peak memory is per side.

The sides alternate steps, because a machine's speed drifts. Run as a module, this file is such a
process: it reads a workload as a line of JSON from stdin, takes a step for every further line, and
writes measurements as lines of JSON to stdout.
"""

import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from sounding.config import ModelConfig
from sounding.config_file import parse_config
from sounding.loading import unknown_model
from sounding.presets import PRESETS
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from sounding.bench.throughput import Workload

Side = Literal["ours", "transformers"]

_DIFFERENCES = (
    "ours keeps weights, gradients and moments in float32 and multiplies in bfloat16, updates "
    "matrices with Muon and trains {mtp}; transformers keeps everything in bfloat16, updates "
    "with torch's AdamW, has no MTP block, and always lets CSA layers choose entries{choosing}"
)


class Taken(NamedTuple):
    """A process's report of a step: its seconds, and the peak resident memory so far."""

    seconds: float
    peak_bytes: int


def compare_training(
    model: str,
    tokens: tuple[int, int],
    *,
    sparse: bool,
    mtp: bool,
    threads: int,
    steps: int,
    against: str | None,
) -> dict[str, Any]:
    """Train the config of a preset or folder from random weights and return the report.

    Raises ValueError if `model` is neither, or if the peer is not installed.
    """
    from sounding.bench.throughput import Workload, run_of

    if against and importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "transformers, the library to compare with, is not installed: "
            "pip install 'sounding[dev]'"
        )
    config = _config(model)
    if not mtp:
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    workload = Workload(config, *tokens, sparse=sparse, steps=steps)
    run_of(workload)  # report errors of the workload here, once
    sides: list[Side] = ["ours", "transformers"] if against else ["ours"]
    ours, *peer = _take_turns(sides, workload, threads)
    report: dict[str, Any] = {
        "model": model,
        "threads": threads,
        "phase": "sparse" if sparse else "dense",
        "mtp": config.num_mtp_layers > 0,
        "sequences": tokens[0],
        "sequence_tokens": tokens[1],
        "steps": steps,
        **_figures(ours, tokens),
    }
    if not peer:
        return report
    (theirs,) = peer
    ratios = [their.seconds / our.seconds for our, their in zip(ours, theirs, strict=True)]
    return {
        **report,
        **{f"peer_{key}": value for key, value in _figures(theirs, tokens).items()},
        "ratio": round(statistics.median(ratios), 2),
        "memory_ratio": round(ours[-1].peak_bytes / theirs[-1].peak_bytes, 3),
        "differences": _differences(config, sparse),
    }


def print_training(report: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("training", "tokens/s", "peak memory"):
        table.add_column(heading, justify="left" if heading == "training" else "right")
    for name, prefix in (("sounding", ""), ("transformers", "peer_")):
        if f"{prefix}peak_bytes" in report:
            speed, peak = report[f"{prefix}tokens_per_second"], report[f"{prefix}peak_bytes"]
            table.add_row(name, f"{speed:,.1f}", f"{peak / 1e9:,.2f} GB")
    if "ratio" in report:
        table.add_row("ratio", f"{report['ratio']:.2f}x", f"{report['memory_ratio']:.2f}x")
    Console().print(table)
    click.echo(
        f"{report['model']}, {report['phase']} phase, {'with' if report['mtp'] else 'without'} the "
        f"MTP block: {report['sequences']} sequences of "
        f"{report['sequence_tokens']:,} tokens a step, median of {report['steps']} after one to "
        f"warm up, on {report['threads']} threads"
    )
    if "differences" in report:
        click.echo(report["differences"])


def _config(model: str) -> ModelConfig:
    shape = model.removeprefix("preset:")
    if shape in PRESETS:
        return PRESETS[shape]()
    if not Path(model).is_dir():
        raise ValueError(unknown_model(model))
    from sounding.weights.checkpoint import read_config

    return read_config(Path(model))[1]


def _differences(config: ModelConfig, sparse: bool) -> str:
    blocks = config.num_mtp_layers
    mtp = f"{blocks} MTP block{'s' * (blocks > 1)} besides" if blocks else "no MTP block either"
    choosing = ", with an indexer that does not learn" if sparse else ", where ours attend to all"
    return _DIFFERENCES.format(mtp=mtp, choosing=choosing)


def _figures(steps: Sequence[Taken], tokens: tuple[int, int]) -> dict[str, Any]:
    seconds = statistics.median(step.seconds for step in steps)
    return {
        "tokens_per_second": round(tokens[0] * tokens[1] / seconds, 1),
        "peak_bytes": steps[-1].peak_bytes,
    }


def _take_turns(sides: Sequence[Side], workload: "Workload", threads: int) -> list[list[Taken]]:
    """The steps of each side after one warm-up step; the sides alternate."""
    with ExitStack() as stack, progress_bar(MofNCompleteColumn()) as bar:
        steps = [stack.enter_context(_started(side, workload, threads)) for side in sides]
        turns = range(workload.steps + 1)
        taken = [[step() for step in steps] for _ in bar.track(turns, description="steps")]
    return [list(side) for side in zip(*taken[1:], strict=True)]


# --------------------------------------------------------------------------------------------------
# The process of one side


@contextmanager
def _started(side: Side, workload: "Workload", threads: int) -> Iterator[Callable[[], Taken]]:
    """Start a training process; yields a function that runs one step. Ends with the context.

    The function raises ValueError if the process failed; its error message is on stderr.
    """
    fields = {**dataclasses.asdict(workload), "config": workload.config.to_dict()}
    command, pipe = [sys.executable, "-m", __name__], subprocess.PIPE
    # In its own session, so that Ctrl-C reaches only this process, which then ends the other.
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def say(line: str) -> None:
            with suppress(BrokenPipeError):  # it has ended, as its missing answer shows
                orders.write(f"{line}\n".encode())

        def step() -> Taken:
            say("step")
            answer = answers.readline()
            if not answer:
                raise ValueError(
                    f"training with {side!r} ended with exit code {process.wait()}; a smaller "
                    "--tokens takes less memory"
                )
            return Taken(**json.loads(answer))

        try:
            say(json.dumps({"side": side, "threads": threads, "workload": fields}))
            yield step
        finally:
            process.kill()


def _steps(order: dict[str, Any], orders: Iterator[str]) -> Iterator[Taken]:
    """Run one step of the workload per line of input."""
    import torch

    from sounding.bench import throughput
    from sounding.runtime import peak_resident_bytes

    torch.set_num_threads(order["threads"])
    raw = order["workload"]
    workload = throughput.Workload(**{**raw, "config": parse_config(raw["config"])})
    sides = {"ours": throughput.ours, "transformers": throughput.transformers}
    with sides[order["side"]](workload) as step:
        for _ in orders:
            start = time.perf_counter()
            step()
            yield Taken(time.perf_counter() - start, peak_resident_bytes())


if __name__ == "__main__":
    for taken in _steps(json.loads(sys.stdin.readline()), iter(sys.stdin)):
        click.echo(json.dumps(taken._asdict()))
