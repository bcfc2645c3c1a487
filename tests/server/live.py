"""A server on a port of this machine, for clients that know nothing of tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sounding.engine.messages import EngineLike
from sounding.server.run import Server, listen
from sounding.server.service import Service
from sounding.server.settings import Settings
from sounding.text.tokenizer import Tokenizer
from tests.server.scripted import ScriptedEngine


class Live:
    """A running server: its address, and what is inside."""

    def __init__(self, engine: EngineLike, service: Service, server: Server, port: int) -> None:
        self.engine, self.service, self.server, self.port = engine, service, server, port
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def live(
    engine: EngineLike | None = None,
    settings: Settings | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    grace_seconds: float = 5.0,
) -> Iterator[Live]:
    engine = ScriptedEngine() if engine is None else engine
    if tokenizer is None:
        assert isinstance(engine, ScriptedEngine)
        tokenizer = engine.tokenizer
    service = Service(engine, tokenizer, settings or Settings())
    server = Server(service, grace_seconds=grace_seconds)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield Live(engine, service, server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        engine.close()
        assert not thread.is_alive(), "the server did not stop"
