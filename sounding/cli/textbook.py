"""`data textbook`: check exercises, and make documents and problems from them."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import MofNCompleteColumn, Progress

from sounding.cli.evaluation_options import sandbox_options
from sounding.cli.textbook_conversations import conversations, tasks
from sounding.evaluation.measuring import sandbox
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from sounding.tasks.code import Problem
    from sounding.textbook.exercises import Exercise

_PATH = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def textbook() -> None:
    """Check exercises with solutions and tests, and make training data from them.

    PATH is a folder of AREA/TOPIC.toml, or one such file.
    """


textbook.add_command(conversations)
textbook.add_command(tasks)


def _bar() -> AbstractContextManager[Progress]:
    return progress_bar(MofNCompleteColumn())


def _read(path: Path) -> "list[Exercise]":
    from sounding.textbook.reading import read_textbook

    return [exercise for topic in read_textbook(path) for exercise in topic.exercises]


@textbook.command()
@click.argument("path", type=_PATH)
@click.option(
    "--exclude",
    type=_FILE,
    multiple=True,
    help="JSONL file of texts that exercises must not repeat; can be given repeatedly.",
)
@sandbox_options
@_json_option
def check(
    path: Path,
    exclude: tuple[Path, ...],
    timeout: float,
    workers: int,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Run every solution against its tests, and find repeated exercises.

    An exercise is a fault if its program or its text is nearly the same as another exercise or as a
    text of --exclude, or if its function has a name that this file defines.
    """
    from sounding.textbook import checking
    from sounding.textbook.running import all_failures, sandboxed

    exercises = _read(path)
    faults = list(checking.repeated(exercises))
    for file in exclude:
        faults += checking.kept_out(exercises, file)
    run = sandboxed(timeout, isolate=not unsafe)
    with _bar() as bar:
        task = bar.add_task("running solutions", total=len(exercises))
        for exercise, failed in all_failures(exercises, run, workers):
            faults += [f"{exercise.topic}, {exercise.name}, {line}" for line in failed]
            bar.advance(task)
    if faults:
        raise ValueError("\n".join([*faults, f"{path}: {len(faults)} faults"]))
    found = checking.counts(exercises)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(
            f"{found['exercises']} exercises of {found['topics']} topics, {found['held_out']} held "
            f"out: {found['solutions']} solutions pass their tests"
        )


@textbook.command()
@click.argument("path", type=_PATH)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--split", type=click.Choice(["train", "heldout"]), help="Only this split.  [default: both]"
)
@click.option(
    "--variants",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of variants of each exercise.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--overwrite", is_flag=True, help="Replace a corpus of other exercises in OUT.")
@_json_option
def render(
    path: Path,
    out: Path,
    split: str | None,
    variants: int,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write exercises as documents to the folder OUT, a corpus for `data tokenize`.

    Every exercise is rendered --variants times: with a docstring, a comment or no description,
    typed or not, alone or among others, with or without tests. Held-out topics are a split of their
    own.
    """
    from sounding.textbook.write_corpus import write_corpus

    splits = [split] if split else ["train", "heldout"]
    stats = write_corpus(
        out, _read(path), splits=splits, variants=variants, seed=seed, overwrite=overwrite
    )
    if as_json:
        click.echo(json.dumps(stats))
        return
    for name, entry in stats["splits"].items():
        click.echo(f"{name}: {entry['documents']:,} documents, {entry['bytes'] / 1e6:.1f} MB")
    for reason, count in sorted(stats["skipped"].items()):
        click.echo(f"left out {count}: {reason}")


@textbook.command()
@click.argument("path", type=_PATH)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--per-exercise",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of infilling problems per exercise.",
)
@sandbox_options
@_json_option
def problems(
    path: Path,
    out: Path,
    per_exercise: int,
    timeout: float,
    workers: int,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Write problems from held-out topics to the folder OUT.

    functions.jsonl is for `eval functions`: signatures with descriptions and examples.
    infilling.jsonl is for `eval infilling`: single lines of solutions to fill in. A solution must
    pass its tests, and fail them if `pass` replaces the line.
    """
    from sounding.files import write_file
    from sounding.tasks import gaps
    from sounding.tasks.code import unfairness
    from sounding.textbook.problems import function_problem, infilling_problems

    exercises = [exercise for exercise in _read(path) if exercise.held_out]
    if not exercises:
        raise ValueError(f"{path} has no topic with held_out = true, which problems are made from")
    judge = sandbox(timeout, unsafe)
    reasons: Counter[str] = Counter()
    functions: list[Problem] = []
    lines: list[Problem] = []

    def attempt(exercise: "Exercise") -> "tuple[Problem | None, list[Problem], list[str]]":
        problem = function_problem(exercise)
        why = unfairness(problem, judge) if problem else "no function to write"
        fair, reason = gaps.fair(infilling_problems(exercise), judge, per_exercise)
        said = [f"functions: {why}" if why else "", f"infilling: {reason}" if reason else ""]
        return None if why else problem, fair, [line for line in said if line]

    with _bar() as bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("running solutions", total=len(exercises))
        for problem, fair, said in pool.map(attempt, exercises):
            functions += [problem] if problem else []
            lines += fair
            reasons.update(said)
            bar.advance(task)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("functions.jsonl", functions), ("infilling.jsonl", lines)):
        write_file(out / name, _jsonl(rows))
    answer = {
        "exercises": len(exercises),
        "functions": len(functions),
        "infilling": len(lines),
        "left_out": dict(reasons),
    }
    if as_json:
        click.echo(json.dumps(answer))
        return
    click.echo(f"wrote {len(functions)} functions and {len(lines)} lines to fill in to {out}")
    for reason, count in reasons.most_common():
        click.echo(f"left out {count}: {reason}")


def _jsonl(rows: "Sequence[Problem]") -> bytes:
    made: list[dict[str, Any]] = [asdict(row) for row in rows]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode()
