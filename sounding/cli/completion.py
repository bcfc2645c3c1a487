"""`write` and `complete`: a model of code at work, on text and at a place in a file."""

import atexit
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sounding.cli.generation import load_network, open_tokenizer
from sounding.cli.models import model_folder

if TYPE_CHECKING:
    from sounding.engine.batch import Batch
    from sounding.engine.complete import Completion
    from sounding.engine.endings import Gap, Kind
    from sounding.engine.engine import Engine
    from sounding.model.transformer import Transformer
    from sounding.text.tokenizer import Tokenizer

_PYTHON = (".py", ".pyi")


class Model(NamedTuple):
    """A network with the tokenizer that lies beside its weights."""

    folder: Path
    network: "Transformer"
    tokenizer: "Tokenizer"
    files: str = ""
    """Facts of the files of its weights, from before they were read."""

    def engine(
        self, prefix_store: Path | None = None, store_bytes: int | None = None, **settings: Any
    ) -> "Engine":
        """An engine that runs it until the command ends; `settings` are `EngineSettings`."""
        return start_engine(
            *(self.network, self.tokenizer, prefix_store, store_bytes),
            files=self.files,
            **settings,
        )

    def batch(self, width: int) -> "Batch":
        """What continues prompts with it, `width` at a time."""
        from sounding.engine.batch import Batch

        return Batch(self.engine(width=width))


def start_engine(
    network: "Transformer",
    tokenizer: "Tokenizer | None",
    prefix_store: Path | None = None,
    store_bytes: int | None = None,
    *,
    files: str = "",
    **settings: Any,
) -> "Engine":
    """An engine that is closed when the command ends; the store takes its own limit by default."""
    from sounding.engine.engine import Engine
    from sounding.engine.exact import splits_are_exact
    from sounding.engine.prefix_store import PrefixStore, state_identity
    from sounding.engine.settings import EngineSettings
    from sounding.engine.weights_digest import weights_digest

    how = EngineSettings(exact_splits=splits_are_exact(network), **settings)
    store = None
    if prefix_store is not None:
        limit = {} if store_bytes is None else {"limit_bytes": store_bytes}
        weights = weights_digest(network, files, prefix_store)
        store = PrefixStore(prefix_store, state_identity(network, how, weights), **limit)
    engine = Engine(network, tokenizer, how, store=store)
    context = click.get_current_context(silent=True)
    # A thread of a command has no context.
    at_end = atexit.register if context is None else context.call_on_close
    at_end(engine.close)
    return engine


def open_model(folder: str | None) -> Model:
    """The model in a folder, or the shipped one. Raises ValueError saying what is missing."""
    from sounding.engine.weights_digest import file_facts

    path = Path(model_folder(folder))
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        raise ValueError(f"{path} has no tokenizer.json, without which no text can be read")
    files = file_facts(path.glob("*.safetensors"))
    network = load_network(str(path))
    tokenizer = open_tokenizer(path, network.config)
    return Model(path, network, tokenizer, files)


model_option = click.option(
    "--model", help="Folder of a checkpoint with a tokenizer.json.  [default: the shipped model]"
)
_context_option = click.option(
    "--context-tokens",
    default=1024,
    show_default=True,
    help="What the model sees, its answer included.",
)


@click.command()
@click.argument("text")
@model_option
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@_context_option
@click.option(
    "--until",
    type=click.Choice(["line", "block", "end"]),
    help="Where to stop: end of the line, of the block, of the text.  [default: of the block where "
    "TEXT ends with a colon, else of the text]",
)
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same text.")
def write(
    text: str,
    model: str | None,
    max_tokens: int,
    context_tokens: int,
    until: str | None,
    temperature: float,
    top_p: float,
    seed: int,
) -> None:
    """Continue code, streaming.

    TEXT is the beginning, or - to read it from stdin. What follows it goes to stdout as it is
    written.

    \b
    Examples:
      sounding write 'def parse_duration(text):'
      sounding write --until end - < begun.py
    """
    from sounding.engine.complete import Completer
    from sounding.engine.gap_prompt import Settings
    from sounding.engine.sampling import SamplingParams

    if text == "-":
        text = sys.stdin.read()
    settings = Settings(max_tokens=max_tokens, context_tokens=context_tokens)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    opens = text.rstrip().endswith(":")
    stop: Kind | None = "block" if until == "block" or (until is None and opens) else None
    if until == "line":
        stop = "line"
    opened = open_model(model)
    completer = Completer(opened.tokenizer, opened.batch(1))
    for piece in completer.write(text, settings, params, until=stop):
        click.echo(piece, nl=False)
    click.echo()


@click.command()
@click.argument("where", metavar="FILE:LINE[:COL]")
@model_option
@click.option(
    "--context",
    "others",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another file to draw on; can be given repeatedly.",
)
@click.option(
    "--line/--block",
    "one_line",
    default=None,
    help="What to fill in.  [default: a block on an empty line or after a colon, else a line]",
)
@click.option("-n", "alternatives", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@_context_option
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def complete(
    where: str,
    model: str | None,
    others: tuple[Path, ...],
    one_line: bool | None,
    alternatives: int,
    max_tokens: int,
    context_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Fill in code at a place in a file.

    LINE and COL count from 1; the cursor is before character COL, and without COL at the end of
    the line. The text around it decides what is written: stdout gets what is to be inserted there,
    and the file is left alone.

    With -n the first answer is the likeliest and the others are sampled; in Python files, answers
    that keep the file correct come first. There may be fewer, because equal ones are shown once.

    \b
    Examples:
      sounding complete server.py:120
      sounding complete server.py:120:14 --context client.py -n 3

    \b
    Keys of the JSON:
      file, line, column, kind    the place; "line" or "block"
      alternatives                [{text, tokens, valid}]; valid: the file with it is correct Python
    """
    from sounding.engine.complete import Completer
    from sounding.engine.gap_prompt import Settings
    from sounding.engine.sampling import SamplingParams

    place = _read_place(where)
    kind: Kind = place.gap.natural_kind()
    if one_line is not None:
        kind = "line" if one_line else "block"
    settings = Settings(max_tokens=max_tokens, context_tokens=context_tokens)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    files = [(str(path), _read_text(path)) for path in others]
    opened = open_model(model)
    found = Completer(opened.tokenizer, opened.batch(16)).complete(
        place.gap,
        kind,
        settings,
        params,
        alternatives=alternatives,
        files=files,
        python=place.path.suffix in _PYTHON,
    )
    if as_json:
        answer = {
            "file": str(place.path),
            "line": place.line,
            "column": place.column,
            "kind": kind,
            "alternatives": [done._asdict() for done in found],
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(found, alternatives)


class _Place(NamedTuple):
    path: Path
    line: int
    column: int
    gap: "Gap"


def _read_place(where: str) -> _Place:
    from sounding.engine.endings import Gap

    match = re.fullmatch(r"(?s)(.+?):(\d+)(?::(\d+))?", where)
    if match is None:
        raise ValueError(f"{where!r} must be FILE:LINE or FILE:LINE:COL, such as server.py:120")
    path, line = Path(match[1]), int(match[2])
    text = _read_text(path)
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise ValueError(f"line {line} is not in {path}, whose lines are 1 to {len(lines)}")
    longest = len(lines[line - 1]) + 1
    column = longest if match[3] is None else int(match[3])
    if not 1 <= column <= longest:
        raise ValueError(f"column {column} is not in line {line} of {path}: it has 1 to {longest}")
    at = sum(len(earlier) + 1 for earlier in lines[: line - 1]) + column - 1
    return _Place(path, line, column, Gap(text[:at], text[at:]))


def _read_text(path: Path) -> str:
    """A file's text with plain newlines, which are all the model has seen."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _show(found: "list[Completion]", wanted: int) -> None:
    for number, done in enumerate(found, 1):
        if wanted > 1:
            note = ", correct" if done.valid else ""
            click.echo(f"# {number} of {len(found)}{note}")
        click.echo(done.text)
    if not any(done.text.strip() for done in found):
        click.echo("the model has nothing to insert here", err=True)
