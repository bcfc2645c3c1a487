"""The documents an editor has open, and the places in them.

A place is a line and, in it, a number of code units: UTF-16 ones unless another encoding was agreed
on. A line ends with LF, CRLF or CR and with nothing else. The documents of pygls also end lines at
form feeds and the like, so that every place below one would be wrong; hence our own.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lsprotocol import types

_LINE_END = re.compile(r"\r\n|\r|\n")
_UNITS: dict[types.PositionEncodingKind, Callable[[str], int]] = {
    types.PositionEncodingKind.Utf8: lambda text: len(text.encode("utf-8", "surrogatepass")),
    types.PositionEncodingKind.Utf16: lambda text: len(text) + sum(c > "\uffff" for c in text),
    types.PositionEncodingKind.Utf32: len,
}


@dataclass
class Document:
    """A text that is being edited."""

    uri: str
    language: str
    text: str
    encoding: types.PositionEncodingKind = types.PositionEncodingKind.Utf16

    def offset(self, position: types.Position) -> int:
        """The characters before a position; one past the end of its line means that end.

        A position inside of a character means its beginning.
        """
        begin = 0
        if position.line:
            ends = _LINE_END.finditer(self.text)
            above = next(itertools.islice(ends, position.line - 1, None), None)
            if above is None:
                return len(self.text)
            begin = above.end()
        end = _LINE_END.search(self.text, begin)
        line = self.text[begin : end.start() if end else len(self.text)]
        if line.isascii():
            return begin + min(position.character, len(line))
        return begin + self._characters(line, position.character)

    def units(self, text: str) -> int:
        """The length of a piece of a line as the editor counts."""
        return _UNITS[self.encoding](text)

    def apply(self, change: types.TextDocumentContentChangeEvent) -> None:
        """Take an edit over: a replaced range, or the whole text anew."""
        if isinstance(change, types.TextDocumentContentChangePartial):
            start, end = self.offset(change.range.start), self.offset(change.range.end)
            self.text = self.text[:start] + change.text + self.text[end:]
        else:
            self.text = change.text

    def _characters(self, line: str, units: int) -> int:
        for index, character in enumerate(line):
            units -= self.units(character)
            if units < 0:
                return index
        return len(line)


class Documents:
    """Every open document by its URI, the most recently edited last."""

    def __init__(self) -> None:
        self._open: dict[str, Document] = {}

    def __getitem__(self, uri: str) -> Document:
        """Raises KeyError for one that is not open."""
        return self._open[uri]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._open.values())

    def open(self, item: types.TextDocumentItem, encoding: types.PositionEncodingKind) -> None:
        self._open.pop(item.uri, None)
        self._open[item.uri] = Document(item.uri, item.language_id, item.text, encoding)

    def change(self, params: types.DidChangeTextDocumentParams) -> None:
        document = self._open.pop(params.text_document.uri)
        self._open[document.uri] = document  # the last one now
        for change in params.content_changes:
            document.apply(change)

    def close(self, uri: str) -> None:
        self._open.pop(uri, None)
