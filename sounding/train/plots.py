"""Plots of a run's metrics: loss, expert load, gradient norm."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sounding.train.metrics import METRICS_NAME, MetricsRow, read_metrics


def draw(run: Path, out: Path) -> list[Path]:
    """Write `loss.png`, `expert_load.png` and `gradient_norm.png` from the metrics of a run, as far
    as it has measured them.

    Raises ValueError when the run has measured nothing yet.
    """
    path = run / METRICS_NAME
    rows = last_of_each_step(read_metrics(path)) if path.exists() else []
    if not rows:
        raise ValueError(
            f"{run} has no metrics to draw; give the folder of a run that has taken a step"
        )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, panel in (
        ("loss", _loss),
        ("expert_load", _expert_load),
        ("gradient_norm", _gradient_norm),
    ):
        if name == "expert_load" and not any("load_entropy" in row for row in rows):
            continue  # adapters do not move the routers
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        panel(axes, rows)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        figure.savefig(out / f"{name}.png", dpi=120)
        written.append(out / f"{name}.png")
    return written


def last_of_each_step(rows: Sequence[MetricsRow]) -> list[MetricsRow]:
    """Rows in order of steps; of a step repeated after a rollback, the last row."""
    kept: dict[tuple[int, bool], MetricsRow] = {}
    for row in rows:
        kept[row["step"], "gradient_norm" in row] = row
    return [kept[key] for key in sorted(kept)]


def _series(rows: Sequence[MetricsRow], name: str) -> tuple[list[int], list[Any]]:
    measured = [row for row in rows if name in row]
    return [row["step"] for row in measured], [row[name] for row in measured]


def _loss(axes: Axes, rows: Sequence[MetricsRow]) -> None:
    for name, label in (("loss", "next token"), ("mtp_loss", "token after next")):
        axes.plot(*_series(rows, name), label=label, linewidth=0.8)
    axes.plot(*_series(rows, "validation_loss"), "k.-", label="held out")
    axes.set_ylabel("nats per token")
    axes.legend()


def _expert_load(axes: Axes, rows: Sequence[MetricsRow]) -> None:
    steps, loads = _series(rows, "load_entropy")
    for layer in range(max(map(len, loads), default=0)):
        values = [load[layer] if layer < len(load) else math.nan for load in loads]
        axes.plot(steps, values, label=str(layer), linewidth=0.8)
    axes.set_ylabel("entropy of expert load (1 is even)")
    axes.legend(title="layer, then MTP", ncols=4, fontsize="small")


def _gradient_norm(axes: Axes, rows: Sequence[MetricsRow]) -> None:
    axes.plot(*_series(rows, "gradient_norm"), linewidth=0.8)
    for row in rows:
        if "event" in row:
            axes.axvline(row["step"], color="red", alpha=0.5, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("gradient norm (red: skipped or rolled back)")
