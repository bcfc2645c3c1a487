"""A server on a port of this machine, for clients that know nothing of tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from sounding.engine.requests import EngineLike
from sounding.server.http.connections import Connections
from sounding.server.http.serve import Server, listen
from sounding.server.options import ServerOptions
from sounding.server.service import Service
from sounding.text.tokenizer import Tokenizer
from tests.server.scripted import ScriptedEngine

# Machines are shared and threads wait for each other: only a hang takes longer.
HANG_SECONDS = 60.0


def post(url: str, **how: Any) -> httpx.Response:
    return httpx.post(url, timeout=HANG_SECONDS, **how)


def get(url: str, **how: Any) -> httpx.Response:
    return httpx.get(url, timeout=HANG_SECONDS, **how)


class Live:
    """A running server: its address, and what is inside."""

    def __init__(self, engine: EngineLike, service: Service, server: Server, port: int) -> None:
        self.engine, self.service, self.server, self.port = engine, service, server, port
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def live(
    engine: EngineLike | None = None,
    settings: ServerOptions | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    grace_seconds: float = 5.0,
    connections: Connections | None = None,
    port: int = 0,
) -> Iterator[Live]:
    engine = ScriptedEngine() if engine is None else engine
    if tokenizer is None:
        assert isinstance(engine, ScriptedEngine)
        tokenizer = engine.tokenizer
    service = Service(engine, tokenizer, settings or ServerOptions())
    server = Server(service, grace_seconds=grace_seconds, connections=connections)
    listener = listen("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield Live(engine, service, server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(HANG_SECONDS)
        engine.close()
        assert not thread.is_alive(), "the server did not stop"
