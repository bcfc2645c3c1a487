"""Pictures of a run of post-training, from its metrics."""

from pathlib import Path

from matplotlib.figure import Figure

from sounding.train.metrics import METRICS_NAME, MetricsRow, read_metrics
from sounding.train.plots import last_of_each_step

# file: (what the axis says, metrics of which those that were measured are drawn)
_PANELS = {
    "loss": ("nats per token", ("loss", "validation_loss", "divergence")),
    "reward": ("reward", ("reward", "pass_at_1", "pass_at_")),
    "entropy": ("nats per token", ("entropy",)),
    "length": ("tokens per answer", ("answer_tokens",)),
    "shares": ("share", ("unfinished", "time_outs", "masked_tokens", "clipped_tokens")),
    "difference": ("nats per token", ("difference", "largest_difference")),
    "routing": ("share of routings", ("changed_routings",)),
}


def draw(run: Path, out: Path) -> list[Path]:
    """Write a PNG file for every panel that has something to show.

    Raises ValueError when the run has measured nothing yet.
    """
    path = run / METRICS_NAME
    rows = last_of_each_step(read_metrics(path)) if path.exists() else []
    written = []
    for name, (label, wanted) in _PANELS.items():
        series = _series(rows, wanted)
        if not series:
            continue
        out.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for key, (steps, values) in series.items():
            axes.plot(steps, values, label=key.replace("_", " "), linewidth=0.9)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(out / f"{name}.png", dpi=120)
        written.append(out / f"{name}.png")
    if not written:
        raise ValueError(
            f"{run} has no metrics to draw; give the folder of a run that has taken a step"
        )
    return written


def _series(
    rows: list[MetricsRow], wanted: tuple[str, ...]
) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by metric; a name that ends in _ stands for all that begin so."""
    keys = sorted({key for row in rows for key in row})
    found = {}
    for name in wanted:
        for key in keys:
            if key == name or (name.endswith("_") and key.startswith(name)):
                measured = [row for row in rows if key in row]
                found[key] = [row["step"] for row in measured], [row[key] for row in measured]
    return found
