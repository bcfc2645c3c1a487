"""Framing of messages on stdin: a header with the length, then that many bytes.

After an invalid header or an unreadable message the start of the next message is unknown. pygls
would search for the next header forever while the editor waits for answers. Here it is an error
that ends the process, and editors then restart it.
"""

import re
from typing import Protocol, runtime_checkable

_LENGTH = re.compile(rb"content-length:[ \t]*(\d{1,10})[ \t]*\r?\n", re.IGNORECASE)
_OTHER = re.compile(rb"[!-9;-~]+:[^\r\n]*\r?\n")
_LONGEST_LINE = 1024
_LONGEST_HEAD = 16  # lines


@runtime_checkable
class ByteSource(Protocol):
    """A stream of bytes to read from."""

    def readline(self, size: int, /) -> bytes: ...

    def read(self, size: int, /) -> bytes: ...


class BadFrame(Exception):
    """The editor's input is not a valid message."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the editor sent an invalid message: {why}; the language server stops")


class FrameReader:
    """A checked stream of messages, read by lines and bytes."""

    def __init__(self, stream: ByteSource) -> None:
        self._stream, self._ends_head = stream, b""

    def readline(self) -> bytes:
        """Return the next line of a header, b"" at the end of the stream. Raises BadFrame."""
        if self._ends_head:
            line, self._ends_head = self._ends_head, b""
            return line
        length = self._read_head()
        if length is None:
            return b""
        self._ends_head = b"\r\n"
        return b"Content-Length: %d\r\n" % length

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises BadFrame if there are fewer."""
        data = self._stream.read(size)
        if len(data) < size:
            raise BadFrame(f"a message of {size} bytes ends after {len(data)}")
        return data

    def _read_head(self) -> int | None:
        length: int | None = None
        for number in range(_LONGEST_HEAD):
            line = self._stream.readline(_LONGEST_LINE)
            if not line and not number:
                return None
            if line in (b"\r\n", b"\n"):
                if not length:
                    raise BadFrame("a header has no Content-Length above 0")
                return length
            found = _LENGTH.fullmatch(line)
            if found is not None and length is None:
                length = int(found[1])
            elif found is not None or _OTHER.fullmatch(line) is None or _is_length(line):
                raise BadFrame(f"{line[:40]!r} is not a valid header line")
        raise BadFrame(f"a header has more than {_LONGEST_HEAD} lines")


def _is_length(line: bytes) -> bool:
    return line.lower().startswith(b"content-length")
