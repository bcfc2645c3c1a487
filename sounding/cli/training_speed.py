"""`bench --train`: each side trains in a process of its own, so that each has its own peak memory.

Run as a module, this is such a process: a workload as JSON on stdin, what was measured on stdout.
"""

import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich import box
from rich.console import Console
from rich.table import Table

from sounding.cli.models import unknown_model
from sounding.config import ModelConfig, parse_config
from sounding.presets import PRESETS

if TYPE_CHECKING:
    from sounding.train.throughput import Measurement, Workload

Side = Literal["ours", "transformers"]

_DIFFERENCES = (
    "ours keeps weights, gradients and moments in float32 and multiplies in bfloat16, updates "
    "matrices with Muon and trains {mtp}; transformers keeps everything in bfloat16, updates "
    "with torch's AdamW, has no MTP block, and always lets CSA layers choose entries{choosing}"
)


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
    """Train the config of a preset or folder from random weights; returns the report.

    With a peer, ours is measured before and after it, because a machine changes its pace. Raises
    ValueError for a model that is neither, and where the peer is not installed.
    """
    from sounding.train.throughput import Workload, run_of

    if against and importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "there is no transformers library to compare with; install the extra 'dev'"
        )
    config = _config(model)
    if not mtp:
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    workload = Workload(config, *tokens, sparse=sparse, steps=steps)
    run_of(workload)  # what is wrong with it is said here, once
    measured = [_measure_apart("ours", workload, threads)]
    report: dict[str, Any] = {
        "model": model,
        "threads": threads,
        "phase": "sparse" if sparse else "dense",
        "mtp": config.num_mtp_layers > 0,
        "sequences": tokens[0],
        "sequence_tokens": tokens[1],
        "steps": steps,
    }
    if against is None:
        return report | _figures(measured, tokens)
    peer = _figures([_measure_apart("transformers", workload, threads)], tokens)
    measured.append(_measure_apart("ours", workload, threads))
    report |= _figures(measured, tokens)
    speed, memory = (report[key] / peer[key] for key in ("tokens_per_second", "peak_bytes"))
    return {
        **report,
        **{f"peer_{key}": value for key, value in peer.items()},
        "ratio": round(speed, 2),
        "memory_ratio": round(memory, 3),
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
    if model in PRESETS:
        return PRESETS[model]()
    if not Path(model).is_dir():
        raise ValueError(unknown_model(model))
    from sounding.weights.checkpoint import read_config

    return read_config(Path(model))[1]


def _differences(config: ModelConfig, sparse: bool) -> str:
    blocks = config.num_mtp_layers
    mtp = f"{blocks} MTP block{'s' * (blocks > 1)} besides" if blocks else "no MTP block either"
    choosing = ", with an indexer that does not learn" if sparse else ", where ours attend to all"
    return _DIFFERENCES.format(mtp=mtp, choosing=choosing)


def _figures(measured: "list[Measurement]", tokens: tuple[int, int]) -> dict[str, Any]:
    seconds = [each for one in measured for each in one.seconds]
    return {
        "tokens_per_second": round(tokens[0] * tokens[1] / statistics.median(seconds), 1),
        "peak_bytes": max(one.peak_bytes for one in measured),
    }


# --------------------------------------------------------------------------------------------------
# The process of one side


def _measure_apart(side: Side, workload: "Workload", threads: int) -> "Measurement":
    """Raises ValueError when the process fails; its own words are on stderr by then."""
    from sounding.train.throughput import Measurement

    asked = {**dataclasses.asdict(workload), "config": workload.config.to_dict()}
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps({"side": side, "threads": threads, "workload": asked}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(
            f"training with {side!r} ended with exit code {done.returncode}; a smaller --tokens "
            "takes less memory"
        )
    return Measurement(**json.loads(done.stdout))


def _run_side(asked: dict[str, Any]) -> dict[str, Any]:
    import torch

    from sounding.train import throughput

    torch.set_num_threads(asked["threads"])
    raw = asked["workload"]
    workload = throughput.Workload(**{**raw, "config": parse_config(raw["config"])})
    sides = {"ours": throughput.ours, "transformers": throughput.transformers}
    return dataclasses.asdict(throughput.measure(workload, sides[asked["side"]]))


if __name__ == "__main__":
    click.echo(json.dumps(_run_side(json.load(sys.stdin))))
