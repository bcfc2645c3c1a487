"""Replicas of an engine as a deployment of Ray Serve, for a server in this process.

Serve starts them on the machines of the cluster, replaces those that die, adds and removes some by
the number of requests in progress, and lets those that it removes finish their answers.
"""

import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sounding.cluster import require_ray
from sounding.cluster.messages import Item, Refused
from sounding.cluster.remote_engine import RemoteEngine, ReplicaLost
from sounding.cluster.replica import EngineReplica
from sounding.engine.engine import Engine
from sounding.engine.requests import EngineStats
from sounding.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

APPLICATION = "sounding-engines"
_HEALTH_SECONDS = 1.0
_HEALTH_TIMEOUT_SECONDS = 30.0  # a replica that is busy answers late, one that is dead at once
_MOST_ONGOING = 1024  # requests of a replica; its engine queues and refuses by itself
_STORE_BYTES = 128 << 20  # Ray's memory for large objects, of which serving has none

OpenEngine = Callable[[], tuple[Engine, Tokenizer]]


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """How many replicas there are, and what each of them is given.

    Raises ValueError for numbers out of range.
    """

    replicas: int
    most_replicas: int | None = None
    """More than `replicas`: their number follows the requests in progress."""
    cpus: int | None = None
    """Cores of a replica; None shares this machine's."""
    busy_requests: int = 16
    """Requests in progress of a replica on average, above which there are to be more replicas."""
    grace_seconds: float = 30.0
    """For the answers of a replica that is removed."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas = {self.replicas} must be at least 1")
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError(
                f"most_replicas = {self.most_replicas} must be at least replicas = {self.replicas}"
            )
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"cpus = {self.cpus} must be at least 1")

    @property
    def most(self) -> int:
        return self.most_replicas or self.replicas

    @property
    def effective_cpus(self) -> int:
        return self.cpus or max(1, (os.cpu_count() or 1) // self.most)


def start_replicas(
    source: OpenEngine, options: ReplicaOptions, address: str | None = None
) -> RemoteEngine:
    """Start replicas of what `source` opens, and return them as one engine.

    `address` is that of a running cluster, "auto" for this machine's; None starts one that ends
    with the process. Raises ValueError where Ray is missing, there is no such cluster, or the
    replicas cannot be started.
    """
    require_ray("serving by several replicas")
    from ray import serve

    connect(address, options.most * options.effective_cpus)
    serve.start(proxy_location="Disabled", logging_config=_logging())
    try:
        handle = serve.run(
            engine_deployment(options).bind(source), name=APPLICATION, route_prefix=None
        )
    except RuntimeError as error:
        disconnect(own=address is None)
        raise ValueError(f"the replicas could not be started: {error}") from None
    replicas = ServeReplicas(handle, lambda: disconnect(own=address is None))
    facts = handle.options(method_name="facts").remote().result()
    return RemoteEngine(replicas, facts.context_tokens)


def connect(address: str | None, cpus: int) -> None:
    """Join a cluster, or start one of this process alone. Raises ValueError where there is none."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        # "local" although a variable of the environment names a cluster.
        ray.init(
            "local",
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )
        return
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"there is no Ray cluster at {address!r} ({error}); start one with 'ray start --head', "
            "or leave the address out to start replicas on this machine"
        ) from None


def disconnect(*, own: bool) -> None:
    """Stop the replicas, and the cluster where it is this process's own."""
    import ray
    from ray import serve

    if own:
        serve.shutdown()
    else:
        serve.delete(APPLICATION)
    ray.shutdown()


def engine_deployment(options: ReplicaOptions) -> Any:
    """The deployment of `EngineReplica`, to be bound to what opens an engine."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.most > options.replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.most,
                "target_ongoing_requests": options.busy_requests,
            }
        }
    return serve.deployment(
        EngineReplica,
        name="engine",
        max_ongoing_requests=_MOST_ONGOING,
        ray_actor_options={"num_cpus": options.effective_cpus},  # also its OMP_NUM_THREADS
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=_HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_timeout_s=options.grace_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        request_router_config=RequestRouterConfig(
            request_router_class="sounding.cluster.request_router.PrefixRequestRouter"
        ),
        logging_config=_logging(),
        **scale,
    )


def _logging() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}


class ServeReplicas:
    """The `Replicas` behind a handle of Serve."""

    def __init__(self, handle: Any, close: Callable[[], None]) -> None:
        self._handle, self._close = handle, close

    async def generate(
        self, packed: bytes, max_seconds: float | None, blocks: list[bytes]
    ) -> AsyncGenerator[list[Item], None]:
        """See `Replicas`."""
        from ray.exceptions import RayError, RayTaskError

        handle = self._handle.options(method_name="generate", stream=True)
        answer, whole = handle.remote(packed, max_seconds, blocks=blocks), False
        try:
            async for batch in answer:
                yield batch
            whole = True
        except RayTaskError:  # raised by the replica's own code
            raise
        except RayError as error:
            raise ReplicaLost(first_line(error)) from error
        finally:
            if not whole:
                answer.cancel()

    async def check(self, packed: bytes) -> Refused | None:
        """See `Replicas`."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return await self._handle.options(method_name="check").remote(packed)
        except RayTaskError:
            raise
        except RayError as error:
            raise ReplicaLost(first_line(error)) from error

    async def stats(self) -> Sequence[tuple[str, EngineStats]]:
        """See `Replicas`."""
        return await self._handle.broadcast("stats").results_async()

    def close(self) -> None:
        """See `Replicas`."""
        self._close()


def first_line(error: Exception) -> str:
    """The first line of a message; those of Ray have many."""
    return (str(error).splitlines() or [type(error).__name__])[0]
