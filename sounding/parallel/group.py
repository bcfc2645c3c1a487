"""The processes of a run, arranged on one mesh: data x expert x context.

Processes that differ in `data` or `expert` take different batches of a step; those that differ in
`context` share a batch, each with its part of the tokens. Routed experts are divided over `expert`.
Neighbouring ranks differ in `context` first, then in `expert`: these send the most.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # without a type, and public
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Axis = Literal["data", "expert", "context"]
# A process that died is noticed by torchrun, which ends the others; this is for hangs.
_PATIENCE = timedelta(minutes=10)
AXES: tuple[Axis, ...] = ("data", "expert", "context")


@dataclass(frozen=True)
class Meshes:
    """The mesh of a run, and what is derived from it."""

    all: DeviceMesh
    """data x expert x context."""
    flat: DeviceMesh
    """Every process, in one dimension: what weights that every process computes with are cut by."""
    experts: DeviceMesh
    """expert x replica: experts are divided over the first dimension, and each process's stack is
    cut by the second, the processes that hold the same experts."""
    replicas: DeviceMesh
    """The second dimension of `experts` alone."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    world: int = 1
    meshes: Meshes | None = None
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes that this process sent to others, by purpose (`exchange.py`)."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def size(self, axis: Axis) -> int:
        """The number of processes along an axis of the mesh."""
        return 1 if self.meshes is None else self.meshes.all[axis].size()

    def rank_in(self, axis: Axis) -> int:
        """This process's place along an axis."""
        return 0 if self.meshes is None else self.meshes.all.get_local_rank(axis)

    def along(self, axis: Axis) -> dist.ProcessGroup:
        """The processes that differ from this one in one axis only."""
        assert self.meshes is not None
        return self.meshes.all.get_group(axis)

    @property
    def batch_world(self) -> int:
        """The number of batches that the processes take at once."""
        return self.world // self.size("context")

    @property
    def batch_rank(self) -> int:
        """Which of these batches is this process's, alone or with others."""
        return self.rank // self.size("context")

    @property
    def counts_batch(self) -> bool:
        """Whether this process counts its batch: one of those that share it does."""
        return self.rank_in("context") == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, the same bits in each."""
        if self.world > 1:
            # gloo reads the memory of a tensor with gaps as if it had none.
            values = values.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(values)
        return values

    def sum_along(self, axis: Axis, values: Tensor) -> Tensor:
        """Sum over the processes that differ in one axis only."""
        if self.size(axis) > 1:
            values = values.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(values, group=self.along(axis))
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. Collective: every process must call it."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def agree(self, text: str) -> str:
        """The first process's text. Collective."""
        if self.world == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, device=self.device)
        return texts[0]

    def wait(self) -> None:
        """Block until every process has called this."""
        if self.world > 1:
            dist.barrier()

    @property
    def device(self) -> torch.device:
        """The device on which exchanged values must lie."""
        return torch.device("cpu" if self.meshes is None else self.meshes.all.device_type)


ALONE = Group()


def mesh_shape(world: int, data: int | None, expert: int, context: int) -> tuple[int, int, int]:
    """The sizes of the mesh's axes; `data` None takes what the other two leave.

    Raises ValueError where they do not multiply to the number of processes.
    """
    rest, remainder = divmod(world, expert * context)
    if data is None and not remainder:
        data = rest
    if (data or 1) * expert * context != world or data is None:
        sizes = f"parallel.data = {data}, parallel.expert = {expert}, parallel.context = {context}"
        started = f"{world} processes were started" if world > 1 else "one process was started"
        raise ValueError(
            f"{sizes} do not multiply to the number of processes, and {started}: start "
            f"{(data or 1) * expert * context} by `torchrun --nproc-per-node`, or set others"
        )
    return data, expert, context


@contextmanager
def processes(
    device: torch.device, *, data: int | None = None, expert: int = 1, context: int = 1
) -> Iterator[Group]:
    """The group that torchrun started this process in, or `ALONE`.

    Raises ValueError where the sizes do not multiply to the number of processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun, as are rank and address
    shape = mesh_shape(world, data, expert, context)
    if world == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device.type == "cuda" else "gloo"
    rank = int(os.environ["RANK"])
    dist.init_process_group(backend, store=_store(), rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        if dist.get_rank():
            logging.getLogger().setLevel(logging.ERROR)  # only the first process logs
        yield Group(dist.get_rank(), world, make_meshes(device.type, shape))
        dist.barrier()  # one that left first would end the connections of the others' last words
    finally:
        dist.destroy_process_group()


def _store() -> Store:
    """Where the processes find each other. torchrun keeps one over restarts, with the addresses of
    processes that have ended; so each start has names of its own."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    main = not kept and os.environ["RANK"] == "0"
    store = TCPStore(address, port, is_master=main, timeout=_PATIENCE)
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def make_meshes(device_type: str, shape: tuple[int, int, int]) -> Meshes:
    """Arrange the processes of the default group. Collective."""
    data, expert, context = shape
    world = math.prod(shape)
    whole = init_device_mesh(device_type, shape, mesh_dim_names=AXES)
    flat = init_device_mesh(device_type, (world,), mesh_dim_names=("world",))
    ranks = torch.arange(world).view(shape).transpose(0, 1).reshape(expert, data * context)
    experts = DeviceMesh(device_type, ranks, mesh_dim_names=("expert", "replica"))
    return Meshes(whole, flat, experts, experts["replica"])
