"""The documents an editor has open, and the places in them.

A place is a line and, in it, a number of code units: UTF-16 ones unless another encoding was agreed
on. A line ends with LF, CRLF or CR and with nothing else. The documents of pygls also end lines at
form feeds and the like, so that every place below one would be wrong; hence our own.
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
_BLOCK = 4096  # characters of a line that are measured at once
_STEPS = 4  # in which the beginning of what is near a place moves on


@dataclass
class OpenDocument:
    """A text that is being edited."""

    uri: str
    language: str
    text: str
    encoding: types.PositionEncodingKind = types.PositionEncodingKind.Utf16
    _starts: NDArray[np.int64] = field(init=False, repr=False)
    """Where each line begins; kept from edit to edit."""

    def __post_init__(self) -> None:
        self._starts = _line_starts(self.text)

    def offset(self, position: types.Position) -> int:
        """The characters before a position; one past the end of its line means that end.

        A position inside of a character means its beginning.
        """
        if position.line >= len(self._starts):
            return len(self.text)
        begin = int(self._starts[position.line])
        return begin + self._characters(self._line(position.line), position.character)

    def clamped(self, position: types.Position) -> types.Position:
        """A position that is in the text: the end of its line, or of the text, for one beyond."""
        line = min(position.line, len(self._starts) - 1)
        end = self.units(self._line(line))
        beyond = position.line > line
        return types.Position(line, end if beyond else min(position.character, end))

    def before(self, offset: int, most: int) -> str:
        """At most so many characters before a place; they begin at the same one for a while when
        the text grows."""
        step = most // _STEPS
        start = max(0, -(-(offset - most) // step) * step)
        return self.text[start:offset]

    def after(self, offset: int, most: int) -> str:
        """At most so many characters from a place on."""
        return self.text[offset : offset + most]

    def units(self, text: str) -> int:
        """The length of a piece of a line as the editor counts."""
        return _UNITS[self.encoding](text)

    def apply(self, change: types.TextDocumentContentChangeEvent) -> None:
        """Take an edit over: a replaced range, or the whole text anew."""
        if isinstance(change, types.TextDocumentContentChangePartial):
            start, end = self.offset(change.range.start), self.offset(change.range.end)
            self._replace(start, max(start, end), change.text)
        else:
            self.text = change.text
            self._starts = _line_starts(self.text)

    def _replace(self, start: int, end: int, text: str) -> None:
        old = self._starts
        self.text = self.text[:start] + text + self.text[end:]
        # From the line of the character before on: it may be half of a line end. The first line
        # that begins behind the range ends what has to be looked at.
        first = int(np.searchsorted(old, max(0, start - 1), side="right")) - 1
        behind = old[int(np.searchsorted(old, end, side="right")) :] + (len(text) + start - end)
        begin = int(old[first])
        stop = int(behind[0]) if len(behind) else len(self.text)
        ends = [found.end() for found in _LINE_END.finditer(self.text, begin, stop)]
        self._starts = np.concatenate([old[: first + 1], np.array(ends, np.int64), behind[1:]])

    def _line(self, number: int) -> str:
        """A line without its end."""
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
    """Every open document by its URI, the most recently edited last."""

    def __init__(self) -> None:
        self._open: dict[str, OpenDocument] = {}

    def __getitem__(self, uri: str) -> OpenDocument:
        """Raises KeyError for one that is not open."""
        return self._open[uri]

    def __iter__(self) -> Iterator[OpenDocument]:
        return iter(self._open.values())

    def open(self, item: types.TextDocumentItem, encoding: types.PositionEncodingKind) -> None:
        self._open.pop(item.uri, None)
        self._open[item.uri] = OpenDocument(item.uri, item.language_id, item.text, encoding)

    def change(self, params: types.DidChangeTextDocumentParams) -> None:
        document = self._open.pop(params.text_document.uri)
        self._open[document.uri] = document  # the last one now
        for change in params.content_changes:
            document.apply(change)

    def close(self, uri: str) -> None:
        self._open.pop(uri, None)
