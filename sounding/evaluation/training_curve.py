"""Training curve: measurements of the models that a run kept, over training tokens."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sounding.evaluation.eval_options import EvalOptions
from sounding.evaluation.lines import Item, choose_lines
from sounding.evaluation.measuring import (
    Measured,
    limited,
    measure_bits,
    measure_lines,
    measure_programs,
    natural_end,
    sandbox,
)
from sounding.evaluation.statistics import Estimate
from sounding.loading import LoadedModel
from sounding.tasks.code import CodeTask, Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = {
    "bits_per_byte": "bits per byte",
    "line_exact": "lines exactly right",
    "infilling_pass@1": "infilled programs that pass",
}
_SOURCES = {
    "bits_per_byte": "bits_per_byte",
    "line_exact": "model_exact",
    "infilling_pass@1": "pass@1",
}
_COPYISTS = ("copy", "best_copy")
_PER_FILE = 5
_SETTINGS = ("temperature", "top_p", "heal", "copying", "syntax")

Point = dict[str, Any]
"""One model: `step`, `tokens`, and an `Estimate` for each of `MEASURES` that was measured."""


class TrainingCurve:
    """Measures the models of a run one after the other on the same items.

    Stores results in `folder`; models measured before are not measured again.
    """

    def __init__(
        self,
        folder: Path,
        texts: Sequence[tuple[str, str]],
        problems: Sequence[Problem] | None,
        options: EvalOptions,
        *,
        documents: int | None = None,
        lines: int | None = None,
    ) -> None:
        """Choose at most `documents` texts, `lines` and `options.limit` problems."""
        self.folder = folder
        seed = options.seed
        # Only the likeliest lines, to measure what the network itself has learned.
        self.options = dataclasses.replace(options, copying=False, candidates=0, syntax=True)
        self.documents = limited(texts, documents, seed)
        chosen = choose_lines(texts, per_file=_PER_FILE, cursor="indent", seed=seed)
        self.lines: list[Item] = limited(chosen, lines, seed)
        self.task: CodeTask | None = None
        self.until = "line"
        if problems is not None:
            self.until = natural_end(problems)
            judge = sandbox(options.timeout, options.unsafe)
            self.task = CodeTask(limited(problems, options.limit, seed), judge)
        self.points: list[Point] = []
        self.copying: dict[str, Estimate] = {}

    def settings(self) -> dict[str, Any]:
        """Settings that determine the results, except the models."""
        return {
            "seed": self.options.seed,
            "documents": len(self.documents),
            "lines": len(self.lines),
            "problems": len(self.task) if self.task else 0,
            "context_tokens": self.options.context_tokens,
            **{name: getattr(self.options, name) for name in _SETTINGS},
        }

    def add(self, step: int, tokens: int, model: LoadedModel) -> KeyboardInterrupt | None:
        """Measure a model; returns the interrupt that ended the measurement, if any."""
        metrics: dict[str, Estimate] = {}
        for measured in self._measure(model, f"step-{step:08d}"):
            if measured.interrupt is not None:
                return measured.interrupt
            metrics |= measured.metrics
        self.copying = {name: metrics[f"{name}_exact"] for name in _COPYISTS}
        found = {name: metrics[key] for name, key in _SOURCES.items() if key in metrics}
        self.points.append({"step": step, "tokens": tokens, **found})
        return None

    def _measure(self, model: LoadedModel, name: str) -> Iterator[Measured]:
        def options(kind: str, max_tokens: int) -> EvalOptions:
            out = self.folder / f"{name}-{kind}.jsonl"
            return dataclasses.replace(self.options, out=out, max_tokens=max_tokens)

        yield measure_bits(model, self.documents, options("bpb", 64))
        yield measure_lines(
            model, self.lines, options("lines", 64), per_file=_PER_FILE, cursor="indent"
        )
        if self.task is not None:
            how = options("infilling", 128)
            yield measure_programs("infilling", model, self.task, self.until, how)

    def rows(self) -> list[dict[str, Any]]:
        """The curve as JSON rows; see `rows_of`."""
        return rows_of(self.points, self.copying)


def rows_of(points: Sequence[Point], copying: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """The curve as JSON rows: one per model in order of tokens, then the copyists."""
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
    """Draw each measure with its interval over training tokens; copyists are dashed lines.

    Needs Matplotlib.
    """
    from matplotlib.figure import Figure

    points = sorted(points, key=lambda point: point["tokens"])
    names = [name for name in MEASURES if any(name in point for point in points)]
    figure = Figure(figsize=(4.5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw_measure(axes, name, points, copying if name == "line_exact" else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_measure(
    axes: "Axes", name: str, points: Sequence[Point], copying: Mapping[str, Estimate]
) -> None:
    measured = [point for point in points if name in point]
    tokens = [point["tokens"] / 1e6 for point in measured]
    values, lows, highs = zip(*(point[name] for point in measured), strict=True)
    axes.plot(tokens, values, ".-")
    axes.fill_between(tokens, lows, highs, alpha=0.2)
    for label, estimate in copying.items():
        axes.axhline(estimate.value, linestyle="--", linewidth=0.8, color="gray")
        axes.text(tokens[0], estimate.value, label, fontsize="small", va="bottom")
    axes.set_xlabel("training tokens, millions")
    axes.set_title(MEASURES[name])
    axes.grid(alpha=0.3)
