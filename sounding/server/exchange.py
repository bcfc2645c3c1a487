"""Run the generations of one HTTP request: submit them, merge their events, record them.

A separate task always reads the engine's events to the end, even after a disconnect, so that
metrics and traces include cancelled requests.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sounding.engine.requests import (
    EngineLike,
    Event,
    Finished,
    GenerationRequest,
    Overloaded,
    Stream,
    TokenEvent,
)
from sounding.server.http.errors import Refusal
from sounding.server.work_threads import Threads


@dataclass(eq=False)
class EngineRun:
    """One generation and its progress. Times are those of `time.monotonic`."""

    route: str
    request: GenerationRequest
    run_id: str
    began_at: float = field(default_factory=time.monotonic)
    began_unix: float = field(default_factory=time.time)
    token_times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finished: Finished | None = None
    ended_at: float | None = None

    @property
    def state(self) -> str:
        if self.finished is not None:
            return self.finished.reason
        return "decoding" if self.tokens else "waiting"

    @property
    def first_token_seconds(self) -> float | None:
        return self.token_times[0] - self.began_at if self.token_times else None

    @property
    def seconds(self) -> float:
        return (self.ended_at or time.monotonic()) - self.began_at


class Exchange:
    """The runs of one request, with their events merged in order of arrival.

    Use as an asynchronous context manager: on exit it cancels what is still running.
    """

    def __init__(
        self, runs: Sequence[EngineRun], streams: Sequence[Stream], over: "Ledger"
    ) -> None:
        self.runs = runs
        self._streams, self._ledger = streams, over
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        for index, (run, stream) in enumerate(zip(runs, streams, strict=True)):
            over.watch(run, self._pump(index, run, stream))

    async def __aenter__(self) -> "Exchange":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        for run, stream in zip(self.runs, self._streams, strict=True):
            if run.finished is None:
                stream.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (index of the run, event) until all runs have finished."""
        left = len(self.runs)
        while left:
            index, event = await self._events.get()
            yield index, event
            left -= isinstance(event, Finished)

    async def _pump(self, index: int, run: EngineRun, stream: Stream) -> None:
        try:
            async for event in stream:
                now = time.monotonic()
                if isinstance(event, TokenEvent):
                    run.tokens.append(event.token)
                    run.token_times.append(now)
                    self._ledger.token(run)
                else:
                    run.finished, run.ended_at = event, now
                self._events.put_nowait((index, event))
        finally:
            if run.finished is None:  # a fault of the engine, or the event loop is closing
                run.finished = Finished(reason="error", error="the engine sent no final event")
                run.ended_at = time.monotonic()
                self._events.put_nowait((index, run.finished))


class Ledger:
    """All runs in progress, the last few that finished, and the observers of each."""

    def __init__(self, keep: int = 20) -> None:
        self.running: dict[str, EngineRun] = {}
        self.recent: list[EngineRun] = []
        self._keep = keep
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_token: list[Callable[[EngineRun], None]] = []
        self.on_end: list[Callable[[EngineRun], None]] = []

    def watch(self, run: EngineRun, pump: Any) -> None:
        self.running[run.run_id] = run
        task = asyncio.ensure_future(pump)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._over(run, done))

    def token(self, run: EngineRun) -> None:
        for tell in self.on_token:
            tell(run)

    def _over(self, run: EngineRun, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        del self.running[run.run_id]
        self.recent = [run, *self.recent][: self._keep]
        for tell in self.on_end:
            tell(run)

    async def idle(self) -> None:
        """Wait until no run is in progress."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def failure(finished: Finished) -> Refusal | None:
    """The Refusal for a run that failed, None for one that has an answer."""
    if finished.reason == "error":
        return Refusal(500, finished.error or "the engine failed", code="engine_error")
    if finished.reason == "cancelled":
        return Refusal(503, "the answer was cancelled: the server is stopping", code="cancelled")
    return None


def require_ended(finished: Finished) -> None:
    """Raise Refusal for a run that failed."""
    fault = failure(finished)
    if fault is not None:
        raise fault


async def begin(
    engine: EngineLike,
    ledger: Ledger,
    threads: Threads,
    route: str,
    requests: Sequence[GenerationRequest],
) -> Exchange:
    """Submit requests. Raises Refusal if the engine rejects them.

    Runs in a thread, because compiling a grammar can take seconds.
    """
    submitting = threads.begin(partial(_submit, engine, requests))

    def exchange() -> Exchange:
        name = uuid.uuid4().hex
        runs = [
            EngineRun(route, request, name if len(requests) == 1 else f"{name}-{number}")
            for number, request in enumerate(requests)
        ]
        return Exchange(runs, submitting.result(), ledger)

    def cancel_begun(submitted: "asyncio.Future[list[Stream]]") -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            exchange().cancel()

    try:
        await asyncio.shield(submitting)
    except asyncio.CancelledError:  # disconnect: cancel what was just submitted
        submitting.add_done_callback(cancel_begun)
        raise
    except Overloaded as error:
        raise Refusal(429, f"{error}", code="overloaded", retry_after_seconds=1) from None
    except ValueError as error:
        raise Refusal(400, f"{error}", code="invalid_value") from None
    return exchange()


def _submit(engine: EngineLike, requests: Sequence[GenerationRequest]) -> list[Stream]:
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams
