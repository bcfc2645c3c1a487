"""Rollouts sampled by actors of Ray: the weights go to all of them before every round.

Each actor holds the weights of one version, and answers calls of that version only: a token in the
log of a round is of the weights that the log's header names. Where an actor is lost, another is
started with the same weights, and its answers go on elsewhere behind what is logged.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sounding.cluster import require_ray
from sounding.cluster.messages import Item, Refused
from sounding.cluster.prefix_index import PrefixIndex
from sounding.cluster.remote_engine import RemoteEngine, ReplicaLost
from sounding.cluster.replica import EngineReplica
from sounding.cluster.serving import connect, first_line
from sounding.config import ModelConfig
from sounding.engine.engine import Engine
from sounding.engine.network import Network
from sounding.engine.requests import EngineLike, EngineStats
from sounding.engine.settings import EngineSettings
from sounding.model.transformer import Transformer
from sounding.native.network import KernelNetwork
from sounding.posttrain.open_runs import MakeSampler
from sounding.posttrain.run_configs import RolloutsConfig
from sounding.posttrain.sampler import Sampler
from sounding.simulation import DEPLOYED, EXACT, Simulation
from sounding.weights.raw import RawTensor


@dataclass(frozen=True)
class SampledWeights:
    """What an actor samples from: weights as they are deployed, and how the engine runs them."""

    version: int
    """Counts the hand-overs of a run."""
    config: ModelConfig
    tensors: Mapping[str, RawTensor]
    simulation: Simulation
    settings: EngineSettings


class RolloutActor:
    """One engine in a process of its own, on the weights that it was given last."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._replica: EngineReplica | None = None
        self._version = -1

    async def load(self, weights: SampledWeights) -> None:
        """Sample from these weights from now on. States of older ones are dropped."""
        self._replica = None  # ends the engine
        self._replica = await asyncio.to_thread(EngineReplica, lambda: _engine(weights), self._name)
        self._version = weights.version

    async def generate(
        self, version: int, packed: bytes, max_seconds: float | None, blocks: list[bytes]
    ) -> AsyncIterator[list[Item]]:
        """See `EngineReplica.generate`. Raises ValueError where it holds another version."""
        if self._replica is None or self._version != version:
            raise ValueError(f"{self._name} holds weights {self._version}, asked for {version}")
        async for batch in self._replica.generate(packed, max_seconds, blocks):
            yield batch

    async def check(self, packed: bytes) -> Refused | None:
        """See `EngineReplica.check`."""
        assert self._replica is not None
        return await self._replica.check(packed)

    async def stats(self) -> tuple[str, EngineStats]:
        """See `EngineReplica.stats`."""
        assert self._replica is not None
        return await self._replica.stats()


def _engine(weights: SampledWeights) -> tuple[Engine, None]:
    network = KernelNetwork(weights.config, weights.tensors, weights.simulation)
    return Engine(network, None, weights.settings, stop_tokens=()), None


class ActorPool:
    """So many actors; one that is lost is replaced by another with the weights of the rest."""

    def __init__(self, actors: int, cpus: int = 1) -> None:
        """Raises ValueError for fewer than one."""
        import ray

        if actors < 1:
            raise ValueError(f"actors = {actors} must be at least 1")
        # Calls of an actor run at once; its engine limits how many are answered at once.
        options = {"num_cpus": cpus, "max_concurrency": 1000}
        self._remote = ray.remote(**options)(RolloutActor)
        self._numbers = itertools.count()
        self._weights: Any = None
        self._context_tokens = 0
        self.version = -1
        self.actors: dict[str, Any] = {}
        """Handles of Ray by name."""
        for _ in range(actors):
            self._start()

    def _start(self) -> Any:
        name = f"rollouts-{next(self._numbers)}"
        self.actors[name] = self._remote.remote(name)
        return self.actors[name]

    def load(self, weights: SampledWeights) -> None:
        """Hand weights to all actors, and wait until they have them."""
        import ray
        from ray.exceptions import RayActorError

        self._weights, self.version = ray.put(weights), weights.version
        for name, actor in list(self.actors.items()):
            try:
                ray.get(actor.load.remote(self._weights))
            except RayActorError:
                self.replace(name)

    def replace(self, name: str) -> None:
        """Start another actor in the place of one that is lost. Safe to call twice."""
        if self.actors.pop(name, None) is not None:
            self._start().load.remote(self._weights)

    def stop(self) -> None:
        """End all actors."""
        import ray

        while self.actors:
            ray.kill(self.actors.popitem()[1])


class ActorReplicas:
    """The `Replicas` of one round, over the actors of a pool."""

    def __init__(self, pool: ActorPool) -> None:
        self._pool = pool
        self._index = PrefixIndex()
        self._running: Counter[str] = Counter()

    async def generate(
        self, packed: bytes, max_seconds: float | None, blocks: list[bytes]
    ) -> AsyncGenerator[list[Item], None]:
        """See `Replicas`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        name = self._choose(blocks)
        self._running[name] += 1
        call = self._pool.actors[name].generate.options(num_returns="streaming")
        answer, whole = call.remote(self._pool.version, packed, max_seconds, blocks), False
        try:
            async for batch in answer:
                yield await batch
            whole = True
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):  # an actor that is loading still
                raise ReplicaLost(first_line(error.cause)) from error
            raise
        except RayError as error:
            self._pool.replace(name)
            self._index.keep_only(self._pool.actors)
            raise ReplicaLost(first_line(error)) from error
        finally:
            self._running[name] -= 1
            if not whole:
                ray.cancel(answer)

    def _choose(self, blocks: Sequence[bytes]) -> str:
        loads = {name: self._running[name] for name in self._pool.actors}
        name = self._index.order(loads, blocks)[0]
        self._index.record(name, blocks)
        return name

    async def check(self, packed: bytes) -> Refused | None:
        """See `Replicas`."""
        from ray.exceptions import RayError

        try:
            return await next(iter(self._pool.actors.values())).check.remote(packed)
        except RayError as error:
            raise ReplicaLost(first_line(error)) from error

    async def stats(self) -> Sequence[tuple[str, EngineStats]]:
        """See `Replicas`."""
        return [await actor.stats.remote() for actor in list(self._pool.actors.values())]

    def close(self) -> None:
        """Nothing: the actors stay for the next round."""


class ActorSampler(Sampler):
    """A `Sampler` whose engine is the actors of a pool; answers are scored here."""

    def __init__(self, model: Transformer, pool: ActorPool, width: int) -> None:
        """`width` is that of each actor."""
        super().__init__(model, width=width)
        self._pool = pool

    def _start_engine(self, network: Network) -> EngineLike:
        if not isinstance(network, KernelNetwork):
            raise ValueError(
                "rollouts by actors need a network that the C++ kernels serve (bfloat16, kernels "
                "built, rollouts.reference=false); leave --actors out to sample in this process"
            )
        simulation = DEPLOYED if self._model.simulation.weights else EXACT
        weights = SampledWeights(
            self._pool.version + 1, self._model.config, self._tensors, simulation, self._settings()
        )
        self._pool.load(weights)
        longest = self._model.config.max_position_embeddings
        return RemoteEngine(ActorReplicas(self._pool), longest)


@contextmanager
def rollout_actors(actors: int, address: str | None = None, cpus: int = 1) -> Iterator[MakeSampler]:
    """What makes the sampler of a run, while its actors live.

    For `address` see `start_replicas`. Raises ValueError where Ray is missing, or there is no such
    cluster.
    """
    require_ray("sampling rollouts by actors")
    import ray

    connect(address, actors * cpus)
    pool = ActorPool(actors, cpus)

    def make(model: Transformer, config: RolloutsConfig) -> Sampler:
        return ActorSampler(model, pool, max(1, -(-config.width // actors)))

    try:
        yield make
    finally:
        pool.stop()
        ray.shutdown()
