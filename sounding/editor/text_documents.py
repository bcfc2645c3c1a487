"""The documents that an editor has open, and positions in them.

A position is a line and a number of code units in it: UTF-16 unless another encoding was agreed on.
Only LF, CRLF or CR end a line. The documents of pygls also end lines at form feeds and the like,
which shifts every position below; hence our own.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from lsprotocol import types
from numpy.typing import NDArray

_LINE_END = re.compile(r"\r\n|\r|\n")
_UNITS: dict[types.PositionEncodingKind, Callable[[str], int]] = {
    types.PositionEncodingKind.Utf8: lambda text: len(text.encode("utf-8", "surrogatepass")),
    types.PositionEncodingKind.Utf16: lambda text: (
        len(text.encode("utf-16-le", "surrogatepass")) // 2
    ),
    types.PositionEncodingKind.Utf32: len,
}
_BLOCK = 4096  # characters of a line measured at once
_STEPS = 4  # the start of the text before a position moves in this many steps per `most` characters


@dataclass
class OpenDocument:
    """A text under editing."""

    uri: str
    language: str
    text: str
    encoding: types.PositionEncodingKind = types.PositionEncodingKind.Utf16
    _starts: NDArray[np.int64] = field(init=False, repr=False)
    """Offset of each line's start; edits update it."""

    def __post_init__(self) -> None:
        self._starts = _line_starts(self.text)

    def offset(self, position: types.Position) -> int:
        """Number of characters before a position; past its line's end means that end.

        A position inside a character means its start.
        """
        if position.line >= len(self._starts):
            return len(self.text)
        begin = int(self._starts[position.line])
        return begin + self._characters(self._line(position.line), position.character)

    def clamped(self, position: types.Position) -> types.Position:
        """The position, moved to the end of its line or of the text if it is beyond."""
        line = min(position.line, len(self._starts) - 1)
        end = self.units(self._line(line))
        beyond = position.line > line
        return types.Position(line, end if beyond else min(position.character, end))

    def before(self, offset: int, most: int) -> str:
        """At most `most` characters before an offset. Their start moves in steps as the text
        grows."""
        step = most // _STEPS
        start = max(0, -(-(offset - most) // step) * step)
        return self.text[start:offset]

    def after(self, offset: int, most: int) -> str:
        """At most `most` characters from an offset on."""
        return self.text[offset : offset + most]

    def units(self, text: str) -> int:
        """Length of a piece of a line in the editor's code units."""
        return _UNITS[self.encoding](text)

    def apply(self, change: types.TextDocumentContentChangeEvent) -> None:
        """Apply an edit: a replaced range, or the whole text."""
        if isinstance(change, types.TextDocumentContentChangePartial):
            start, end = self.offset(change.range.start), self.offset(change.range.end)
            self._replace(start, max(start, end), change.text)
        else:
            self.text = change.text
            self._starts = _line_starts(self.text)

    def _replace(self, start: int, end: int, text: str) -> None:
        old = self._starts
        self.text = self.text[:start] + text + self.text[end:]
        # Search from the line of the character before, which may be the first half of CRLF, to the
        # first line that starts after the range.
        first = int(np.searchsorted(old, max(0, start - 1), side="right")) - 1
        behind = old[int(np.searchsorted(old, end, side="right")) :] + (len(text) + start - end)
        begin = int(old[first])
        stop = int(behind[0]) if len(behind) else len(self.text)
        ends = [found.end() for found in _LINE_END.finditer(self.text, begin, stop)]
        self._starts = np.concatenate([old[: first + 1], np.array(ends, np.int64), behind[1:]])

    def _line(self, number: int) -> str:
        """A line without its line end."""
        last = number + 1 == len(self._starts)
        stop = len(self.text) if last else int(self._starts[number + 1])
        line = self.text[int(self._starts[number]) : stop]
        return line if last else line[: -2 if line.endswith("\r\n") else -1]

    def _characters(self, line: str, units: int) -> int:
        if line.isascii():
            return min(units, len(line))
        begin = 0
        while (block := line[begin : begin + _BLOCK]) and (size := self.units(block)) <= units:
            units -= size
            begin += len(block)
        for index, character in enumerate(block):
            units -= self.units(character)
            if units < 0:
                return begin + index
        return len(line)


def _line_starts(text: str) -> NDArray[np.int64]:
    return np.array([0, *(found.end() for found in _LINE_END.finditer(text))], np.int64)


class OpenDocuments:
    """All open documents by URI, most recently edited last."""

    def __init__(self) -> None:
        self._open: dict[str, OpenDocument] = {}

    def __getitem__(self, uri: str) -> OpenDocument:
        """Raises KeyError if the document is not open."""
        return self._open[uri]

    def __iter__(self) -> Iterator[OpenDocument]:
        return iter(self._open.values())

    def open(self, item: types.TextDocumentItem, encoding: types.PositionEncodingKind) -> None:
        self._open.pop(item.uri, None)
        self._open[item.uri] = OpenDocument(item.uri, item.language_id, item.text, encoding)

    def change(self, params: types.DidChangeTextDocumentParams) -> None:
        document = self._open.pop(params.text_document.uri)
        self._open[document.uri] = document  # move it to the end
        for change in params.content_changes:
            document.apply(change)

    def close(self, uri: str) -> None:
        self._open.pop(uri, None)
