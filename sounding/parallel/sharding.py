"""Which part of every parameter a process holds.

FSDP2 cuts parameters along their first dimension over all processes, and gathers a block's only
while it runs. Stacks of routed experts are divided over `expert` first, whole experts to each, and
FSDP2 cuts what a process computes with over the others that hold the same. Gradients are summed,
not averaged: losses are already divided by counts of the whole step.

A parameter without a gradient in one process may have one in another, so zeros are summed too; a
sum of zeros then counts as no gradient, as it would be in a process alone.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sounding.model.moe import MoE
from sounding.model.transformer import Transformer
from sounding.parallel.experts import ExpertExchange
from sounding.parallel.group import Group

_EXPERTS = ("w1", "w2", "w3")


def shard(model: Transformer, group: Group) -> None:
    """Cut every trained parameter into one part per process, in place.

    The blocks of a drafter stay with the embedding, the head and the final norm: like these they
    are used outside `forward`. Hash tables and gate biases stay whole; all processes have the same.
    Raises ValueError for experts that cannot be divided evenly.
    """
    if group.meshes is None:
        return
    stacks = _divide_experts(model, group) if group.size("expert") > 1 else set()
    kept = {param for param in model.parameters() if not param.requires_grad}
    replicas = FSDPMeshInfo(group.meshes.replicas, shard_mesh_dim=0)

    def placement(param: nn.Parameter) -> ShardPlacementResult | None:
        return ShardPlacementResult(Shard(0), replicas) if param in stacks else None

    for module in (*model.layers, model):
        fully_shard(
            module,
            mesh=group.meshes.flat,
            ignored_params=kept,
            shard_placement_fn=placement,
            reshard_after_forward=module is not model,
        )
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(True, recurse=False)


def _divide_experts(model: Transformer, group: Group) -> set[nn.Parameter]:
    """Leave in this process its share of every stack of experts; returns what is left."""
    size, rank = group.size("expert"), group.rank_in("expert")
    if model.config.n_routed_experts % size:
        raise ValueError(
            f"parallel.expert = {size} does not divide model.n_routed_experts = "
            f"{model.config.n_routed_experts}: each process must hold the same number of experts"
        )
    stacks = set()
    for moe in model.modules():
        if not isinstance(moe, MoE):
            continue
        for name in _EXPERTS:
            linear = getattr(moe.experts, name)
            part = linear.weight.detach().chunk(size)[rank].clone()
            linear.weight = nn.Parameter(part, requires_grad=linear.weight.requires_grad)
            stacks.add(linear.weight)
        moe.run_experts = ExpertExchange(group)
    return stacks


def reshard(model: Transformer) -> None:
    """Shard parameters again after a forward pass without a backward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()


# --------------------------------------------------------------------------------------------------
# Parts and wholes


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; a plain one is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def logical(tensor: Tensor, group: Group) -> Tensor:
    """A sharded tensor with the shape that the network gives it: stacks of all experts."""
    if group.meshes is None or not isinstance(tensor, DTensor):
        return tensor
    if tensor.device_mesh.size() == group.world:  # cut over all processes, as all but experts are
        return tensor
    shape = torch.Size((tensor.shape[0] * group.size("expert"), *tensor.shape[1:]))
    strides = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
    return DTensor.from_local(
        tensor.to_local(), group.meshes.experts, [Shard(0), Shard(0)], shape=shape, stride=strides
    )


def whole(tensor: Tensor, group: Group) -> Tensor:
    """A sharded tensor gathered in every process. Collective: every process must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    if logical(tensor, group) is tensor:
        return gathered
    stacks = [torch.empty_like(gathered) for _ in range(group.size("expert"))]
    dist.all_gather(stacks, gathered, group=group.along("expert"))
    return torch.cat(stacks)


def part_like(tensor: Tensor, like: Tensor, group: Group) -> Tensor:
    """Cut a whole tensor as `like` is cut. All processes must have the same one."""
    if not isinstance(like, DTensor):
        return tensor
    if logical(like, group) is not like:
        tensor = tensor.chunk(group.size("expert"))[group.rank_in("expert")]
    # Without a source rank nothing is sent: every process takes its part of its own copy.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


# --------------------------------------------------------------------------------------------------
# Gradients


def gradient_norms(params: Mapping[str, nn.Parameter], group: Group) -> dict[str, Tensor]:
    """The norm of every gradient over all processes, by the parameter's name, where there is one.

    Among several processes, a gradient of zeros is dropped. Collective.
    """
    given = {name: param for name, param in params.items() if param.grad is not None}
    if not given:
        return {}
    norms = torch.stack(torch._foreach_norm([_gradient(param) for param in given.values()]))
    if group.world > 1:
        norms = group.sum(norms.double().square()).sqrt().to(norms.dtype)
        for param, norm in zip(given.values(), norms.tolist(), strict=True):
            if norm == 0:
                param.grad = None
    found = zip(given.items(), norms, strict=True)
    return {name: norm for (name, param), norm in found if param.grad is not None}


def clip(params: Sequence[nn.Parameter], norms: Sequence[Tensor], limit: float) -> Tensor:
    """Scale gradients with these norms down to a norm of `limit` in all; returns it before."""
    total = torch.linalg.vector_norm(torch.stack(list(norms)))
    scale = (limit / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([_gradient(param) for param in params], scale)
    return total


def _gradient(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return local(param.grad)
