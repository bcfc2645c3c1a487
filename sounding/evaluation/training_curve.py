"""Training curve: a run's results by the number of training tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sounding.evaluation.statistics import Estimate

MEASURES = {
    "bits_per_byte": "bits per byte",
    "line_exact": "lines exactly right",
    "infilling_pass@1": "infilled programs that pass",
}
Point = dict[str, Any]
"""One model: `step`, `tokens`, and an `Estimate` under each of `MEASURES` that was made."""


def rows_of(points: Sequence[Point], copying: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """The table, as JSON rows: a model each, by tokens, then those who copy lines of the file."""
    rows = [
        {name: _plain(value) for name, value in point.items()}
        for point in sorted(points, key=lambda point: point["tokens"])
    ]
    copyists = [
        {"name": name, "line_exact": _plain(estimate)} for name, estimate in copying.items()
    ]
    return [{"name": f"step {row['step']}", **row} for row in rows] + copyists


def _plain(value: Any) -> Any:
    return value._asdict() if isinstance(value, Estimate) else value


def draw(points: Sequence[Point], copying: Mapping[str, Estimate], path: Path) -> None:
    """Draw each measure over training tokens, with its interval; copyists are dashed lines."""
    points = sorted(points, key=lambda point: point["tokens"])
    names = [name for name in MEASURES if any(name in point for point in points)]
    figure = Figure(figsize=(4.5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        measured = [point for point in points if name in point]
        tokens = [point["tokens"] / 1e6 for point in measured]
        values, lows, highs = zip(*(point[name] for point in measured), strict=True)
        axes.plot(tokens, values, ".-")
        axes.fill_between(tokens, lows, highs, alpha=0.2)
        if name == "line_exact":
            for label, estimate in copying.items():
                axes.axhline(estimate.value, linestyle="--", linewidth=0.8, color="gray")
                axes.text(tokens[0], estimate.value, label, fontsize="small", va="bottom")
        axes.set_xlabel("training tokens, millions")
        axes.set_title(MEASURES[name])
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
