"""Connections that say nothing, and those that read nothing, make room for others."""

import asyncio
import contextlib
import errno
import json
import logging
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from sounding.server.http import connections
from sounding.server.http.connections import Connections, most_connections, quiet
from tests.server.live import HANG_SECONDS, Live, get, live, post
from tests.server.scripted import ScriptedEngine

CHAT = "/v1/chat/completions"
ASK = {"model": "sounding", "messages": [{"role": "user", "content": "Hi"}]}


def connect(server: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECONDS)


def ended(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    got = b""
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


def test_a_head_that_does_not_come() -> None:
    with live(connections=Connections(100, head_seconds=0.05)) as server:
        with connect(server) as silent, connect(server) as slow:
            slow.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n")
            assert ended(silent) == b""
            assert ended(slow).startswith(b"HTTP/1.1 408 ")
        with connect(server) as kept:
            kept.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
            kept.sendall(b"GET /hea")  # the next request begins and does not go on
            assert b"HTTP/1.1 408 " in ended(kept)
        assert not server.server.server_state.connections


def test_an_answer_may_take_longer_than_a_head() -> None:
    with live(ScriptedEngine("word " * 50), connections=Connections(9, head_seconds=0.01)) as it:
        engine = it.engine
        assert isinstance(engine, ScriptedEngine)
        engine.pace_seconds = 0.005
        assert post(it.url + CHAT, json=ASK).status_code == 200


def test_the_connection_that_has_been_idle_longest_makes_room() -> None:
    with live(connections=Connections(4)) as server:
        first, *others = [connect(server) for _ in range(4)]
        assert get(server.url + "/health").status_code == 200
        assert ended(first) == b""
        for connection in others:
            connection.settimeout(0.01)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        for _ in range(50):  # however many there are, whoever asks is answered
            others.append(connect(server))
            assert get(server.url + "/health").status_code == 200
        assert len(server.server.server_state.connections) <= 4
        for connection in (first, *others):
            connection.close()


def test_those_at_work_stay() -> None:
    with live(connections=Connections(2)) as server:
        engine = server.engine
        assert isinstance(engine, ScriptedEngine)
        engine.hold.clear()
        with (
            httpx.Client(timeout=HANG_SECONDS) as one,
            httpx.Client(timeout=HANG_SECONDS) as two,
            one.stream("POST", server.url + CHAT, json=ASK | {"stream": True}) as first,
            two.stream("POST", server.url + CHAT, json=ASK | {"stream": True}) as second,
        ):
            with pytest.raises(httpx.TransportError):
                get(server.url + "/health")
            engine.hold.set()
            assert all("[DONE]" in answer.read().decode() for answer in (first, second))


def test_a_client_that_reads_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_STALLED_SECONDS", 0.05)
    engine = ScriptedEngine("word " * 100_000, context_tokens=1 << 20)
    with live(engine) as server, connect(server) as connection:
        body = json.dumps(ASK | {"stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + HANG_SECONDS
        while not server.service.ledger.recent and time.monotonic() < deadline:
            time.sleep(0.001)
        assert [run.state for run in server.service.ledger.recent] == ["cancelled"]


def test_what_happens_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        quiet(loop)
        connections._repeats._since.clear()
        error = OSError(errno.EMFILE, "Too many open files")
        with caplog.at_level(logging.INFO):
            for _ in range(1000):
                context: dict[str, Any] = {"message": "accept", "exception": error}
                loop.call_exception_handler(context)
                logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        assert len(caplog.records) == 2
        assert "Too many open files" in caplog.text and "Traceback" not in caplog.text
    finally:
        loop.close()


def test_there_are_handles_left_for_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((256, 128), (1024, 896), (1 << 20, 1024), (64, 8)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, s=soft: (s, s))
        assert most_connections() == most


_SERVER = """
import logging, resource, sys
from sounding.server.http.serve import listen, serve
from sounding.server.options import ServerOptions
from sounding.server.service import Service
from tests.server.scripted import ScriptedEngine
logging.basicConfig(level=logging.INFO)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
engine = ScriptedEngine("word " * 100_000, context_tokens=1 << 20)
engine.pace_seconds = 0.01
listener = listen("127.0.0.1", 0)
ready = lambda: print(listener.getsockname()[1], flush=True)
serve(Service(engine, engine.tokenizer, ServerOptions()), listener, grace_seconds=3600, ready=ready)
"""


def test_as_many_connections_as_there_are_handles_and_a_second_signal() -> None:
    """In a process of its own: it runs out of handles, and then is told twice to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with contextlib.ExitStack() as closing:
        closing.callback(process.kill)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            closing.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert get(url + "/health").status_code == 200
        client = closing.enter_context(httpx.Client(timeout=HANG_SECONDS))
        asked = client.stream("POST", url + CHAT, json=ASK | {"stream": True})
        pieces = closing.enter_context(asked).iter_raw()
        next(pieces)
        process.send_signal(signal.SIGTERM)
        while get(url + "/health").json() != {"status": "draining"}:
            pass
        process.send_signal(signal.SIGTERM)
        # The client is told, or cut off where the machine is slow; nobody waits for the hour.
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert b"cancelled" in b"".join(pieces)
        _, log = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode in (0, 1)
    assert "Traceback" not in log and len(log) < 2000
