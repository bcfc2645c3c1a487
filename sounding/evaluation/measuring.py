"""What all evaluation commands share: options, reading files, the loop with its bar, the report."""

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from sounding.cli.completion import Model, model_option
from sounding.cli.progress import progress_bar

if TYPE_CHECKING:
    from sounding.completion.endings import Kind
    from sounding.evaluation.model import Fill
    from sounding.evaluation.results import Results
    from sounding.evaluation.statistics import Estimate
    from sounding.tasks.code import Run

_Command = TypeVar("_Command", bound=Callable[..., Any])
_T = TypeVar("_T")
PLAIN_BOX = box.SIMPLE


def common_options(command: _Command) -> _Command:
    """--model, --limit, --seed, --out and --json."""
    for option in reversed(
        [
            model_option,
            click.option(
                "--limit", type=click.IntRange(min=1), help="Only so many, drawn by seed."
            ),
            click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
            click.option(
                "--out",
                type=click.Path(dir_okay=False, path_type=Path),
                help="JSONL file of results; given again, the command goes on where it stopped.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        ]
    ):
        command = option(command)
    return command


def syntax_option(command: _Command) -> _Command:
    """Whether Python that an answer leaves incorrect is a reason to try again."""
    return click.option(
        "--syntax/--no-syntax",
        default=True,
        help="Where an answer leaves Python incorrect, try a few more, as `complete` does.",
    )(command)


def sampling_options(max_tokens: int) -> Callable[[_Command], _Command]:
    """How answers are made."""
    options = [
        click.option("--max-tokens", default=max_tokens, show_default=True, help="Per answer."),
        click.option("--context-tokens", default=1024, show_default=True, help="With the answer."),
        click.option("--temperature", default=0.0, show_default=True),
        click.option("--top-p", default=1.0, show_default=True),
        click.option("--width", default=16, show_default=True, help="Sequences at a time."),
        click.option(
            "--heal/--no-heal", default=True, help="Choose the tokens of a begun word anew."
        ),
        click.option(
            "--copying/--no-copying",
            default=True,
            help="Let the other lines of the file compete with the network.",
        ),
    ]
    return lambda command: _decorated(command, options)


def sandbox_options(command: _Command) -> _Command:
    """How programs are run."""
    options = [
        click.option("--timeout", default=10.0, show_default=True, help="Seconds per program."),
        click.option("--workers", default=2, show_default=True, help="Programs at a time."),
        click.option(
            "--unsafe-no-isolation",
            "unsafe",
            is_flag=True,
            help="Run generated code with limits but without walls: it can read, write and send "
            "whatever you can. Only where the machine is itself disposable.",
        ),
    ]
    return _decorated(command, options)


def _decorated(command: _Command, options: Sequence[Callable[[_Command], _Command]]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


# --------------------------------------------------------------------------------------------------
# Input


def read_texts(path: Path, suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """Names and texts: of a file, of a folder's files, or of a corpus's held-out split.

    What is no UTF-8 or empty is left out, with a count on stderr.
    """
    if path.is_dir() and list(path.glob("heldout-*.jsonl.xz")):
        from sounding.data.documents import read_documents

        documents = read_documents(path, "heldout")
        return [(f"{document.package}/{document.path}", document.text) for document in documents]
    paths = _files_below(path, suffixes) if path.is_dir() else [path]
    texts, skipped = [], 0
    for file in paths:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            skipped += 1
            continue
        if text.strip():
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            texts.append((name, text))
    if skipped:
        click.echo(f"left out {skipped} files that are not UTF-8", err=True)
    if not texts:
        raise ValueError(f"{path} has no text in files named {', '.join(suffixes)}; see --suffix")
    return texts


def _files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes in order of their names; hidden folders are not entered."""
    found = []
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(above, name) for name in names if not name.startswith("."))
        found += [file for file in visible if file.suffix in suffixes and file.is_file()]
    return sorted(found)


def limited(items: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """All, or `limit` of them drawn at random, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    rng = random.Random(seed)
    drawn = sorted(range(len(items)), key=lambda _: rng.random())[:limit]
    return [items[index] for index in sorted(drawn)]


def fingerprint(folder: Path) -> str:
    """Tells checkpoints apart: its config, and the names, sizes and begins of its shards."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for shard in sorted(folder.glob("*.safetensors")):
        digest.update(f"{shard.name} {shard.stat().st_size}".encode())
        with shard.open("rb") as file:
            # The header, and weights of the first tensors, which training changes.
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def digest_of(texts: Sequence[str]) -> str:
    """Identifies what was evaluated."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------
# Wiring


def filler(
    model: Model,
    kind: "Kind | None",
    *,
    max_tokens: int,
    context_tokens: int,
    temperature: float,
    top_p: float,
    width: int,
    heal: bool,
    copying: bool,
    syntax: bool = False,
) -> "Fill":
    """The model as something that fills gaps; refuses bad settings now and not later."""
    from sounding.completion.completer import Completer
    from sounding.completion.endings import Gap
    from sounding.completion.prompt import Settings
    from sounding.engine.sampling import SamplingParams

    settings = Settings(
        max_tokens=max_tokens, context_tokens=context_tokens, heal=heal, copying=copying
    )
    params = SamplingParams(temperature=temperature, top_p=top_p)
    completer = Completer(model.tokenizer, model.batch(width))

    def fill(gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        how = [dataclasses.replace(params, seed=seed) for seed in seeds]
        return completer.fill([Gap(*gap) for gap in gaps], kind, settings, how, python=syntax)

    return fill


def sandbox(timeout: float, unsafe: bool) -> "Run":
    """What runs programs. Raises NoIsolation at once where they cannot be isolated."""
    import math

    from sounding.sandbox.run import Limits, require_isolation, run_python

    limits = Limits(wall_seconds=timeout, cpu_seconds=max(1, math.ceil(timeout)))
    if not unsafe:
        require_isolation()
    return lambda program: run_python(program, limits, isolate=not unsafe)


# --------------------------------------------------------------------------------------------------
# The loop and the report


def collect(
    results: "Results", title: str, total: int, rows: Iterator[dict[str, Any]]
) -> KeyboardInterrupt | None:
    """Keep rows as they come, with a bar on stderr; Ctrl-C ends it and loses nothing."""
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(title, total=total, completed=len(results.rows))
        try:
            for row in rows:
                results.add(row)
                bar.update(task, advance=1)
        except KeyboardInterrupt as interrupt:
            return interrupt
    return None


class Measured(NamedTuple):
    """What an evaluation found, and under which settings."""

    evaluation: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, "Estimate"]
    done: int
    total: int
    more: Mapping[str, Any]
    """Tables beside the metrics: rows, or counts by name."""
    interrupt: KeyboardInterrupt | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "evaluation": self.evaluation,
            "settings": self.settings,
            "done": self.done,
            "total": self.total,
            "metrics": {name: estimate._asdict() for name, estimate in self.metrics.items()},
            **self.more,
        }


def report(measured: Measured, *, as_json: bool) -> None:
    """Print settings and metrics; what an interruption left out is said, and exits with 130."""
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
