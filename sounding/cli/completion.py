"""`write` and `complete`: continue a text, and fill in code at a cursor."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from sounding.cli.sizes import memory_option

if TYPE_CHECKING:
    from sounding.completion.completer import FilledGap
    from sounding.completion.gap import Gap, Kind
    from sounding.loading import LoadedModel

_PYTHON = (".py", ".pyi")
_ROUNDS = 4  # repetitions of the same lines after which generation stops


def open_model(
    name: str | Path | None, memory_bytes: int | None = None, drafter: str | None = None
) -> "LoadedModel":
    """Load the model of a command, within a memory budget if one is given, and with a drafter; its
    engines are closed when the command ends."""
    from sounding import loading

    model = loading.open_model(name, memory_bytes, drafter)
    context = click.get_current_context(silent=True)
    if context is not None:  # None in a thread of a command
        context.call_on_close(model.close)
    return model


model_option = click.option(
    "--model", help="Folder of a checkpoint with a tokenizer.json.  [default: the shipped model]"
)
drafter_option = click.option(
    "--drafter",
    metavar="DIR",
    help="Folder of a DSpark drafter for the model, as `sounding drafter` writes it; none: without."
    "  [default: the folder `drafter` in the model's, if there is one]",
)
_context_option = click.option(
    "--context-tokens",
    default=1024,
    show_default=True,
    help="Maximum number of tokens of prompt and answer.",
)


@click.command()
@click.argument("text")
@model_option
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@_context_option
@click.option(
    "--until",
    type=click.Choice(["line", "block", "end"]),
    help="Stop at the end of the line, of the block, or of the text.  [default: block if TEXT ends "
    "with a colon, else end]",
)
@click.option(
    "--temperature", default=0.0, show_default=True, help="0 chooses the most likely token."
)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
@drafter_option
def write(
    text: str,
    model: str | None,
    max_tokens: int,
    context_tokens: int,
    until: str | None,
    temperature: float,
    top_p: float,
    seed: int,
    drafter: str | None,
) -> None:
    """Continue code and stream the result.

    TEXT is the code to continue; - reads it from stdin. The continuation is streamed to stdout.

    \b
    Examples:
      sounding write 'def parse_duration(text):'
      sounding write --until end - < begun.py
    """
    from sounding.completion.completer import Completer
    from sounding.completion.prompt import CompletionSettings
    from sounding.engine.sampling import SamplingParams

    if text == "-":
        text = sys.stdin.read()
    settings = CompletionSettings(max_tokens=max_tokens, context_tokens=context_tokens)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    opens = text.rstrip().endswith(":")
    stop: Kind | None = "block" if until == "block" or (until is None and opens) else None
    if until == "line":
        stop = "line"
    opened = open_model(model, drafter=drafter)
    completer = Completer(opened.tokenizer, opened.fim_format, opened.batch(1))
    written = ""
    for piece in completer.write(text, settings, params, until=stop):
        click.echo(piece, nl=False)
        written += piece
        if _repeats(written):
            click.echo("stopped: the model repeats itself", err=True)
            break
    click.echo()


def _repeats(text: str) -> bool:
    """Whether the text ends with the same lines `_ROUNDS` times."""
    lines = text.split("\n")[:-1]
    for size in range(1, len(lines) // _ROUNDS + 1):
        last = lines[-size:]
        if any(last) and lines[-size * _ROUNDS :] == last * _ROUNDS:
            return True
    return False


@click.command()
@click.argument("where", metavar="FILE:LINE[:COL]")
@model_option
@memory_option
@click.option(
    "--context",
    "others",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another file to use as context; can be given repeatedly.",
)
@click.option(
    "--line/--block",
    "one_line",
    default=None,
    help="What to fill in.  [default: a block on an empty line or after a colon, else a line]",
)
@click.option(
    "-n",
    "alternatives",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Number of completions.",
)
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@_context_option
@click.option(
    "--temperature", default=0.0, show_default=True, help="0 chooses the most likely token."
)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same answers.")
@click.option(
    "--min-confidence",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Show only completions with at least this confidence.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@drafter_option
def complete(
    where: str,
    model: str | None,
    memory_bytes: int | None,
    others: tuple[Path, ...],
    one_line: bool | None,
    alternatives: int,
    max_tokens: int,
    context_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    min_confidence: float,
    as_json: bool,
    drafter: str | None,
) -> None:
    """Fill in code at the cursor in a file.

    LINE and COL count from 1. The cursor is before character COL, or at the end of the line
    without COL. The completion goes to stdout; the file is not changed.

    With -n the first completion is the most likely one and the others are sampled. Duplicates are
    removed, and in a Python file also completions with which it would not parse, so there may be
    fewer than -n.

    \b
    Examples:
      sounding complete server.py:120
      sounding complete server.py:120:14 --context client.py -n 3

    \b
    Keys of the JSON:
      file, line, column, kind    the cursor; "line" or "block"
      alternatives                [{text, tokens, valid, confidence}]; valid: whether the file
                                  then parses as Python; confidence: estimated probability that
                                  the completion is exactly right
    """
    from sounding.completion.completer import Completer
    from sounding.completion.prompt import CompletionSettings
    from sounding.engine.sampling import SamplingParams

    place = _read_place(where)
    kind: Kind = place.gap.natural_kind()
    if one_line is not None:
        kind = "line" if one_line else "block"
    settings = CompletionSettings(max_tokens=max_tokens, context_tokens=context_tokens)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    files = [(str(path), _read_text(path)) for path in others]
    opened = open_model(model, memory_bytes, drafter)
    completer = Completer(opened.tokenizer, opened.fim_format, opened.batch(16))
    python = place.path.suffix in _PYTHON
    plan = completer.plan(place.gap, kind, settings, files=files, python=python)
    found = completer.complete(plan, params, alternatives=alternatives)
    if python:
        found = _parsing(found, place.gap)
    found = [done for done in found if done.confidence >= min_confidence and done.text.strip()]
    if as_json:
        answer = {
            "file": str(place.path),
            "line": place.line,
            "column": place.column,
            "kind": kind,
            "alternatives": [
                {
                    "text": done.text,
                    "tokens": done.tokens,
                    "valid": done.valid,
                    "confidence": round(done.confidence, 4),
                }
                for done in found
            ],
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(found, alternatives, place)


class _Place(NamedTuple):
    path: Path
    line: int
    column: int
    gap: "Gap"


def _read_place(where: str) -> _Place:
    from sounding.completion.gap import Gap

    match = re.fullmatch(r"(?s)(.+?):(\d+)(?::(\d+))?", where)
    if match is None:
        raise ValueError(f"{where!r} must be FILE:LINE or FILE:LINE:COL, such as server.py:120")
    path, line = Path(match[1]), int(match[2])
    text = _read_text(path)
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise ValueError(f"{path} has no line {line}; its lines are 1 to {len(lines)}")
    longest = len(lines[line - 1]) + 1
    column = longest if match[3] is None else int(match[3])
    if not 1 <= column <= longest:
        raise ValueError(
            f"line {line} of {path} has no column {column}; its columns are 1 to {longest}"
        )
    at = sum(len(earlier) + 1 for earlier in lines[: line - 1]) + column - 1
    return _Place(path, line, column, Gap(text[:at], text[at:]))


def _read_text(path: Path) -> str:
    """Read a file with \\n line endings, the only ones in training data."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _parsing(found: "list[FilledGap]", gap: "Gap") -> "list[FilledGap]":
    """Completions with which the file parses; those that fit if it cannot parse anyway."""
    from sounding.completion.python_syntax import fits, may_parse, parses

    fillers = ("", "_", " _", "pass", ":", "():\n" + " " * 99 + "pass")
    could_parse = any(parses(gap.prefix + filler + gap.suffix) for filler in fillers)
    if could_parse or any(done.valid for done in found):
        return [done for done in found if done.valid]
    return [done for done in found if fits(done.text, gap) or not may_parse(gap.prefix)]


def _show(found: "list[FilledGap]", wanted: int, place: _Place) -> None:
    """Print the text on stdout; in a terminal also its lines and a hint on stderr."""
    for number, done in enumerate(found, 1):
        if wanted > 1:
            note = ", parses" if done.valid else ""
            click.echo(f"# {number} of {len(found)}{note}")
        click.echo(done.text)
    if not found:
        click.echo("the model suggests no completion here", err=True)
    elif wanted == 1 and sys.stdout.isatty():
        _show_in_place(found[0].text, place)


def _show_in_place(text: str, place: _Place) -> None:
    before = place.gap.prefix.rpartition("\n")[2]
    rest = place.gap.suffix.partition("\n")[0]
    lines = (before + click.style(text, bold=True) + rest).split("\n")
    for number, line in enumerate(lines, place.line):
        click.echo(f"{number:5} | {line}", err=True)
    click.echo(
        "next: use it in an editor (docs/editors.md), or in a browser with `sounding serve`",
        err=True,
    )
