"""Replicas as one engine: an `EngineLike` whose requests are answered elsewhere.

A thread with an event loop passes items of replicas on to the streams of readers. Where a replica
is lost, a request that has not begun to stream goes to another one. An answer that a client has
seen a part of ends with an error. One that is sent in one piece is begun anew: its seed gives the
same tokens again, which is checked as far as they were known.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from sounding.cluster.messages import Accepted, Item, Pushed, Refused, pack
from sounding.cluster.prefix_index import prefix_blocks
from sounding.engine.requests import (
    DraftCounts,
    EngineStats,
    Finished,
    FinishReason,
    GenerationRequest,
    Overloaded,
    TokenEvent,
    Usage,
)
from sounding.engine.stream import EventStream
from sounding.native.expert_store import sum_of_stats

_log = logging.getLogger(__name__)

_START_SECONDS = 120.0  # until a replica takes a request, such as while all are being replaced
_MOST_LOSSES = 4  # a request that takes so many replicas down with it is given up
_RETRY_SECONDS = 0.1  # Serve may name a dead replica once more before it hears of its death
_STATS_SECONDS = 1.0
_TOTALS = (
    "steps", "prompt_tokens", "hit_tokens", "completion_tokens", "drafted_tokens", "accepted_tokens"
)  # fmt: skip
_GAUGES = (
    "running", "waiting", "state_bytes", "state_limit_bytes", "prefix_bytes", "prefix_limit_bytes",
    "cached_prefixes",
)  # fmt: skip


class ReplicaLost(Exception):
    """The process of a replica has ended, or cannot be reached, before its answer ended."""


@runtime_checkable
class Replicas(Protocol):
    """Replicas that run somewhere; their methods are called in one event loop."""

    def generate(
        self, packed: bytes, max_seconds: float | None, blocks: list[bytes]
    ) -> AsyncGenerator[list[Item], None]:
        """See `EngineReplica.generate`; closing the generator cancels the request.

        Raises ReplicaLost.
        """

    async def check(self, packed: bytes) -> Refused | None:
        """See `EngineReplica.check`. Raises ReplicaLost."""

    async def stats(self) -> Sequence[tuple[str, EngineStats]]:
        """Name and counters of every replica that runs."""

    def close(self) -> None:
        """Stop the replicas; called from any thread, once."""


@dataclass(frozen=True)
class AdapterNames:
    """The adapters that every replica has loaded."""

    names: Sequence[str] = ()


class RemoteEngine:
    """An `EngineLike` over replicas."""

    def __init__(self, replicas: Replicas, context_tokens: int) -> None:
        """Starts the thread; `close` ends it, and the replicas."""
        self.replicas = replicas
        self._context_tokens = context_tokens
        self._calls: set[_Call] = set()
        self._changed = threading.Condition()
        self._submitted = 0
        self._closing = False
        self._closed = threading.Event()
        self._stats: dict[str, EngineStats] = {}
        self._live: set[str] = set()
        self.loop = asyncio.new_event_loop()
        self._gathering: asyncio.Task[None] = self.loop.create_task(self._gather())
        self._thread = threading.Thread(target=self.loop.run_forever, name="replicas", daemon=True)
        self._thread.start()

    @property
    def context_tokens(self) -> int:
        """See `EngineLike`."""
        return self._context_tokens

    def check(self, request: GenerationRequest) -> None:
        """See `EngineLike`. Raises Overloaded where no replica answers."""
        packed = pack(request)

        async def ask() -> Refused | None:
            for _ in range(_MOST_LOSSES):
                with contextlib.suppress(ReplicaLost):
                    async with asyncio.timeout(_START_SECONDS):
                        return await self.replicas.check(packed)
            raise TimeoutError

        try:
            refused = asyncio.run_coroutine_threadsafe(ask(), self.loop).result()
        except TimeoutError:
            raise Overloaded("no replica answers; try again later") from None
        if refused is not None:
            raise ValueError(refused.message)

    def submit(self, request: GenerationRequest) -> EventStream:
        """See `EngineLike`. Returns once a replica has taken the request."""
        with self._changed:
            if self._closing:
                raise Overloaded("the engine is closing and takes no more requests")
            self._submitted += 1
            call = _Call(self, request, f"r{self._submitted}")
            self._calls.add(call)
        asyncio.run_coroutine_threadsafe(call.run(), self.loop)
        call.accepted.result()
        return call.stream

    def stats(self) -> EngineStats:
        """The sum over replicas, as of the last second; totals include replicas that have ended.

        `extra["replicas"]` has the parts by the names of the replicas.
        """
        every = dict(self._stats)
        live = [every[name] for name in self._live if name in every]
        sums = {name: sum(getattr(one, name) for one in every.values()) for name in _TOTALS}
        sums |= {name: sum(getattr(one, name) for one in live) for name in _GAUGES}
        with self._changed:
            sums["waiting"] += sum(not call.accepted.done() for call in self._calls)
        # The store on disk may be one for all replicas.
        for name in ("stored_prefixes", "stored_bytes"):
            sums[name] = max((getattr(one, name) for one in live), default=0)
        loads = [one.expert_load for one in every.values() if one.expert_load]
        load = [[sum(n) for n in zip(*rows, strict=True)] for rows in zip(*loads, strict=True)]
        parts = {name: _numbers(every[name]) for name in sorted(self._live) if name in every}
        drafts: dict[str, DraftCounts] = {}
        for one in every.values():
            for drafter, counts in one.drafts.items():
                drafts[drafter] = drafts.get(drafter, DraftCounts()) + counts
        stores = sum_of_stats([one.experts for one in live if one.experts is not None])
        return EngineStats(
            **sums, expert_load=load, drafts=drafts, experts=stores, extra={"replicas": parts}
        )

    def close(self, grace_seconds: float = 0.0) -> None:
        """See `EngineLike`; also stops the replicas. A second call cuts the grace period short."""
        with self._changed:
            first, self._closing = not self._closing, True
            self._changed.wait_for(lambda: not self._calls, grace_seconds)
            left = list(self._calls)
        for call in left:
            call.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._calls)
        if not first:
            self._closed.wait()
            return
        asyncio.run_coroutine_threadsafe(self._end_gathering(), self.loop).result()
        self.replicas.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._closed.set()

    def ended(self, call: "_Call") -> None:
        """Called by a call when it has ended."""
        with self._changed:
            self._calls.discard(call)
            self._changed.notify_all()

    async def _gather(self) -> None:
        while True:
            try:
                found = dict(await self.replicas.stats())
                self._stats |= found
                self._live = set(found)
            except Exception as error:  # replicas come and go: the next second says more
                _log.debug("no statistics of replicas: %s", error)
            await asyncio.sleep(_STATS_SECONDS)

    async def _end_gathering(self) -> None:
        self._gathering.cancel()
        await asyncio.wait([self._gathering])


class _Call:
    """One request on its way to a replica and back."""

    def __init__(self, engine: RemoteEngine, request: GenerationRequest, request_id: str) -> None:
        self._engine, self._request = engine, request
        self.stream = EventStream(request_id, self.cancel)
        self.accepted: Future[None] = Future()
        """Set, or failed with the error of `submit`."""
        self._began = time.monotonic()
        self._finished = self._cancelled = False
        self._known: dict[type, list[int]] = {TokenEvent: [], Pushed: []}
        """Tokens that the reader, and the request's rule, have."""
        self._taken = False
        """Whether the replica that is being tried has accepted the request."""
        self._repeated: dict[type, int] = {}
        """How many of these the replica has sent once more, after another was lost."""
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            if self._cancelled:
                raise asyncio.CancelledError
            self._packed = pack(self._request)  # before its rule is given anything
            self._blocks = prefix_blocks(self._request.prompt, self._request.adapter)
            await self._until_answered()
        except asyncio.CancelledError:
            self._end("cancelled")
        except Exception as error:
            _log.exception("request %s failed", self.stream.request_id)
            self._fail(f"the request to a replica failed: {error}")
        finally:
            self._engine.ended(self)

    async def _until_answered(self) -> None:
        """Try replicas until one answers, or the answer can not be begun anew."""
        losses = 0
        while time.monotonic() < self._began + _START_SECONDS or self._taken:
            self._taken = False
            try:
                await self._attempt()
                return
            except ReplicaLost as error:
                _log.warning("request %s has lost its replica: %s", self.stream.request_id, error)
            losses += self._taken
            if losses == _MOST_LOSSES or (self._begun and self._request.streamed):
                break
            await asyncio.sleep(_RETRY_SECONDS)
        self._fail(self._loss(), lost=True)

    def cancel(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._engine.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self._cancelled = True
        if not self._finished and self._task is not None:
            self._task.cancel()

    async def _attempt(self) -> None:
        """Send the request to one replica. Raises ReplicaLost."""
        seconds = self._request.max_seconds
        if seconds is not None:
            seconds -= time.monotonic() - self._began
            if seconds <= 0:
                self._end("time")
                return
        self._repeated = dict.fromkeys(self._known, 0)
        items = self._engine.replicas.generate(self._packed, seconds, self._blocks)
        async with contextlib.aclosing(items):
            try:
                async with asyncio.timeout(_START_SECONDS):
                    self._take(await anext(items))
            except TimeoutError:
                self._refuse(Overloaded(f"no replica took the request in {_START_SECONDS:g} s"))
            except StopAsyncIteration:
                raise ReplicaLost("it sent nothing") from None
            if not self._finished:
                async for batch in items:
                    self._take(batch)
        if not self._finished:
            raise ReplicaLost("its answer has no end")

    def _take(self, batch: Sequence[Item]) -> None:
        for item in batch:
            if self._finished:
                return
            if isinstance(item, Accepted):
                self._taken = True
                if not self.accepted.done():
                    self.accepted.set_result(None)
            elif isinstance(item, Refused):
                kind = ValueError if item.kind == "value" else Overloaded
                self._refuse(kind(item.message))
            elif isinstance(item, Finished):
                self._finished = True
                self.stream.put(item)
            elif self._repeats(item):
                pass
            elif isinstance(item, TokenEvent):
                self.stream.put(item)
            elif self._request.answer is not None:
                self._request.answer.push(item.token, item.logprob)

    def _repeats(self, item: TokenEvent | Pushed) -> bool:
        """Whether a token is known from a replica that was lost; one that differs ends the call."""
        known, at = self._known[type(item)], self._repeated[type(item)]
        self._repeated[type(item)] = at + 1
        if at == len(known):
            known.append(item.token)
            return False
        if known[at] != item.token:
            self._fail(f"{self._loss()}; another replica began it differently")
        return True

    def _loss(self) -> str:
        if self._begun:
            return (
                f"the replica that wrote this answer was lost after {self._num_tokens} tokens; "
                "send the request again"
            )
        return "replicas were lost again and again before this answer began; it may be the cause"

    @property
    def _begun(self) -> bool:
        return any(self._known.values())

    @property
    def _num_tokens(self) -> int:
        return len(self._known[TokenEvent])

    def _refuse(self, error: ValueError | Overloaded) -> None:
        """Fail `submit`; where it has returned already, after a loss, fail the answer."""
        self._finished = True
        if self.accepted.done():
            self.stream.put(Finished(reason="error", error=str(error), usage=self._usage()))
        else:
            self.accepted.set_exception(error)

    def _fail(self, message: str, *, lost: bool = False) -> None:
        self._end("error", message, lost=lost)

    def _end(self, reason: FinishReason, error: str | None = None, *, lost: bool = False) -> None:
        if self._finished:
            return
        self._finished = True
        self.stream.put(Finished(reason=reason, error=error, lost=lost, usage=self._usage()))
        if not self.accepted.done():
            self.accepted.set_result(None)

    def _usage(self) -> Usage:
        """What is known here of an answer whose replica did not end it."""
        return Usage(prompt_tokens=len(self._request.prompt), completion_tokens=self._num_tokens)


def _numbers(stats: EngineStats) -> Mapping[str, int]:
    """The counters and sizes of one replica."""
    values = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return {name: value for name, value in values.items() if isinstance(value, int)}
