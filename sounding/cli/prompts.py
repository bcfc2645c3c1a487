"""`encode`, `parse` and `tokenizer`: the prompt library for other languages, proxies and shells.

Rows are read and written as JSON lines, and each result is flushed at once. An invalid row gives
{"error"}, and the next row is read.
"""

import difflib
import inspect as signatures
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

ROWS = click.argument("rows", type=click.File("rb"), default="-")


@click.command()
@ROWS
def encode(rows: Iterable[bytes]) -> None:
    """Render conversations as prompts, JSONL to JSONL.

    Each line of ROWS (a file, or standard input) is {"messages": [...], "kwargs": {...}}; the
    result is {"prompt"} or {"error"}. The kwargs are thinking_mode ("chat" or "thinking"),
    context, drop_thinking, add_default_bos_token, reasoning_effort, and effort_scheme ("april"
    or "0731"). A row may also have "tools", which are added to its first message.
    """
    _answer(rows, _encode_row)


@click.command()
@ROWS
@click.option("--tolerant", is_flag=True, help="Repair malformed text and report each repair.")
def parse(rows: Iterable[bytes], tolerant: bool) -> None:
    """Parse completions into messages, JSONL to JSONL.

    Each line of ROWS (a file, or standard input) is {"text", "thinking_mode"}; the result is
    {"message"} or {"error"}. With --tolerant a row may have the "tools" of the request, and the
    result also has "repairs" and "finish_reason".
    """
    _answer(rows, lambda row: _parse_row(row, tolerant))


@click.group()
def tokenizer() -> None:
    """Train or describe a tokenizer."""


@tokenizer.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--vocab-size", required=True, type=int, help="Number of ids, including named tokens."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, or an existing folder to write tokenizer.json to.",
)
def train(paths: tuple[Path, ...], vocab_size: int, out: Path) -> None:
    """Train a byte-level BPE tokenizer on text files and folders."""
    from sounding.text.tokenizer import train as train_tokenizer

    skipped: list[Path] = []
    texts = (text for _, text in _texts(paths, skipped))
    made = train_tokenizer(texts, vocab_size, progress=sys.stderr.isatty())
    target = out / "tokenizer.json" if out.is_dir() else out
    made.save(target)
    _report_skipped(skipped)
    click.echo(f"{target}: {made.num_tokens} tokens", err=True)


@tokenizer.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect(file: Path, paths: tuple[Path, ...], as_json: bool) -> None:
    """Describe a tokenizer, and measure the bytes per token of text files and folders.

    FILE is a tokenizer.json or a folder with one. Counts are by language and file type; the
    language of prose is detected by its script.
    """
    from sounding.text.coverage import measure
    from sounding.text.tokenizer import Tokenizer

    loaded = Tokenizer.from_file(file)
    skipped: list[Path] = []
    measured = measure(loaded, _texts(paths, skipped))
    _report_skipped(skipped)
    answer: dict[str, Any] = {
        "tokens": loaded.num_tokens,
        "named_tokens": len(loaded.named),
        "longest_token_bytes": max(map(len, loaded.token_bytes)),
        "text": [row.as_dict() for row in measured],
    }
    if as_json:
        click.echo(json.dumps(answer))
        return
    for name in ("tokens", "named_tokens", "longest_token_bytes"):
        click.echo(f"{name.replace('_', ' '):20}{answer[name]:>10}")
    if measured:
        _print_table(answer["text"])


def _print_table(rows: list[dict[str, Any]]) -> None:
    click.echo(
        f"\n{'language':<18}{'type':<10}{'files':>7}{'bytes':>12}{'tokens':>11}{'bytes/token':>13}"
    )
    for row in rows:
        click.echo(
            f"{row['language']:<18}{row['type']:<10}{row['files']:>7}{row['bytes']:>12}"
            f"{row['tokens']:>11}{row['bytes_per_token']:>13.2f}"
        )


def _texts(paths: tuple[Path, ...], skipped: list[Path]) -> Iterator[tuple[Path, str]]:
    """Every file that is UTF-8 text, in a fixed order; the others are added to `skipped`."""
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            # Hidden files and folders: version control and caches.
            if any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            try:
                yield file, file.read_bytes().decode()
            except UnicodeDecodeError:
                skipped.append(file)


def _report_skipped(skipped: list[Path]) -> None:
    if skipped:
        click.echo(f"skipped {len(skipped)} files that are not UTF-8 text", err=True)


def _answer(rows: Iterable[bytes], respond: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Process each row separately; blank lines are skipped."""
    out = sys.stdout.buffer
    for line in rows:
        if not line.strip():
            continue
        try:
            answer = respond(_row(line))
        # Whatever is wrong with one row, the stream must go on to the next.
        except Exception as error:
            text = (
                str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            )
            answer = {"error": text}
        out.write(_line(answer))
        out.flush()


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"the row is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"the row is {row!r:.40}; it must be a JSON object")
    return row


def _line(answer: dict[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
        return json.dumps(answer).encode() + b"\n"


def _field(row: dict[str, Any], name: str, kind: type, what: str) -> Any:
    if name not in row:
        raise ValueError(f"the row has no {name!r}; give {what}")
    if not isinstance(row[name], kind):
        raise ValueError(f"{name} is {row[name]!r:.60}; give {what}")
    return row[name]


def _encode_row(row: dict[str, Any]) -> dict[str, Any]:
    from sounding.text import encode as encode_messages

    messages = _field(row, "messages", list, "a list of messages")
    kwargs = _field({"kwargs": {}, **row}, "kwargs", dict, "an object of encoder arguments")
    names = [*signatures.signature(encode_messages).parameters]
    names = [name for name in names if name not in ("messages", "replay")]
    for name in kwargs:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, cutoff=0.0)[0]
            raise ValueError(f"unknown argument {name!r}; did you mean {near!r}?")
    if "thinking_mode" not in kwargs:
        raise ValueError("kwargs has no thinking_mode; give 'chat' or 'thinking'")
    for name in ("drop_thinking", "add_default_bos_token"):
        if not isinstance(kwargs.get(name, True), bool):
            raise ValueError(f"{name} is {kwargs[name]!r:.60}; give true or false")
    if row.get("tools"):
        if not messages or not isinstance(messages[0], dict):
            raise ValueError("tools are added to the first message; give a system message")
        messages = [{**messages[0], "tools": row["tools"]}, *messages[1:]]
    return {"prompt": encode_messages(messages, **kwargs)}


def _parse_row(row: dict[str, Any], tolerant: bool) -> dict[str, Any]:
    from sounding.text import parse as parse_completion

    text = _field(row, "text", str, "the completion as a string")
    mode = _field(row, "thinking_mode", str, "'chat' or 'thinking'")
    tools = _field({"tools": [], **row}, "tools", list, "a list of tools")
    completion = parse_completion(text, mode, tolerant=tolerant, tools=tools)
    if not tolerant:
        return {"message": completion.message()}
    return {
        "message": completion.message(),
        "repairs": [
            {"kind": repair.kind, "detail": repair.detail} for repair in completion.repairs
        ],
        "finish_reason": completion.finish_reason,
    }
