"""Train one network in several processes: sharding, sums over all. With one process a no-op.

Parameters, gradients and moments are sharded over all processes by PyTorch's FSDP2: a block's
weights are whole only while it runs. A run computes the same on any number of processes: each takes
its part of a step's batches, sums go over all of them, and checkpoints hold whole tensors, so a run
may resume with more or fewer. Started by `torchrun`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sounding.model.transformer import Transformer


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def shard(self, model: Transformer) -> None:
        """Cut every trained parameter into one part per process, in place.

        The MTP blocks stay with the embedding, the head and the final norm: like these they are
        used outside `forward`. Hash tables and gate biases stay whole; all processes have the same.
        """
        if self.mesh is None:
            return
        whole = {param for param in model.parameters() if not param.requires_grad}
        for block in model.layers:
            fully_shard(block, mesh=self.mesh, ignored_params=whole)
        fully_shard(model, mesh=self.mesh, ignored_params=whole, reshard_after_forward=False)

    def reshard(self, model: Transformer) -> None:
        """Shard parameters again after a forward pass without a backward pass."""
        if isinstance(model, FSDPModule):
            model.reshard()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, the same bits in each."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. Collective: every process must call it."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def wait(self) -> None:
        """Block until every process has called this."""
        if self.world > 1:
            dist.barrier()

    @property
    def device(self) -> torch.device:
        """The device on which exchanged values must lie."""
        return torch.device("cpu" if self.mesh is None else self.mesh.device_type)


ALONE = Group()


@contextmanager
def processes(device: torch.device) -> Iterator[Group]:
    """The group that torchrun started this process in, or `ALONE`."""
    world = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun, as are rank and address
    if world == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(device.type, (world,))
        if dist.get_rank():
            logging.getLogger().setLevel(logging.ERROR)  # only the first process logs
        yield Group(dist.get_rank(), world, mesh)
    finally:
        dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; a plain one is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered in every process. Collective: every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor as `like` is cut. All processes must have the same one."""
    if not isinstance(like, DTensor):
        return tensor
    # Without a source rank nothing is sent: every process takes its part of its own copy.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole_matrices(part: Tensor, like: Tensor) -> Tensor:
    """The whole matrices that a part of parameter `like` belongs to: a stack is cut between
    matrices, so its part has whole ones; a single matrix is gathered."""
    if not isinstance(like, DTensor) or like.ndim > 2:
        return part
    sharded = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def own_rows(matrices: Tensor, like: Tensor) -> Tensor:
    """The reverse of `whole_matrices`."""
    if not isinstance(like, DTensor) or like.ndim > 2:
        return matrices
    return local(part_like(matrices, like))


def clip(params: list[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a norm of `limit` over all processes; returns the norm before."""
    return whole(nn.utils.clip_grad_norm_(params, limit))
