"""Inputs that have stopped servers: each is one permitted request or a few connections, no key.

An attack is a function that takes a server's port and returns the outcome, which is compared with
the expected one. `scale` shrinks the large inputs, so that a test can run them all.
"""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

_TIMEOUT_SECONDS = 120.0
_LEAVES_SECONDS = 8.0  # how long a client of a large request waits before it disconnects

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ASK = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Attack:
    """One hostile input."""

    name: str
    run: Callable[[int], str]
    """Takes the port and returns the outcome in a word or two."""
    expected: str
    """The expected outcome; "" accepts anything but a server error."""

    def verdict(self, said: str) -> str:
        """What went wrong, or ""."""
        if self.expected and said != self.expected:
            return f"{said}, not {self.expected}"
        return said if said.startswith("5") else ""


def attacks(scale: float = 1.0, model: str = "nano") -> list[Attack]:
    """All attacks; `scale` 1 is the largest size that a server allows by default."""
    return [
        *_long_texts(scale, model),
        *_many_parts(scale, model),
        *_odd_requests(),
        *_connections(scale, model),
    ]


def _long_texts(scale: float, model: str) -> list[Attack]:
    text = "a b " * round(7_750_000 * scale)
    size = f"{len(text) / 1e6:.3g} MB of text"
    told = [{"role": "user", "content": text}]
    requests: list[tuple[str, str, dict[str, Any], str]] = [
        ("chat", CHAT, {"messages": told}, ""),
        ("messages", MESSAGES, {"messages": told, "max_tokens": 1}, ""),
        ("count_tokens", f"{MESSAGES}/count_tokens", {"messages": told}, ""),
        ("responses", RESPONSES, {"input": text, "max_output_tokens": 1}, ""),
        ("completions", "/v1/completions", {"prompt": text, "max_tokens": 1}, ""),
        ("suffix", "/v1/completions", {"prompt": text, "suffix": "x", "max_tokens": 1}, ""),
        ("generate", "/api/generate", {"prompt": text, "options": {"num_predict": 1}}, ""),
        ("infill prefix", "/infill", {"input_prefix": text, "n_predict": 1}, "200"),
        ("infill suffix", "/infill", {"input_suffix": text, "n_predict": 1}, "200"),
        (
            "infill files",
            "/infill",
            {"input_prefix": "a", "input_extra": [{"text": text}], "n_predict": 1},
            "200",
        ),
    ]
    return [
        Attack(f"{name}: {size}", _posting(path, {"model": model} | body), end)
        for name, path, body, end in requests
    ]


def _many_parts(scale: float, model: str) -> list[Attack]:
    many = round(1_000_000 * scale)
    head = f'{{"model": "{model}", '
    part = {"role": "user", "content": [{"type": "image"}] * (many // 5)}
    bodies = [
        ("numbers as messages", CHAT, head + '"messages": [1' + ", 1" * many + "]}"),
        ("bad content parts", CHAT, json.dumps({"model": model, "messages": [part]})),
        ("a field name of 30 MB", CHAT, head + f'"{"x" * 30 * many}": 1}}'),
        ("field names", CHAT, head + ", ".join(f'"x{i}": 1' for i in range(many)) + "}"),
        ("metadata", RESPONSES, head + _metadata(many)),
        ("texts as prompts", "/v1/completions", head + '"prompt": ["a"' + ', "a"' * many + "]}"),
        ("empty lists", CHAT, head + '"messages": [[]' + ", []" * (8 * many) + "]}"),
        ("nested lists", CHAT, "[" * (16 * many)),
        ("nested and closed", CHAT, "[" * 180 + "]" * 180),
        ("stop strings", CHAT, json.dumps({"model": model, "messages": ASK, "stop": ["a"] * many})),
        ("tools", CHAT, json.dumps({"model": model, "messages": ASK, "tools": _tools(many // 50)})),
        ("response_fields", "/infill", json.dumps({"response_fields": ["a/b"] * many})),
    ]
    return [Attack(f"{name}", _posting(path, body), "400") for name, path, body in bodies]


def _metadata(count: int) -> str:
    return '"input": "x", "metadata": {' + ", ".join(f'"x{i}": 1' for i in range(count)) + "}}"


def _tools(count: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f"f{i}"}} for i in range(max(2000, count))]


def _odd_requests() -> list[Attack]:
    hosts = ("evil@127.0.0.1", "[::1]evil", "evil.example")
    return [Attack(f"host {host}", partial(_get, headers={"Host": host}), "403") for host in hosts]


def _connections(scale: float, model: str) -> list[Attack]:
    silent, slow = max(40, round(320 * scale)), max(10, round(50 * scale))
    unread, garbage = max(2, round(8 * scale)), max(50, round(2000 * scale))
    return [
        Attack("silent connections", partial(_silent, count=silent), "ok"),
        Attack("slow heads", partial(_slow_heads, count=slow), "ok"),
        Attack("answers not read", partial(_not_read, model=model, count=unread), "ok"),
        Attack("garbage", partial(_garbage, count=garbage), "ok"),
    ]


# --------------------------------------------------------------------------------------------------
# Ways to send


def _posting(path: str, body: dict[str, Any] | str) -> Callable[[int], str]:
    data = body if isinstance(body, str) else json.dumps(body)
    return lambda port: _post(port, path, data)


def _post(port: int, path: str, body: str) -> str:
    """The status, or "left" if the answer takes longer than a client waits."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LEAVES_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except TimeoutError:
        return "left"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)[:60]
    finally:
        connection.close()


def _get(port: int, headers: dict[str, str]) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/status", headers=headers)
        return str(connection.getresponse().status)
    finally:
        connection.close()


def _silent(port: int, count: int) -> str:
    """Silent connections; the server must close all soon after the deadline for headers."""
    return _closed([_connect(port) for _ in range(count)], 30.0)


def _slow_heads(port: int, count: int) -> str:
    connections = [_connect(port) for _ in range(count)]
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    return _closed(connections, 30.0, trickle=b"x-a: b\r\n")


def _not_read(port: int, model: str, count: int) -> str:
    """Streams that no client reads; the server only needs to go on serving others."""
    connections = [_connect(port) for _ in range(count)]
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": 4000, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
    time.sleep(3)
    for connection in connections:
        connection.close()
    return "ok"


def _garbage(port: int, count: int) -> str:
    for _ in range(count):
        with contextlib.suppress(OSError), _connect(port) as connection:
            connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            connection.recv(4096)
    return "ok"


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)


def _closed(connections: list[socket.socket], seconds: float, trickle: bytes = b"") -> str:
    """Return "ok" if the server closes every connection within this time."""
    deadline = time.monotonic() + seconds
    left = list(connections)
    while left and time.monotonic() < deadline:
        time.sleep(1)
        left = [connection for connection in left if not _is_closed(connection, trickle)]
    for connection in connections:
        connection.close()
    return f"{len(left)} still open" if left else "ok"


def _is_closed(connection: socket.socket, trickle: bytes) -> bool:
    connection.setblocking(False)
    try:
        if trickle:
            connection.send(trickle)
        return connection.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
