"""A request router of Ray Serve that sends requests where their prefix lies.

Serve makes one in each process that calls a deployment, and tells it of replicas that come and go.
Ray's interface of routers is of alpha stability: the extra pins Ray's version.
"""

from collections import Counter
from typing import Any, no_type_check

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from sounding.cluster.prefix_index import PrefixIndex

BLOCKS = "blocks"
"""The keyword argument of a call that holds the blocks of its prefix."""


@no_type_check  # at run time: Ray sends this class by value, which wrapped methods do not survive
class PrefixRequestRouter(RequestRouter):
    """Routes by prefix, bounded by load; without a prefix to the replica with the least load."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._index = PrefixIndex()
        self._running: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The candidates one by one, the best first: the next is tried where one is full."""
        blocks: list[bytes] = []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where all of them are full
            blocks = pending_request.kwargs.get(BLOCKS, [])
        named = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = {name: self._running[one.replica_id] for name, one in named.items()}
        return [[named[name]] for name in self._index.order(loads, blocks)] if loads else []

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        self._running[replica_id] += 1
        self._index.record(replica_id.unique_id, pending_request.kwargs.get(BLOCKS, []))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._running[replica_id] = max(0, self._running[replica_id] - 1)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._forget_lost()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._forget_lost()

    def _forget_lost(self) -> None:
        left = set(self.curr_replicas)
        self._index.keep_only({one.unique_id for one in left})
        self._running = Counter({one: n for one, n in self._running.items() if one in left})
