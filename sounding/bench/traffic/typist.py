"""A typist: types part of a file and requests a completion at every key."""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sounding.bench.traffic.http import Client, said

if TYPE_CHECKING:
    from lsprotocol.types import Position
    from pygls.lsp.client import LanguageClient

Protocol = Literal["infill", "suffix", "lsp"]


@dataclass(frozen=True)
class Key:
    """The completion shown after one key."""

    seconds: float  # from key to completion
    shown: str
    right: bool  # the file continues with the completion


@dataclass(frozen=True)
class TypedTrace:
    """A text, and the character offsets where typing starts and ends."""

    text: str
    begin: int
    end: int

    def cursors(self) -> Iterator[tuple[str, str]]:
        """The text before and after the cursor after each key."""
        for place in range(self.begin + 1, self.end + 1):
            yield self.text[:place], self.text[self.end :]

    def key(self, before: str, shown: str, seconds: float) -> Key:
        rest = self.text[len(before) : self.end]
        return Key(seconds, shown, bool(shown.strip()) and rest.startswith(shown.rstrip()))


def trace_of(text: str, *, line: int, keys: int) -> TypedTrace:
    """Type from the start of a line (from 1) to the end of the line `keys` keys later.

    Raises ValueError if there is no such line or nothing to type.
    """
    lines = text.splitlines(keepends=True)
    if not 1 <= line <= len(lines):
        raise ValueError(f"line {line} is not in the file, which has {len(lines)}")
    begin = sum(map(len, lines[: line - 1]))
    end = text.find("\n", min(len(text), begin + keys))
    end = len(text) if end < 0 else end
    if begin == end:
        raise ValueError(f"there is nothing to type in line {line}; start further up")
    return TypedTrace(text, begin, end)


def type_over_http(
    client: Client, trace: TypedTrace, protocol: Protocol, model: str
) -> Iterator[Key]:
    """Type over HTTP. Raises OSError if no server answers, ValueError if it refuses."""
    for before, behind in trace.cursors():
        if protocol == "infill":
            path, body = "/infill", _infill(before, behind)
        else:
            path, body = "/v1/completions", _suffix(before, behind, model)
        reply = client.ask(path, body)
        yield trace.key(before, said(path, reply), reply.seconds)


def _infill(before: str, behind: str) -> dict[str, Any]:
    """The request body of llama.vim and llama.vscode."""
    cut = before.rfind("\n") + 1
    return {
        "input_prefix": before[:cut],
        "prompt": before[cut:],
        "input_suffix": behind,
        "n_predict": 64,
        "t_max_predict_ms": 250,
        "stream": False,
    }


def _suffix(before: str, behind: str, model: str) -> dict[str, Any]:
    """The request body of OpenAI completion clients: one line, with whole lines before it."""
    start = before.find("\n", max(0, len(before) - 2000)) + 1 if len(before) > 2000 else 0
    return {
        "model": model,
        "prompt": before[start:],
        "suffix": behind[:500],
        "max_tokens": 32,
        "stop": ["\n"],
        "temperature": 0,
    }


def type_in_an_editor(trace: TypedTrace, options: Sequence[str] = ()) -> list[Key]:
    """Type through a language server started here; times include its pause after a key.

    `options` are command-line options of `sounding language-server`.
    """
    return asyncio.run(_type_in_an_editor(trace, options))


async def _type_in_an_editor(trace: TypedTrace, options: Sequence[str]) -> list[Key]:
    from lsprotocol import types as lsp
    from pygls.lsp.client import LanguageClient

    client = LanguageClient("typist", "1")
    command = ("-m", "sounding", "language-server", *options)
    await client.start_io(sys.executable, *command)
    uri = Path("typed.py").absolute().as_uri()
    text = trace.text[: trace.begin] + trace.text[trace.end :]
    try:
        await client.initialize_async(lsp.InitializeParams(lsp.ClientCapabilities()))
        client.initialized(lsp.InitializedParams())
        document = lsp.TextDocumentItem(uri, "python", 1, text)
        client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))
        at = trace.text[: trace.begin]
        await _complete(client, uri, at)  # the first request loads the model
        keys = []
        for number, (before, _) in enumerate(trace.cursors(), 2):
            start = time.perf_counter()
            place = _position(before[:-1])
            change = lsp.TextDocumentContentChangePartial(
                text=before[-1], range=lsp.Range(place, place)
            )
            version = lsp.VersionedTextDocumentIdentifier(version=number, uri=uri)
            client.text_document_did_change(lsp.DidChangeTextDocumentParams(version, [change]))
            shown = await _complete(client, uri, before)
            keys.append(trace.key(before, shown, time.perf_counter() - start))
        return keys
    finally:
        await client.shutdown_async(None)
        client.exit(None)
        await client.stop()


async def _complete(client: "LanguageClient", uri: str, before: str) -> str:
    from lsprotocol import types as lsp

    asked = lsp.InlineCompletionParams(
        context=lsp.InlineCompletionContext(lsp.InlineCompletionTriggerKind.Automatic),
        text_document=lsp.TextDocumentIdentifier(uri),
        position=_position(before),
    )
    answer = await client.text_document_inline_completion_async(asked)
    items = answer.items if isinstance(answer, lsp.InlineCompletionList) else answer
    if not items:
        return ""
    text = items[0].insert_text
    return text if isinstance(text, str) else text.value


def _position(before: str) -> "Position":
    """The position as the protocol counts: lines from 0, in UTF-16 code units."""
    from lsprotocol.types import Position

    line = before[before.rfind("\n") + 1 :]
    return Position(before.count("\n"), len(line.encode("utf-16-le")) // 2)
