"""The queue of one request's events, from the engine's thread to its reader."""

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from sounding.engine.requests import Event, Finished


class EventStream:
    """A `Stream`: the engine puts, one reader takes, in a thread or in an event loop."""

    def __init__(self, request_id: str, cancel: Callable[[], None]) -> None:
        self.request_id = request_id
        self.prefilled = 0
        """Prompt tokens prefilled so far, including cache hits."""
        self._cancel = cancel
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None

    def put(self, event: Event) -> None:
        """Append an event; never blocks."""
        with self._changed:
            self._events.append(event)
            if isinstance(event, Finished):
                # There is nothing left to cancel, and what the sequence held is free at once, not
                # when Python gets round to looking for cycles.
                self._cancel = _nothing
            self._changed.notify()
            wake = self._wake
        if wake is not None:
            try:
                wake()
            except RuntimeError:
                self._wake = None  # the reader's event loop is closed

    def cancel(self) -> None:
        """See `Stream`."""
        self._cancel()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for an event; return True if there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._events), seconds)

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events)
                event = self._events.popleft()
            yield event
            if isinstance(event, Finished):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        import asyncio  # takes a while to import, which readers in a thread need not wait for

        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        while True:
            ready.clear()  # before looking, so that nothing put afterwards goes unnoticed
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, Finished):
                    return
            await ready.wait()


def _nothing() -> None:
    pass
