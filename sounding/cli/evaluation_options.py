"""Options and output of the `eval` commands."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table

from sounding.cli.completion import model_option
from sounding.evaluation.measuring import Measured

_Command = TypeVar("_Command", bound=Callable[..., Any])
PLAIN_BOX = box.SIMPLE


def warn(message: str) -> None:
    """Print a message on stderr."""
    click.echo(message, err=True)


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Parse numbers such as 1,10; without any text there are none."""
    parts = (text or "").replace(",", " ").split()
    if text is not None and not (parts and all(part.isdecimal() and int(part) for part in parts)):
        raise click.BadParameter(f"{text!r} must be numbers such as 1,10")
    return tuple(map(int, parts))


samples_option = click.option(
    "--samples", default=1, show_default=True, help="Samples per problem."
)
k_option = click.option(
    "-k",
    "ks",
    default="1",
    show_default=True,
    callback=numbers,
    help="Values of k for pass@k, such as 1,10.",
)


def common_options(command: _Command) -> _Command:
    """--model, --limit, --seed, --out and --json."""
    for option in reversed(
        [
            model_option,
            click.option(
                "--limit",
                type=click.IntRange(min=1),
                help="Number of items, drawn by --seed.  [default: all]",
            ),
            click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
            click.option(
                "--out",
                type=click.Path(dir_okay=False, path_type=Path),
                help="JSONL file of results, from which the same command resumes.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        ]
    ):
        command = option(command)
    return command


def syntax_option(command: _Command) -> _Command:
    """--syntax/--no-syntax."""
    return click.option(
        "--syntax/--no-syntax",
        default=True,
        help="If an answer breaks Python's syntax, sample a few more, as `complete` does.",
    )(command)


def sampling_options(max_tokens: int) -> Callable[[_Command], _Command]:
    """Options of generation."""
    options = [
        click.option(
            "--max-tokens", default=max_tokens, show_default=True, help="Token limit of an answer."
        ),
        click.option(
            "--context-tokens",
            default=1024,
            show_default=True,
            help="Token limit of prompt and answer.",
        ),
        click.option("--temperature", default=0.0, show_default=True),
        click.option("--top-p", default=1.0, show_default=True),
        click.option(
            "--width", default=16, show_default=True, help="Sequences generated at the same time."
        ),
        click.option(
            "--heal/--no-heal", default=True, help="Use token healing for an unfinished word."
        ),
        click.option(
            "--copying/--no-copying",
            default=True,
            help="Also consider lines copied from the same file.",
        ),
        click.option(
            "--candidates",
            default=8,
            show_default=True,
            type=click.IntRange(min=0),
            help="Lines to sample besides the most likely one. 0: only that one.",
        ),
        click.option(
            "--min-confidence",
            default=0.0,
            show_default=True,
            type=click.FloatRange(0, 1),
            help="Withhold answers with a lower confidence; they count as failed.",
        ),
    ]
    return lambda command: _decorated(command, options)


def sandbox_options(command: _Command) -> _Command:
    """Options of the sandbox that runs programs."""
    options = [
        click.option(
            "--timeout",
            default=10.0,
            show_default=True,
            help="Time limit of a program, in seconds.",
        ),
        click.option(
            "--workers", default=2, show_default=True, help="Programs run at the same time."
        ),
        click.option(
            "--unsafe-no-isolation",
            "unsafe",
            is_flag=True,
            help="Run generated code with limits but without isolation: it can read, write and "
            "send what you can. Only for disposable machines.",
        ),
    ]
    return _decorated(command, options)


def _decorated(command: _Command, options: Sequence[Callable[[_Command], _Command]]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def report(measured: Measured, *, as_json: bool) -> None:
    """Print settings and metrics. After an interrupt they cover what is done; exits with 130."""
    if as_json:
        click.echo(json.dumps(measured.to_dict(), indent=2))
    else:
        click.echo("  ".join(f"{name}={value}" for name, value in measured.settings.items()))
        table = Table("", "value", "95 % interval", box=PLAIN_BOX)
        for name, (value, low, high) in measured.metrics.items():
            table.add_row(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
        console = Console(width=100)
        console.print(table)
        for name, rows in measured.more.items():
            _print_rows(console, name, rows)
        click.echo(f"{measured.done} of {measured.total} done")
    if measured.interrupt is not None:
        raise measured.interrupt


def _print_rows(console: Console, title: str, rows: Any) -> None:
    if isinstance(rows, dict):
        rows = [{title: name, "count": count} for name, count in rows.items()]
    if not rows:
        return
    table = Table(*rows[0], box=PLAIN_BOX)
    for row in rows:
        table.add_row(*(f"{x:.4f}" if isinstance(x, float) else str(x) for x in row.values()))
    console.print(table)
