"""`data textbook conversations` and `data textbook tasks`: exercises asked in a conversation."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _options(split: str) -> Callable[[_Command], _Command]:
    """What both commands take."""

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
                    help="Topics that are trained on, or those that are held out.",
                ),
                click.option("--kind", "kinds", multiple=True, help="Only these.  [default: all]"),
                click.option("--each", default=1, show_default=True, help="Of a kind, at most."),
                click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
                click.option(
                    "--limit", type=click.IntRange(min=1), help="Only so many exercises, by seed."
                ),
                click.option(
                    "--most-tokens",
                    default=2048,
                    show_default=True,
                    help="Longer conversations are left out.",
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
def conversations(out: Path, most_tokens: int, as_json: bool, **how: Any) -> None:
    """Write conversations to train on to the file OUT, rows of `messages`, `tools`, `thinking`.

    Kinds are write, fill, trace, repair, tools, test, explain and talk. Every answer to a task has
    scored 1 by the grader that `eval tasks` uses, and results of tools are what the tools said.
    PATH is a folder of AREA/TOPIC.toml, or one such file.
    """
    from sounding.textbook import conversations as made

    rows, lengths = _made(made.conversations, made.ALL_KINDS, lambda row: row, most_tokens, **how)
    _write(out, rows, lengths, most_tokens, as_json=as_json)


@click.command()
@_options("heldout")
def tasks(out: Path, most_tokens: int, as_json: bool, **how: Any) -> None:
    """Write tasks to the file OUT, for `eval tasks` and `posttrain grpo`.

    Kinds are write, fill, trace, repair, tools and test. Each row is a conversation to be answered,
    and says by `check` how answers are graded. PATH is a folder of AREA/TOPIC.toml, or one file.
    """
    from sounding.tasks.chat import KINDS
    from sounding.textbook import conversations as made

    rows, lengths = _made(made.problems, KINDS, lambda one: one.row(), most_tokens, **how)
    _write(out, rows, lengths, most_tokens, as_json=as_json)


def _made(
    make: Callable[..., Any],
    known: Sequence[str],
    as_row: Callable[[Any], dict[str, Any]],
    most_tokens: int,
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
) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of exercises with their lengths in tokens."""
    from sounding.loading import find_model, load_tokenizer
    from sounding.textbook.conversations import Wanted
    from sounding.textbook.running import sandboxed

    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(f"--kind {unknown[0]} must be one of {', '.join(known)}")
    wanted = Wanted(kinds=kinds or tuple(known), each=each, seed=seed)
    tokenizer = load_tokenizer(find_model(model))
    exercises = limited(_exercises(path, split), limit, seed)
    judge, run = sandbox(timeout, unsafe), sandboxed(timeout, isolate=not unsafe)
    rows, lengths = [], []
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("making conversations", total=len(exercises))
        for found in make(exercises, wanted, judge, run, workers):
            for row in map(as_row, found):
                rows.append(row)
                lengths.append(_num_tokens(row, tokenizer))
            bar.advance(task)
    if not any(length <= most_tokens for length in lengths):
        raise ValueError(f"{path} gives no conversation of at most {most_tokens} tokens")
    return rows, lengths


def _exercises(path: Path, split: str) -> "list[Exercise]":
    from sounding.textbook.reading import read_textbook

    held_out = split == "heldout"
    found = [e for topic in read_textbook(path) for e in topic.exercises if e.held_out == held_out]
    if not found:
        raise ValueError(f"{path} has no exercise for the split {split}; see held_out of topics")
    return found


def _num_tokens(row: dict[str, Any], tokenizer: "Tokenizer") -> int:
    from sounding.text import encode

    messages = list(row["messages"])
    if row.get("tools"):
        messages.insert(0, {"role": "system", "content": "", "tools": row["tools"]})
    text = encode(messages, "thinking" if row["thinking"] else "chat")
    return len(tokenizer.encode(text))


def _write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    most_tokens: int,
    *,
    as_json: bool,
) -> None:
    from sounding.files import write_file

    kept = [(row, n) for row, n in zip(rows, lengths, strict=True) if n <= most_tokens]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row, _ in kept]
    write_file(out, "".join(lines).encode())
    sizes: dict[str, list[int]] = {}
    for row, length in kept:
        name = f"{row['kind']}, thinking" if row["thinking"] else row["kind"]
        sizes.setdefault(name, []).append(length)
    left_out = Counter(row["kind"] for row, n in zip(rows, lengths, strict=True) if n > most_tokens)
    if as_json:
        table = {name: {"rows": len(of), "tokens": sum(of)} for name, of in sizes.items()}
        click.echo(json.dumps({"rows": len(kept), "kinds": table, "too_long": dict(left_out)}))
        return
    table_of = Table("", "rows", "tokens", "in the middle", "longest", box=box.SIMPLE)
    for name, of in sorted(sizes.items()):
        of = sorted(of)
        table_of.add_row(name, str(len(of)), f"{sum(of):,}", str(of[len(of) // 2]), str(of[-1]))
    Console(width=100).print(table_of)
    click.echo(f"wrote {len(kept)} conversations to {out}")
    for kind, count in left_out.most_common():
        click.echo(f"left out {count} of {kind}: longer than {most_tokens} tokens")
