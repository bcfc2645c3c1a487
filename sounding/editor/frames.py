"""Messages on stdin: a head with their length, then so many bytes.

A head that is wrong, or a message that is none, means that nothing behind it can be found any more.
pygls would look for the next head for ever, and the editor wait for answers; here it is an error
that ends the process, upon which editors start it anew.
"""

import re
from typing import Protocol, runtime_checkable

_LENGTH = re.compile(rb"content-length:[ \t]*(\d{1,10})[ \t]*\r?\n", re.IGNORECASE)
_OTHER = re.compile(rb"[!-9;-~]+:[^\r\n]*\r?\n")
_LONGEST_LINE = 1024
_LONGEST_HEAD = 16  # lines


@runtime_checkable
class ByteSource(Protocol):
    """What bytes are read from."""

    def readline(self, size: int, /) -> bytes: ...

    def read(self, size: int, /) -> bytes: ...


class BadFrame(Exception):
    """What the editor sent cannot be read."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the editor sent what cannot be read: {why}; the language server ends")


class FrameReader:
    """A stream of messages, checked, for a reader of lines and bytes."""

    def __init__(self, stream: ByteSource) -> None:
        self._stream, self._ends_head = stream, b""

    def readline(self) -> bytes:
        """The next line of a head, b"" at the end of the stream. Raises BadFrame."""
        if self._ends_head:
            line, self._ends_head = self._ends_head, b""
            return line
        length = self._read_head()
        if length is None:
            return b""
        self._ends_head = b"\r\n"
        return b"Content-Length: %d\r\n" % length

    def read(self, size: int) -> bytes:
        """Exactly so many bytes. Raises BadFrame where there are fewer."""
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
                    raise BadFrame("a head has no Content-Length above 0")
                return length
            found = _LENGTH.fullmatch(line)
            if found is not None and length is None:
                length = int(found[1])
            elif found is not None or _OTHER.fullmatch(line) is None or _is_length(line):
                raise BadFrame(f"{line[:40]!r} is no line of a head")
        raise BadFrame(f"a head has more than {_LONGEST_HEAD} lines")


def _is_length(line: bytes) -> bool:
    return line.lower().startswith(b"content-length")
