"""Code completion for any editor, over the language server protocol on stdin and stdout.

Serves inline completion (ghost text), and ordinary completion for editors without it. A request
waits briefly for a pause in typing. The next request in the same document cancels it. Worker
threads compute the completions, so that the event loop only passes messages.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from lsprotocol import types
from pygls.exceptions import FeatureRequestError, JsonRpcException, JsonRpcInvalidParams, PyglsError
from pygls.lsp.server import LanguageServer
from pygls.protocol import (
    JsonRPCNotification,
    JsonRPCProtocol,
    LanguageServerProtocol,
    lsp_method,
)
from pygls.uris import to_fs_path

from sounding.completion.context import File
from sounding.completion.gap import Gap
from sounding.editor.frames import BadFrame, FrameReader
from sounding.editor.suggest import Ask, Stop, Suggest
from sounding.editor.text_documents import OpenDocument, OpenDocuments

logger = logging.getLogger(__name__)

_WORKERS = 8  # concurrent completions, each for another document
_NEAR_CHARACTERS = 50_000  # on each side of the cursor
_FILES = 16  # most other documents considered
_FILES_CHARACTERS = 400_000  # total of these: the search must stay faster than typing
_LABEL_CHARACTERS = 60
_WORD = re.compile(r"\w*\Z")


class _Protocol(LanguageServerProtocol):
    """Keeps documents in our `OpenDocuments`, and answers requests that pygls leaves unanswered."""

    _server: "CodeServer"

    def structure_message(self, data: dict[str, Any]) -> Any:
        try:
            return super().structure_message(data)
        except JsonRpcException:
            if not {"id", "method"} <= data.keys():
                raise
            refused = JsonRpcInvalidParams(message=f"invalid parameters for {data['method']}")
            self._send_response(data["id"], error=refused.to_response_error())
            return JsonRPCNotification("$/refused", JsonRPCProtocol.VERSION, None)

    @lsp_method(types.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: types.DidOpenTextDocumentParams) -> None:
        encoding = self.workspace.position_encoding
        self._server.documents.open(params.text_document, types.PositionEncodingKind(encoding))

    @lsp_method(types.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: types.DidChangeTextDocumentParams) -> None:
        _document(self._server, params.text_document.uri)
        self._server.documents.change(params)

    @lsp_method(types.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        self._server.documents.close(params.text_document.uri)
        self._server.forget(params.text_document.uri)


class CodeServer(LanguageServer):
    """The language server. It opens its source of completions once an editor has connected."""

    def __init__(self, open_suggest: Callable[[], Suggest], *, pause_seconds: float = 0.04) -> None:
        """`open_suggest` runs in a worker thread; the editor shows its error.

        A request waits `pause_seconds` for another key before its completion starts.
        """
        super().__init__("sounding", importlib.metadata.version("sounding"), protocol_cls=_Protocol)
        self.documents = OpenDocuments()
        self.asked_to_stop = False
        self._open_suggest, self._pause_seconds = open_suggest, pause_seconds
        self._opening: asyncio.Task[Suggest | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers = ThreadPoolExecutor(_WORKERS, "suggest")
        self._jobs: dict[str, _Job] = {}
        self._told: set[str] = set()
        self.feature(types.INITIALIZED)(_initialized)
        self.feature(types.SHUTDOWN)(_shutdown)
        inline = types.InlineCompletionOptions()  # pygls announces it only with options
        self.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, inline)(_inline_completion)
        triggers = types.CompletionOptions(trigger_characters=[".", "(", "[", ",", "=", ":"])
        self.feature(types.TEXT_DOCUMENT_COMPLETION, triggers)(_completion)

    def run(self) -> int:
        """Serve stdin and stdout until the editor disconnects; returns the protocol's exit code."""
        output = sys.stdout.buffer
        frames = FrameReader(sys.stdin.buffer)
        with contextlib.redirect_stdout(sys.stderr):  # a stray print must not break the protocol
            try:
                self.start_io(cast(BinaryIO, frames), output)
            except BadFrame as error:
                self.tell(error)
        return 0 if self.asked_to_stop else 1

    def report_server_error(
        self, error: Exception, source: type[PyglsError] | type[JsonRpcException]
    ) -> None:
        """Show errors that occur outside a request; a request gets an error response."""
        unreadable = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)
        if source is JsonRpcException and isinstance(error, unreadable):
            raise BadFrame(f"a message is not JSON ({error})")
        if source != FeatureRequestError:
            self.tell(error)

    def tell(self, error: Exception) -> None:
        """Show an error in the editor, once."""
        logger.warning("%s", error)
        message = f"Sounding: {error}"
        if message not in self._told:
            self._told.add(message)
            shown = types.ShowMessageParams(types.MessageType.Error, message)
            self.window_show_message(shown)

    def tell_from_worker(self, error: Exception) -> None:
        """The same from a thread in which completions are made."""
        assert self._loop is not None, "set before the first worker began"
        self._loop.call_soon_threadsafe(self.tell, error)

    def open(self) -> "asyncio.Task[Suggest | None]":
        """Open the source of completions in a worker, once; the task's result is None on error."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return self._opening

    async def _open(self) -> Suggest | None:
        try:
            loop = asyncio.get_running_loop()
            self._loop = loop
            return await loop.run_in_executor(self._workers, self._open_suggest)
        except Exception as error:
            self.tell(error)
            return None

    async def suggest(self, document: OpenDocument, gap: Gap, *, at_once: bool) -> str:
        """Return the text to insert at a cursor; "" if there is none or a later request came.

        Requests at the same place share one completion. After the user types its beginning, a
        request gets the rest of it.
        """
        job = self._jobs.get(document.uri)
        rest = None if job is None else job.rest(gap)
        if job is None or rest is None:
            self.forget(document.uri)
            ask = Ask(gap, self._others(document), document.language == "python")
            pause = 0.0 if at_once else self._pause_seconds
            job, rest = _Job(gap, asyncio.create_task(self._make(ask, pause))), ""
            self._jobs[document.uri] = job
        return rest or await job.wait()

    def forget(self, uri: str) -> None:
        """Cancel the running completion of a document, if any."""
        job = self._jobs.pop(uri, None)
        if job is not None:
            job.task.cancel()

    async def _make(self, ask: Ask, pause_seconds: float) -> str:
        await asyncio.sleep(pause_seconds)
        stop = Stop()
        try:
            suggest = await asyncio.shield(self.open())
            if suggest is None:
                return ""
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._workers, suggest, ask, stop)
        except asyncio.CancelledError:
            stop.set()
            raise
        except Exception as error:
            self.tell(error)
            return ""

    def _others(self, document: OpenDocument) -> list[File]:
        """The other open documents within the limits, most recently edited first."""
        files: list[File] = []
        room = _FILES_CHARACTERS
        for other in reversed(list(self.documents)):
            if other is document or len(other.text) > room or len(files) == _FILES:
                continue
            room -= len(other.text)
            files.append((self._name(other.uri), _plain(other.text)))
        return files

    @property
    def roots(self) -> list[str]:
        """The workspace's folders, as paths."""
        folders = [to_fs_path(folder.uri) for folder in self.workspace.folders.values()]
        return [root for root in (*folders, self.workspace.root_path) if root]

    def _name(self, uri: str) -> str:
        """A document's path relative to the workspace, or else its file name."""
        path = to_fs_path(uri) or uri
        for root in self.roots:
            if path.startswith(os.path.join(root, "")):
                return os.path.relpath(path, root)
        return os.path.basename(path)


class _Job:
    """A running or finished completion, shared by all requests at its place."""

    def __init__(self, gap: Gap, task: "asyncio.Task[str]") -> None:
        self.gap, self.task = gap, task
        self._waiting = 0

    def rest(self, gap: Gap) -> str | None:
        """The rest of the text at a cursor: "" while it runs, None if the cursor does not fit."""
        if not self.task.done():
            return "" if gap == self.gap else None
        if self.task.cancelled() or gap.suffix != self.gap.suffix:
            return None
        whole = self.gap.prefix + self.task.result()
        typed = len(gap.prefix) >= len(self.gap.prefix) and whole.startswith(gap.prefix)
        return whole[len(gap.prefix) :] or None if typed else None

    async def wait(self) -> str:
        """Return the text, or "" if it was cancelled. The last waiter that leaves cancels it."""
        self._waiting += 1
        try:
            await asyncio.wait({self.task})
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()  # no effect once it is done
        return "" if self.task.cancelled() else self.task.result()


# --------------------------------------------------------------------------------------------------
# Requests


async def _initialized(ls: CodeServer, params: types.InitializedParams) -> None:
    ls.open()  # before the first key is pressed


async def _shutdown(ls: CodeServer, params: None) -> None:
    ls.asked_to_stop = True


async def _inline_completion(
    ls: CodeServer, params: types.InlineCompletionParams
) -> list[types.InlineCompletionItem] | None:
    document = _document(ls, params.text_document.uri)
    start = end = document.offset(params.position)
    place = document.clamped(params.position)
    where = types.Range(place, place)
    chosen = ""
    if info := params.context.selected_completion_info:
        # The menu is open: complete the text as if the selected item were inserted.
        start, end = document.offset(info.range.start), document.offset(info.range.end)
        edges = (info.range.start, info.range.end)
        where, chosen = types.Range(*map(document.clamped, edges)), info.text
    gap = _gap(document, start, end, chosen)
    invoked = params.context.trigger_kind == types.InlineCompletionTriggerKind.Invoked
    text = await ls.suggest(document, gap, at_once=invoked)
    if not text.strip():
        return None
    return [types.InlineCompletionItem(chosen + text, range=where)]


async def _completion(ls: CodeServer, params: types.CompletionParams) -> types.CompletionList:
    document = _document(ls, params.text_document.uri)
    at = document.offset(params.position)
    gap = _gap(document, at, at)
    text = await ls.suggest(document, gap, at_once=False)
    # Marked incomplete, so that editors request it again after the next key.
    place = document.clamped(params.position)
    items = [_item(document, place, gap, text)] if text.strip() else []
    return types.CompletionList(is_incomplete=True, items=items)


def _item(
    document: OpenDocument, position: types.Position, gap: Gap, text: str
) -> types.CompletionItem:
    """A menu entry. It repeats the word at the cursor, because editors match entries with it."""
    match = _WORD.search(gap.line)
    word = match[0] if match else ""
    start = types.Position(position.line, position.character - document.units(word))
    first, *more = (word + text).strip().split("\n")
    label = first[:_LABEL_CHARACTERS] + (" …" if more or len(first) > _LABEL_CHARACTERS else "")
    return types.CompletionItem(
        label,
        kind=types.CompletionItemKind.Text,
        detail="Sounding",
        documentation=types.MarkupContent(
            types.MarkupKind.Markdown, f"```{document.language}\n{word + text}\n```"
        ),
        filter_text=word + text,
        text_edit=types.TextEdit(types.Range(start, position), word + text),
        insert_text_format=types.InsertTextFormat.PlainText,
        insert_text_mode=types.InsertTextMode.AsIs,  # the model's lines are already indented
    )


def _document(ls: CodeServer, uri: str) -> OpenDocument:
    try:
        return ls.documents[uri]
    except KeyError:
        raise JsonRpcInvalidParams(
            message=f"{uri} is not open; send textDocument/didOpen first"
        ) from None


def _gap(document: OpenDocument, start: int, end: int, chosen: str = "") -> Gap:
    """The text around a cursor, bounded by what a prompt can show: a document may have any length,
    and the event loop must not block on it."""
    before = document.before(start, _NEAR_CHARACTERS)
    return Gap(_plain(before) + chosen, _plain(document.after(end, _NEAR_CHARACTERS)))


def _plain(text: str) -> str:
    """Text as in training: LF newlines, no byte-order mark, no unpaired surrogates.

    Insertions have LF newlines too; editors convert them to the document's own.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
