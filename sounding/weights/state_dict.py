"""Convert between a checkpoint and a network's tensors.

The network names its parameters as the checkpoint does, with one difference: the experts of a
layer are one tensor, `layers.L.ffn.experts.w1.weight` of shape [expert, ...], so that a layer's
experts are one operation instead of hundreds of modules.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from sounding.config import ModelConfig
from sounding.ops.matmul import Weight
from sounding.weights.checkpoint import (
    ALLOWED_DTYPES,
    Checkpoint,
    detect_storage,
    reconcile,
)
from sounding.weights.layout import Kind, Parameter, StoredTensor, parameters, stored_as
from sounding.weights.names import expert_parts
from sounding.weights.tensors import DTYPE_NAMES
from sounding.weights.writing import new_checkpoint


def read_state(checkpoint: Checkpoint, dequantize: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a network, named as its parameters, experts stacked.

    With `dequantize=None` every tensor keeps its stored format: packed weights come with `.scale`,
    plain weights as they are. With a dtype every weight is unpacked to it; parameters that must
    not lose precision (hyper-connections, sinks, biases) stay at least float32. Tables of expert
    ids are int64 either way. Unstacked tensors lie in the file's pages until written to.
    """
    state: dict[str, Tensor] = {}
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
                weight, scale = Weight(weight, scale).dense(target), None
            weights.append(weight)
            if scale is not None:
                scales.append(scale)
        state[name] = _stack(weights) if kind is Kind.EXPERT else weights[0]
        if scales:
            stacked = _stack(scales) if kind is Kind.EXPERT else scales[0]
            state[_scale_name(name)] = stacked
    return state


def write_state(
    state: Mapping[str, Tensor], config: ModelConfig, folder: Path, *, overwrite: bool = False
) -> None:
    """Write the tensors of a network as a checkpoint in the published layout, atomically.

    Every tensor is written in the dtype it has; config.json is written to match. Raises ValueError
    for tensors that are missing, unknown, misshapen or of a dtype the layout does not have, and
    for a destination in use unless `overwrite`.
    """
    groups = dict(stacks(parameters(config)))
    stored: list[StoredTensor] = []
    for name, group in groups.items():
        stored += _stored(state, name, group)
    known = groups.keys() | {_scale_name(name) for name in groups}
    unknown = sorted(state.keys() - known)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no parameter of the network that the config describes")
    first = [group[0] for group in groups.values()]
    storage = detect_storage(first, {tensor.name: tensor.dtype for tensor in stored})
    config = reconcile(config, storage)
    with new_checkpoint(folder, stored, config.to_dict(), overwrite=overwrite) as writer:
        for name, group in groups.items():
            packed = [name, _scale_name(name)] if _scale_name(name) in state else [name]
            for source in packed:
                parts = state[source] if group[0].kind is Kind.EXPERT else [state[source]]
                for parameter, part in zip(group, parts, strict=True):
                    writer.put(parameter.name if source == name else parameter.scale_name, part)


def _stored(
    state: Mapping[str, Tensor], name: str, group: list[Parameter]
) -> Iterator[StoredTensor]:
    """The tensors of the files for one parameter of the network, checked against its state."""
    if name not in state:
        raise ValueError(f"{name!r} is missing from the state to write; the config calls for it")
    dtype = DTYPE_NAMES.get(state[name].dtype, str(state[name].dtype))
    allowed = ALLOWED_DTYPES[group[0].kind]
    if dtype not in allowed:
        raise ValueError(f"{name!r} has dtype {dtype}; it must be {' or '.join(allowed)}")
    scale = state.get(_scale_name(name))
    scales = "F32" if scale is not None and scale.dtype == torch.float32 else "F8_E8M0"
    for parameter in group:
        tensors = stored_as(parameter, dtype, scales)
        if scale is not None and len(tensors) == 1:
            raise ValueError(f"{name!r} is {dtype} and has scales, which only fp4 and fp8 have")
        for tensor, found in zip(tensors, (name, _scale_name(name)), strict=False):
            _require_state(state, found, tensor, group)
        yield from tensors


def _require_state(
    state: Mapping[str, Tensor], name: str, tensor: StoredTensor, group: list[Parameter]
) -> None:
    if name not in state:
        raise ValueError(f"{name!r} is missing: its weight is quantized and needs scales")
    stack = (len(group),) if group[0].kind is Kind.EXPERT else ()
    if state[name].shape != (*stack, *tensor.shape):
        raise ValueError(
            f"{name!r} has shape {list(state[name].shape)}; the config calls for "
            f"{[*stack, *tensor.shape]}"
        )
    dtype = DTYPE_NAMES.get(state[name].dtype)
    if dtype != tensor.dtype:
        raise ValueError(f"{name!r} has dtype {dtype}; it must be {tensor.dtype}")


def stacks(network: Iterable[Parameter]) -> Iterator[tuple[str, list[Parameter]]]:
    """The network's parameter names, each with its published parameters, in order."""
    groups: dict[str, list[Parameter]] = {}
    for parameter in network:
        groups.setdefault(network_name(parameter.name), []).append(parameter)
    yield from groups.items()


def network_name(name: str) -> str:
    """A published name as the network has it: without the number of an expert."""
    parts = expert_parts(name)
    return name if parts is None else f"{parts[0]}.{parts[2]}.weight"


def _scale_name(name: str) -> str:
    return name.removesuffix("weight") + "scale"


def _stack(tensors: list[Tensor]) -> Shaped[Tensor, "e ..."]:
    """torch.stack for any dtype: some float8 types cannot be concatenated as themselves."""
    dtype = tensors[0].dtype
    return torch.stack([tensor.view(torch.uint8) for tensor in tensors]).view(dtype)
