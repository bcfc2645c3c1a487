"""What an editor sends: read as it is meant, or refused where nothing could be found behind it."""

import io

import pytest

from sounding.editor.frames import BadFrame, FrameReader


def read(data: bytes) -> list[bytes]:
    frames, bodies = FrameReader(io.BytesIO(data)), []
    while line := frames.readline():
        length = int(line.removeprefix(b"Content-Length: "))
        assert frames.readline() == b"\r\n"
        bodies.append(frames.read(length))
    return bodies


def test_messages_one_after_the_other() -> None:
    kind = b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\n"
    data = b"Content-Length: 2\r\n\r\n{}" + kind + b"content-length:4\r\n\r\nnull"
    assert read(data) == [b"{}", b"null"]
    assert read(b"") == []


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Length: abc\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n{}",
        b"Content-Length: 0\r\n\r\n",
        b"Content-Length: 99999999999999999999\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"\r\n{}",
        b"{}\r\n\r\n",
        b"Content-Length: 2\r\n",
        b"Content-Length: 9\r\n\r\n{}",
        b"Content-Length: 2\r\n\r\n{}}\r\n\r\n",
        b"x" * 5000,
        b"X: y\r\n" * 5000,
    ],
)
def test_what_cannot_be_read(data: bytes) -> None:
    with pytest.raises(BadFrame, match="the editor sent an invalid message"):
        read(data)
