"""Sockets, signals, and graceful shutdown.

The first SIGTERM or SIGINT begins the drain: running requests may end within the grace period, new
ones get 503. A second signal cancels running requests; the process then ends within a second.
"""

import asyncio
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from sounding.server.app import application
from sounding.server.http.connections import (
    ACCEPTED_AT_ONCE,
    WAITING,
    Connections,
    TimedConnection,
    most_connections,
    quiet,
)
from sounding.server.service import Service

log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 2  # to send the rest of answers after the engine has stopped
_HURRY_SECONDS = 0.4  # the same after a second signal
_LAST_RESORT_SECONDS = 0.9  # after a second signal, until the process is ended by force


class Server(uvicorn.Server):
    """A uvicorn server that drains before it stops."""

    def __init__(
        self,
        service: Service,
        *,
        grace_seconds: float = 30.0,
        ready: Callable[[], None] = lambda: None,
        connections: Connections | None = None,
    ) -> None:
        """`ready` is called once requests are accepted."""
        config = uvicorn.Config(
            application(service),
            loop="asyncio",  # not uvloop, which other packages bring along: it accepts differently
            http=TimedConnection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        )
        super().__init__(config)
        self.server_state = connections or Connections(most_connections())
        self._service, self._grace_seconds, self._ready = service, grace_seconds, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        quiet(self._loop)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(WAITING)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining or self._loop is None:
            self.hurry()
        else:
            self.drain()

    def drain(self) -> None:
        """Begin the drain; callable from any thread."""
        self._service.draining = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin_drain)

    def hurry(self) -> None:
        """Cancel all requests; callable from any thread.

        Cancelled requests send their clients an error, and the drain goes on. Connections that are
        still open shortly after are closed.
        """
        if self._loop is None:
            self.should_exit = self.force_exit = True
            return
        threading.Thread(target=self._service.engine.close, daemon=True).start()
        self._loop.call_soon_threadsafe(
            lambda loop: loop.call_later(_HURRY_SECONDS, self._cut_off), self._loop
        )

    def _cut_off(self) -> None:
        self.should_exit = True
        self.config.timeout_graceful_shutdown = 0
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _begin_drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        log.info("draining for at most %g seconds", self._grace_seconds)
        # The engine finishes running requests, cancels the rest after the grace period, and stops.
        await asyncio.to_thread(self._service.engine.close, self._grace_seconds)
        await self._service.ledger.idle()
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 selects a free port. Raises OSError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol given, asyncio sets TCP_NODELAY. Without it, the second packet of an answer
    # on a keep-alive connection waits 40 ms for an acknowledgement (Nagle).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether the address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _OfProcess(Server):
    """The server of a process of its own, which it ends by force where a thread does not end.

    A thread that tokenizes cannot be cancelled, and Python would wait for it at exit.
    """

    def hurry(self) -> None:
        timer = threading.Timer(_LAST_RESORT_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()
        super().hurry()


def serve(
    service: Service,
    listener: socket.socket,
    *,
    grace_seconds: float = 30.0,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until told to stop; see `Server`."""
    service.warm()
    server = _OfProcess(service, grace_seconds=grace_seconds, ready=ready)
    try:
        server.run(sockets=[listener])
    finally:
        service.engine.close()
