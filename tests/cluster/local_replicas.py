"""Replicas in this process, whose loss tests choose: what `RemoteEngine` sees of a cluster."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from sounding.cluster.messages import Item, Refused
from sounding.cluster.remote_engine import RemoteEngine, ReplicaLost
from sounding.cluster.replica import EngineReplica
from sounding.engine.requests import EngineStats, TokenEvent


class LocalReplicas:
    """Replicas that answer in turn. `lose` says which calls are lost: from the number of the call
    to the number of batches that arrive before."""

    def __init__(
        self, replicas: Sequence[EngineReplica], lose: Callable[[int], int | None] = lambda _: None
    ) -> None:
        self.replicas, self.lose = replicas, lose
        self.calls = self.closed = 0
        self.altered: Callable[[int, bytes], bytes] = lambda call, packed: packed
        """What a replica is sent, by the number of the call."""
        self.ended: list[int] = []
        """Calls whose generator was closed."""

    async def generate(
        self, packed: bytes, max_seconds: float | None, blocks: list[bytes]
    ) -> AsyncGenerator[list[Item], None]:
        number, self.calls = self.calls, self.calls + 1
        left, packed = self.lose(number), self.altered(number, packed)
        answer = self.replicas[number % len(self.replicas)].generate(packed, max_seconds, blocks)
        try:
            async for batch in answer:
                if left is not None and (left := left - 1) < 0:
                    raise ReplicaLost("killed")
                yield batch
        finally:
            await answer.aclose()  # type: ignore[attr-defined]  # it is a generator
            self.ended.append(number)

    async def check(self, packed: bytes) -> Refused | None:
        return await self.replicas[0].check(packed)

    async def stats(self) -> Sequence[tuple[str, EngineStats]]:
        return [await replica.stats() for replica in self.replicas]

    def close(self) -> None:
        self.closed += 1


def never(
    packed: bytes, max_seconds: float | None, blocks: list[bytes]
) -> AsyncGenerator[list[Item], None]:
    """A call that no replica takes."""

    async def wait() -> AsyncGenerator[list[Item], None]:
        await asyncio.Event().wait()
        yield []

    return wait()


def tokens_of(engine: RemoteEngine, request: object) -> list[int]:
    """The tokens of a whole answer."""
    events = list(engine.submit(request))  # type: ignore[arg-type]
    return [event.token for event in events if isinstance(event, TokenEvent)]
