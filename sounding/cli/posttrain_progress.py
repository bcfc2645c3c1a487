"""Progress of post-training on stderr: one line per row of metrics."""

import logging
from collections.abc import Callable
from typing import Any

import click

_NAMES = {
    "loss": "loss",
    "reward": "reward",
    "pass_at_1": "pass@1",
    "divergence": "divergence",
    "entropy": "entropy",
    "answer_tokens": "tokens per answer",
    "difference": "difference",
    "bits_per_byte": "held out, bits per byte",
}


def progress_lines(steps: int) -> Callable[[dict[str, Any]], None]:
    """A function that prints rows of metrics. Warnings are printed as lines, too."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def show(row: dict[str, Any]) -> None:
        facts = [f"{name} {row[key]:.4g}" for key, name in _NAMES.items() if key in row]
        if "event" in row:
            facts.append(f"{row['event']}: {row['reason']}")
        click.echo(f"step {row['step']:,} of {steps:,}: {', '.join(facts)}", err=True)

    return show
