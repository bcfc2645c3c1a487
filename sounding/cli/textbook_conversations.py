"""`data textbook conversations` and `data textbook tasks`: make them from exercises."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from sounding.cli.completion import model_option
from sounding.cli.evaluation_options import sandbox_options
from sounding.evaluation.measuring import limited, sandbox
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from sounding.text.tokenizer import Tokenizer
    from sounding.textbook.exercises import Exercise
    from sounding.textbook.make_conversations import Made

Row = dict[str, Any]
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _options(split: str) -> Callable[[_Command], _Command]:
    """The options that both commands share."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(
            [
                click.argument("path", type=click.Path(exists=True, path_type=Path)),
                click.argument("out", type=click.Path(dir_okay=False, path_type=Path)),
                click.option(
                    "--split",
                    type=click.Choice(["train", "heldout"]),
                    default=split,
                    show_default=True,
                    help="Topics for training, or held-out topics.",
                ),
                click.option(
                    "--kind",
                    "kinds",
                    multiple=True,
                    help="Only this kind; can be given repeatedly.  [default: all]",
                ),
                click.option(
                    "--each",
                    default=1,
                    show_default=True,
                    help="Maximum number of each kind per exercise.",
                ),
                click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
                click.option(
                    "--limit",
                    type=click.IntRange(min=1),
                    help="Number of exercises, drawn by --seed.",
                ),
                click.option(
                    "--most-tokens",
                    default=2048,
                    show_default=True,
                    help="Leave out longer conversations.",
                ),
                model_option,
                sandbox_options,
                click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
            ]
        ):
            command = option(command)
        return command

    return decorate


@click.command()
@_options("train")
@click.option(
    "--tasks",
    "tasks_out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the tasks that the conversations solve to this file.",
)
def conversations(
    out: Path, tasks_out: Path | None, most_tokens: int, as_json: bool, **how: Any
) -> None:
    """Write training conversations to OUT: JSON lines of `messages`, `tools`, `thinking`.

    Kinds are write, fill, trace, repair, tools, test, explain and talk. Every answer to a task
    scores 1 with the grader of `eval tasks`, and tool results come from running the tools. PATH is
    a folder of AREA/TOPIC.toml, or one such file.
    """
    from sounding.textbook.make_conversations import ALL_KINDS

    made, tokenizer = _made(ALL_KINDS, **how)
    if tasks_out is not None:
        _keep(tasks_out, _tasks(made), tokenizer, most_tokens)
    rows = [(row, row) for one in made for row in one.rows]
    _report(_keep(out, rows, tokenizer, most_tokens), out, as_json=as_json)


@click.command()
@_options("heldout")
def tasks(out: Path, most_tokens: int, as_json: bool, **how: Any) -> None:
    """Write tasks for `eval tasks` and `posttrain grpo` to the file OUT.

    Kinds are write, fill, trace, repair, tools and test. Each row is a conversation to answer; its
    `check` defines how answers are graded. PATH is a folder of AREA/TOPIC.toml, or one such file.
    """
    from sounding.tasks.chat_task import KINDS

    made, tokenizer = _made(KINDS, **how)
    _report(_keep(out, _tasks(made), tokenizer, most_tokens), out, as_json=as_json)


def _tasks(made: "Sequence[Made]") -> list[tuple[Row, Row]]:
    """Each task as a row, with the conversation that solves it."""
    return [
        (problem.row(), row)
        for one in made
        for problem, row in zip(one.problems, one.rows, strict=False)
    ]


def _made(
    known: Sequence[str],
    *,
    path: Path,
    split: str,
    kinds: tuple[str, ...],
    each: int,
    seed: int,
    limit: int | None,
    model: str | None,
    timeout: float,
    workers: int,
    unsafe: bool,
) -> "tuple[list[Made], Tokenizer]":
    """The conversations of the exercises, and the tokenizer that counts their tokens."""
    from sounding.loading import find_model, load_tokenizer
    from sounding.textbook.make_conversations import Wanted, conversations
    from sounding.textbook.running import sandboxed

    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(f"--kind {unknown[0]} must be one of {', '.join(known)}")
    wanted = Wanted(kinds=kinds or tuple(known), each=each, seed=seed)
    tokenizer = load_tokenizer(find_model(model))
    exercises = limited(_exercises(path, split), limit, seed)
    judge, run = sandbox(timeout, unsafe), sandboxed(timeout, isolate=not unsafe)
    found = []
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("making conversations", total=len(exercises))
        for made in conversations(exercises, wanted, judge, run, workers):
            found.append(made)
            bar.advance(task)
    return found, tokenizer


def _exercises(path: Path, split: str) -> "list[Exercise]":
    from sounding.textbook.reading import read_textbook

    held_out = split == "heldout"
    found = [e for topic in read_textbook(path) for e in topic.exercises if e.held_out == held_out]
    if not found:
        raise ValueError(
            f"{path} has no exercise in the split {split}; topics set it with held_out"
        )
    return found


class _Kept(NamedTuple):
    """Lengths in tokens of the rows written, by kind, and the number too long of each kind."""

    lengths: dict[str, list[int]]
    too_long: Counter[str]
    most_tokens: int


def _keep(
    out: Path, rows: Sequence[tuple[Row, Row]], tokenizer: "Tokenizer", most_tokens: int
) -> _Kept:
    """Write the first row of each pair whose second, the conversation, is not too long."""
    from sounding.files import write_file

    kept, lengths, too_long = [], dict[str, list[int]](), Counter[str]()
    for row, conversation in rows:
        length = _num_tokens(conversation, tokenizer)
        if length > most_tokens:
            too_long[row["kind"]] += 1
            continue
        kept.append(json.dumps(row, ensure_ascii=False) + "\n")
        name = f"{row['kind']}, thinking" if row["thinking"] else row["kind"]
        lengths.setdefault(name, []).append(length)
    if not kept:
        raise ValueError(
            f"no conversation has at most {most_tokens} tokens; raise --most-tokens, or choose "
            "other kinds"
        )
    write_file(out, "".join(kept).encode())
    return _Kept(lengths, too_long, most_tokens)


def _num_tokens(row: Row, tokenizer: "Tokenizer") -> int:
    from sounding.text import encode

    messages = list(row["messages"])
    if row.get("tools"):
        messages.insert(0, {"role": "system", "content": "", "tools": row["tools"]})
    text = encode(messages, "thinking" if row["thinking"] else "chat")
    return len(tokenizer.encode(text))


def _report(kept: _Kept, out: Path, *, as_json: bool) -> None:
    total = sum(map(len, kept.lengths.values()))
    if as_json:
        kinds = {name: {"rows": len(of), "tokens": sum(of)} for name, of in kept.lengths.items()}
        click.echo(json.dumps({"rows": total, "kinds": kinds, "too_long": dict(kept.too_long)}))
        return
    table = Table("", "rows", "tokens", "median", "longest", box=box.SIMPLE)
    for name, unsorted in sorted(kept.lengths.items()):
        of = sorted(unsorted)
        table.add_row(name, str(len(of)), f"{sum(of):,}", str(of[len(of) // 2]), str(of[-1]))
    Console(width=100).print(table)
    click.echo(f"wrote {total} conversations to {out}")
    for kind, count in kept.too_long.most_common():
        click.echo(f"left out {count} {kind}: longer than {kept.most_tokens} tokens")
