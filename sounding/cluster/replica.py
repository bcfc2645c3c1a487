"""One engine as a deployment of Ray Serve: what runs in each replica's process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sounding.cluster.messages import Accepted, Item, Refused, ReportedRule, unpack
from sounding.completion.healing import Healer
from sounding.engine.engine import Engine
from sounding.engine.requests import EngineStats, Finished, Overloaded
from sounding.loading import LoadedModel, open_model
from sounding.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EngineSource:
    """What a replica opens: a model by its folder, which has the same path on all machines."""

    model: str
    prefix_store: str | None = None
    """A folder of prefixes on disk, which replicas of one machine or file system may share."""
    store_bytes: int | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Folders of adapters by name."""
    drafter: str | None = None
    """Folder of a DSpark drafter, or "none"; None: the one in the model's folder, if any."""
    memory_bytes: int | None = None
    """Memory that each replica keeps within, experts on disk if need be."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those of `EngineSettings` that differ from the defaults."""

    def __call__(self) -> tuple[Engine, Tokenizer]:
        """Open it. Raises ValueError for a folder that is no model."""
        opened = open_model(self.model, self.memory_bytes, self.drafter)
        return self.engine_of(opened), opened.tokenizer

    def engine_of(self, opened: LoadedModel) -> Engine:
        """An engine with these settings and adapters."""
        store = Path(self.prefix_store) if self.prefix_store is not None else None
        engine = opened.engine(store, self.store_bytes, **self.settings)
        for name, folder in self.adapters.items():
            engine.adapters.load(name, opened.read_adapter(Path(folder)))
        return engine


@dataclass(frozen=True)
class ReplicaFacts:
    """What the server needs to know of a replica before its first request."""

    context_tokens: int


class EngineReplica:
    """Answers calls of `RemoteEngine`. Methods run in an event loop of their own."""

    def __init__(
        self, source: Callable[[], tuple[Engine, Tokenizer | None]], name: str = ""
    ) -> None:
        """Without a tokenizer requests have no rules that read text. `name` is how statistics
        call it, by default Ray's name of the replica."""
        self._engine, self._tokenizer = source()
        self._name = name or _name_of_replica()

    async def generate(
        self, packed: bytes, max_seconds: float | None, blocks: list[bytes]
    ) -> AsyncIterator[list[Item]]:
        """Answer a request of `pack`, in batches of items.

        `max_seconds` is what is left of the request's; `blocks` are for the router.

        The first item is `Accepted` or `Refused`. Where the call is cancelled, so is the request.
        """
        pushed: list[Item] = []
        request = unpack(packed, self._tokenizer, lambda: self._healer)
        rule = None if request.answer is None else ReportedRule(request.answer, pushed)
        request = replace(request, answer=rule, max_seconds=max_seconds)
        submitting = asyncio.ensure_future(asyncio.to_thread(self._engine.submit, request))
        try:  # in a thread, since compiling a grammar can take seconds
            stream = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel_submitted)
            raise
        except Overloaded as error:
            yield [Refused("overloaded", str(error))]
            return
        except ValueError as error:
            yield [Refused("value", str(error))]
            return
        finished = False
        try:
            yield [Accepted(self._name)]
            async for event in stream:
                finished = isinstance(event, Finished)
                taken = len(pushed)  # the engine's thread may append more meanwhile
                batch = [*pushed[:taken], event]
                del pushed[:taken]
                yield batch
        finally:
            if not finished:
                stream.cancel()

    async def check(self, packed: bytes) -> Refused | None:
        """See `EngineLike.check`."""
        try:
            self._engine.check(unpack(packed, self._tokenizer, lambda: self._healer))
        except ValueError as error:
            return Refused("value", str(error))
        return None

    async def facts(self) -> ReplicaFacts:
        """See `ReplicaFacts`."""
        return ReplicaFacts(self._engine.context_tokens)

    async def stats(self) -> tuple[str, EngineStats]:
        """The replica's name, and its engine's counters since it began."""
        return self._name, self._engine.stats()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica where this raises."""
        if not self._engine.running:
            raise RuntimeError("the engine has failed; its traceback is in the replica's log")

    def __del__(self) -> None:
        """Called by Serve when all answers have ended: the store on disk is completed."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()

    @cached_property
    def _healer(self) -> Healer:
        assert self._tokenizer is not None, "asked for by rules that read text"
        return Healer(self._tokenizer)


def _name_of_replica() -> str:
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id


def _cancel_submitted(submitting: "asyncio.Future[Any]") -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
