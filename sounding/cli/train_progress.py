"""Progress of a training on stderr: a bar in a terminal, lines elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from sounding.train.metrics import MetricsRow
    from sounding.train.run_config import RunConfig

_LINES = 100  # progress lines of a whole run


class TrainProgress(Protocol):
    """Shows the progress of a run."""

    def start_at(self, step: int) -> None:
        """Start at a resumed step; the remaining time is estimated from the steps after it."""

    def show(self, row: "MetricsRow") -> None:
        """Show a row of metrics."""


@contextmanager
def train_progress(run: "RunConfig", *, shown: bool) -> Iterator[TrainProgress]:
    """A bar if stderr is a terminal, lines elsewhere; warnings are printed the same way.

    Set `shown` to False in processes that should print only errors.
    """
    console = Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
    level = logging.INFO if shown else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    if not console.is_terminal or not shown:
        yield ProgressLines(run)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[measured]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        yield ProgressBar(bar, run)


class ProgressBar:
    """A progress bar with steps, loss, speed and remaining time."""

    def __init__(self, bar: Progress, run: "RunConfig") -> None:
        self._bar = bar
        self._task = bar.add_task(run.name, total=run.train.steps, measured="")
        self._bits = ""

    def start_at(self, step: int) -> None:
        self._bar.reset(self._task, completed=step, start=True)

    def show(self, row: "MetricsRow") -> None:
        if _is_held_out(row):
            self._bits = f", {_held_out(row)}"
        elif "tokens_per_second" in row:
            measured = f"{_loss(row)}{self._bits}, {_speed(row)}"
            self._bar.update(self._task, completed=row["step"], measured=measured)


class ProgressLines:
    """A line per hundredth of the run, and one per validation."""

    def __init__(self, run: "RunConfig") -> None:
        self._steps = run.train.steps
        self._every = max(1, self._steps // _LINES)
        self._started, self._first = time.monotonic(), 0

    def start_at(self, step: int) -> None:
        self._started, self._first = time.monotonic(), step

    def show(self, row: "MetricsRow") -> None:
        step = row["step"]
        where = f"step {step:,} of {self._steps:,}"
        if _is_held_out(row):
            click.echo(f"{where}: {_held_out(row)}", err=True)
        elif "tokens_per_second" in row and self._is_due(step):
            rest = (self._steps - step) * (time.monotonic() - self._started) / (step - self._first)
            left = f", {_duration(rest)} left" if step < self._steps else ""
            measured = f"{row['phase']}, {_loss(row)}, {_speed(row)}{left}"
            click.echo(f"{where}: {measured}", err=True)

    def _is_due(self, step: int) -> bool:
        """Whether to print a line for this step; true for the first, which shows that it runs."""
        return step in (self._first + 1, self._steps) or step % self._every == 0


def _loss(row: "MetricsRow") -> str:
    return f"loss {row['loss']:.3f}" if "loss" in row else f"KL {row['index_loss']:.3f}"


def _speed(row: "MetricsRow") -> str:
    return f"{row['tokens_per_second']:,.0f} tokens/s"


def _is_held_out(row: "MetricsRow") -> bool:
    return "bits_per_byte" in row or "held_out_tokens_per_block" in row


def _held_out(row: "MetricsRow") -> str:
    if "held_out_tokens_per_block" in row:
        return f"held out {row['held_out_tokens_per_block']:.2f} tokens per block"
    return f"held out {row['bits_per_byte']:.3f} bits per byte"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
