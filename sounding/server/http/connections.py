"""Limits on connections: their number, and timeouts on idle and stalled ones.

uvicorn waits for ever for the head of a request and for a client that does not read, and asyncio
accepts until no file handle is left. Here every wait has a timeout, and above the limit the
connection that has been idle longest is closed.
"""

import asyncio
import errno
import logging
import resource
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 16
WAITING = 1024  # backlog: connections that the system queues until they are accepted
_MOST_CONNECTIONS = 1024
_OTHER_FILES = 64  # handles for everything else: weights, prefix store, traces
_HEAD_SECONDS = 10.0
_STALLED_SECONDS = 60.0  # timeout of a client that does not read its answer
_SAME_LINE_SECONDS = 60.0
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def most_connections() -> int:
    """The number of connections that the limit of file handles allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    # asyncio accepts a whole backlog before it reports the first connection.
    return max(8, min(_MOST_CONNECTIONS, soft - 4 * ACCEPTED_AT_ONCE - _OTHER_FILES))


class Connections(ServerState):
    """All connections of a server, and the idle ones, without a request in progress."""

    def __init__(self, most: int, *, head_seconds: float = _HEAD_SECONDS) -> None:
        super().__init__()
        self.most, self.head_seconds = most, head_seconds
        self.idle: dict[TimedConnection, None] = {}
        """In the order in which they became idle."""

    def make_room(self) -> None:
        """Close the connections that have been idle longest while there are too many.

        If none is idle, close the newest, which has no request yet.
        """
        while len(self.connections) > self.most and self.idle:
            next(iter(self.idle)).drop()


class TimedConnection(H11Protocol):
    """One connection, with a timeout on every wait."""

    server_state: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        state = self.server_state
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._head_begun = False
        state.make_room()
        if len(state.connections) > state.most:
            self.drop()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.idle.pop(self, None)
        self._stop_timers()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close it now and discard unsent data."""
        self.server_state.idle.pop(self, None)
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self in self.server_state.idle:
            self._head_begun = True
            if self._head_timer is None:  # first bytes of the next request (keep-alive)
                self._wait_for_head()
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # a request has begun
            self.server_state.idle.pop(self, None)
            self._head_begun = False
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.server_state.idle[self] = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # closing would wait until the client reads
            self.drop()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(_STALLED_SECONDS, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _wait_for_head(self) -> None:
        self.server_state.idle.setdefault(self, None)
        self._head_timer = self.loop.call_later(self.server_state.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            if self._head_begun and self.conn.our_state is h11.IDLE:
                self.transport.write(_TOO_LATE)
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None


class Repeats(logging.Filter):
    """Passes the same warning once a minute, so that clients cannot fill the disk with logs.

    Errors with a traceback always pass, except those of cancelled requests.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info is not None:
            return not isinstance(record.exc_info[1], asyncio.CancelledError)
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        last = self._since.get(str(record.msg))
        if last is not None and now - last < _SAME_LINE_SECONDS:
            return False
        self._since[str(record.msg)] = now
        return True


_repeats = Repeats()


def quiet(loop: asyncio.AbstractEventLoop) -> None:
    """Limit how often warnings that clients can cause are logged."""
    for name in ("uvicorn.error", __name__):
        logging.getLogger(name).addFilter(_repeats)  # the same one is not added twice
    loop.set_exception_handler(_on_loop_error)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _NO_MORE:
        log.error("no connection can be accepted: %s; trying again each second", error.strerror)
    else:
        loop.default_exception_handler(context)
