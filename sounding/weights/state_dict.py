"""Checkpoint to the tensors of a network and back.

The network names its parameters as the checkpoint does, with one difference: the experts of a
layer are one tensor, `layers.L.ffn.experts.w1.weight` of shape [expert, ...], so that a layer's
experts are one operation instead of hundreds of modules.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Shaped
from torch import Tensor

from sounding.weights.checkpoint import Checkpoint, unpack
from sounding.weights.layout import Kind, Parameter
from sounding.weights.names import expert_parts

State = dict[str, Tensor]


def read_state(checkpoint: Checkpoint, dequantize: torch.dtype | None = None) -> State:
    """All tensors of a network, named as its parameters, experts stacked.

    With `dequantize=None` every tensor keeps its stored format: packed weights come with `.scale`,
    plain weights as they are. With a dtype every weight is unpacked to it; parameters that must
    not lose precision (hyper-connections, sinks, biases) stay at least float32. Tables of expert
    ids are int64 either way. Unstacked tensors lie in the file's pages until written to.
    """
    state: State = {}
    for name, group in stacks(checkpoint.parameters):
        kind = group[0].kind
        if kind is Kind.TABLE:
            state[name] = checkpoint.read(name).long()
            continue
        target = dequantize
        if kind is Kind.PRECISE:
            target = torch.promote_types(dequantize or torch.float32, torch.float32)
        weights, scales = [], []
        for parameter in group:
            weight, scale = checkpoint.read_packed(parameter)
            if target is not None:
                weight, scale = unpack(weight, scale, target), None
            weights.append(weight)
            if scale is not None:
                scales.append(scale)
        state[name] = _stack(weights) if kind is Kind.EXPERT else weights[0]
        if scales:
            stacked = _stack(scales) if kind is Kind.EXPERT else scales[0]
            state[name.removesuffix("weight") + "scale"] = stacked
    return state


def stacks(network: tuple[Parameter, ...]) -> Iterator[tuple[str, list[Parameter]]]:
    """The network's parameter names, each with the published parameters behind it, in order."""
    groups: dict[str, list[Parameter]] = {}
    for parameter in network:
        groups.setdefault(network_name(parameter.name), []).append(parameter)
    yield from groups.items()


def network_name(name: str) -> str:
    """A published name as the network has it: without the number of an expert."""
    parts = expert_parts(name)
    return name if parts is None else f"{parts[0]}.{parts[2]}.weight"


def _stack(tensors: list[Tensor]) -> Shaped[Tensor, "e ..."]:
    """torch.stack for any dtype: some float8 types cannot be concatenated as themselves."""
    dtype = tensors[0].dtype
    return torch.stack([tensor.view(torch.uint8) for tensor in tensors]).view(dtype)
