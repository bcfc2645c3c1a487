"""Completions of code for any editor, over the language server protocol on stdin and stdout.

Serves inline completion (ghost text), and ordinary completion for editors without it. A request
waits a moment for the typing to pause, and is overtaken by the next one in its document; answers
are made in a worker thread, so that the loop here only ever passes messages on.
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
from sounding.editor.frames import BadFrame, Frames
from sounding.editor.suggest import Ask, Stop, Suggest
from sounding.editor.text_documents import OpenDocument, OpenDocuments

logger = logging.getLogger(__name__)

_WORKERS = 8  # completions that are made at once, each of another document
_NEAR_CHARACTERS = 50_000  # on either side of a cursor
_FILES = 16  # other documents that are looked at
_FILES_CHARACTERS = 400_000  # of all of them together: looking must stay faster than typing
_LABEL_CHARACTERS = 60
_WORD = re.compile(r"\w*\Z")


class _Protocol(LanguageServerProtocol):
    """Keeps documents in our `OpenDocuments`; answers requests that pygls would leave waiting."""

    _server: "CodeServer"

    def structure_message(self, data: dict[str, Any]) -> Any:
        try:
            return super().structure_message(data)
        except JsonRpcException:
            if not {"id", "method"} <= data.keys():
                raise
            refused = JsonRpcInvalidParams(message=f"the parameters are none of {data['method']}")
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
    """The language server. What makes its completions is opened when an editor has connected."""

    def __init__(self, open_suggest: Callable[[], Suggest], *, pause_seconds: float = 0.04) -> None:
        """`open_suggest` runs in a worker thread; its error is shown in the editor.

        `pause_seconds`: how long a request waits for another key before it is worked on.
        """
        super().__init__("sounding", importlib.metadata.version("sounding"), protocol_cls=_Protocol)
        self.documents = OpenDocuments()
        self.asked_to_stop = False
        self._open_suggest, self._pause_seconds = open_suggest, pause_seconds
        self._opening: asyncio.Task[Suggest | None] | None = None
        self._workers = ThreadPoolExecutor(_WORKERS, "suggest")
        self._jobs: dict[str, _Job] = {}
        self._told: set[str] = set()
        self.feature(types.INITIALIZED)(_initialized)
        self.feature(types.SHUTDOWN)(_shutdown)
        inline = types.InlineCompletionOptions()  # without options pygls does not announce it
        self.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, inline)(_inline_completion)
        triggers = types.CompletionOptions(trigger_characters=[".", "(", "[", ",", "=", ":"])
        self.feature(types.TEXT_DOCUMENT_COMPLETION, triggers)(_completion)

    def run(self) -> int:
        """Serve stdin and stdout until the editor leaves; the exit code of the protocol."""
        output = sys.stdout.buffer
        frames = Frames(sys.stdin.buffer)
        with contextlib.redirect_stdout(sys.stderr):  # a stray print must not break the protocol
            try:
                self.start_io(cast(BinaryIO, frames), output)
            except BadFrame as error:
                self.tell(error)
        return 0 if self.asked_to_stop else 1

    def report_server_error(
        self, error: Exception, source: type[PyglsError] | type[JsonRpcException]
    ) -> None:
        """Show what went wrong outside of a request; a request has an error of its own."""
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

    def open(self) -> "asyncio.Task[Suggest | None]":
        """What makes completions, being opened in a worker; None where it cannot be."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return self._opening

    async def _open(self) -> Suggest | None:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._workers, self._open_suggest)
        except Exception as error:
            self.tell(error)
            return None

    async def suggest(self, document: OpenDocument, gap: Gap, *, at_once: bool) -> str:
        """The text to insert at a cursor; "" when there is none or a later request overtook it.

        Whoever asks at the same place shares the answer, and who has typed its beginning gets the
        rest of it.
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
        """End the completion of a document that is being made, if there is one."""
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
        """The other open documents, the most recently edited first."""
        files: list[File] = []
        room = _FILES_CHARACTERS
        for other in reversed(list(self.documents)):
            if other is document or len(other.text) > room or len(files) == _FILES:
                continue
            room -= len(other.text)
            files.append((self._name(other.uri), _plain(other.text)))
        return files

    def _name(self, uri: str) -> str:
        """A document's path in the workspace, or else its file name."""
        path = to_fs_path(uri) or uri
        roots = [to_fs_path(folder.uri) for folder in self.workspace.folders.values()]
        for root in (*roots, self.workspace.root_path):
            if root and path.startswith(os.path.join(root, "")):
                return os.path.relpath(path, root)
        return os.path.basename(path)


class _Job:
    """One completion in the making, or made, for everybody who asks at its place."""

    def __init__(self, gap: Gap, task: "asyncio.Task[str]") -> None:
        self.gap, self.task = gap, task
        self._waiting = 0

    def rest(self, gap: Gap) -> str | None:
        """What is left of the text at a cursor: "" while it is being made, None elsewhere."""
        if not self.task.done():
            return "" if gap == self.gap else None
        if self.task.cancelled() or gap.suffix != self.gap.suffix:
            return None
        whole = self.gap.prefix + self.task.result()
        typed = len(gap.prefix) >= len(self.gap.prefix) and whole.startswith(gap.prefix)
        return whole[len(gap.prefix) :] or None if typed else None

    async def wait(self) -> str:
        """The text, or "" when it was overtaken. The last one who stops waiting ends it."""
        self._waiting += 1
        try:
            await asyncio.wait({self.task})
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()  # no matter when it is done
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
        # The menu is open: what is completed is the text with the chosen item in it.
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
    # More typing asks again: the list is never complete.
    place = document.clamped(params.position)
    items = [_item(document, place, gap, text)] if text.strip() else []
    return types.CompletionList(is_incomplete=True, items=items)


def _item(
    document: OpenDocument, position: types.Position, gap: Gap, text: str
) -> types.CompletionItem:
    """One entry of a menu. Editors match it against the word at the cursor, which it repeats."""
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
        insert_text_mode=types.InsertTextMode.AsIs,  # the model has indented its lines itself
    )


def _document(ls: CodeServer, uri: str) -> OpenDocument:
    try:
        return ls.documents[uri]
    except KeyError:
        raise JsonRpcInvalidParams(
            message=f"{uri} is not open; send textDocument/didOpen before anything about it"
        ) from None


def _gap(document: OpenDocument, start: int, end: int, chosen: str = "") -> Gap:
    """The text around a cursor, as far as a prompt may show it: a document may be of any length,
    and the loop here must not wait for one."""
    before = document.before(start, _NEAR_CHARACTERS)
    return Gap(_plain(before) + chosen, _plain(document.after(end, _NEAR_CHARACTERS)))


def _plain(text: str) -> str:
    """Text as the model has seen it: plain newlines, no byte-order mark, no half surrogate.

    Insertions have plain newlines too; editors turn them into the document's own.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
