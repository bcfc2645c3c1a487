"""Low-rank deltas beside the weights of a PyTorch network: to train, to run, to merge.

W + factor B A takes the place of a weight W, which keeps its stored format and does not learn. In
training that sum is formed at every use, so kernels and gradients are those of any other weight.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sounding.model.from_checkpoint import build_model
from sounding.model.layers import Linear
from sounding.model.transformer import Transformer
from sounding.ops.matmul import Weight
from sounding.weights.adapters import Adapter, Delta, adaptable, require_fit
from sounding.weights.tensors import from_torch, to_torch


class LowRank(nn.Module):
    """A delta that learns. A is random and B zero, so that it begins by changing nothing."""

    def __init__(self, shape: tuple[int, ...], rank: int, factor: float) -> None:
        """`shape` is the weight's: [o, i], or [e, o, i] with a delta per expert."""
        super().__init__()
        *stack, outputs, inputs = shape
        self.low = nn.Parameter(torch.empty(*stack, rank, inputs))
        self.high = nn.Parameter(torch.zeros(*stack, outputs, rank))
        self.factor = factor

    def added_to(self, weight: Weight) -> Weight:
        """W + factor B A, in float32."""
        return Weight(with_delta(weight, self.low, self.high, self.factor))


def with_delta(
    weight: Weight,
    low: Float[Tensor, "*e r i"],
    high: Float[Tensor, "*e o r"],
    factor: float,
) -> Float[Tensor, "*e o i"]:
    """W + factor B A in float32, of a weight in any stored format."""
    dense = weight.dense(torch.float32)
    if dense.ndim == 2:
        return torch.addmm(dense, high, low, alpha=factor)
    return torch.baddbmm(dense, high, low, alpha=factor)


# --------------------------------------------------------------------------------------------------
# Training


def attach(
    model: Transformer, rank: int, factor: float, seed: int, *, begin: Adapter | None = None
) -> list[nn.Parameter]:
    """Put a delta beside every weight that may have one but `wo_a`, return what learns, and freeze
    the rest. (`wo_a` is grouped, and PEFT can merge such a delta but not run it.)

    A is uniform within 1 / sqrt(inputs), drawn from the seed. With `begin` the deltas are those of
    an adapter, whose rank and factor must be these. Raises ValueError for ranks out of range.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    learning: list[nn.Parameter] = []
    for name, shape in adaptable(model.config).items():
        if name.endswith(".wo_a"):
            continue
        if not 1 <= rank <= min(shape[-2:]):
            raise ValueError(
                f"rank = {rank} must be from 1 to {min(shape[-2:])}, the smaller side of {name}"
            )
        linear = _linear(model, name)
        delta = LowRank(shape, rank, factor)
        with torch.no_grad():
            bound = 1 / math.sqrt(shape[-1])
            delta.low.uniform_(-bound, bound, generator=generator)
            if begin is not None:
                _take_over(delta, begin, name)
        linear.adapter = delta
        learning += [delta.low, delta.high]
    return learning


def _take_over(delta: LowRank, begin: Adapter, name: str) -> None:
    found = begin.deltas.get(name)
    if found is None or found.rank != delta.low.shape[-2] or begin.factor != delta.factor:
        rank = None if found is None else found.rank
        raise ValueError(
            f"the adapter to go on from has rank {rank} and factor {begin.factor} at {name}, and "
            f"this run has {delta.low.shape[-2]} and {delta.factor}: give it those"
        )
    delta.low.copy_(to_torch(found.low))
    delta.high.copy_(to_torch(found.high))


def adapter_of(model: Transformer, base: str) -> Adapter:
    """The deltas attached to a network as a value, in bfloat16. `base` is the base's digest."""
    deltas, factor = {}, 1.0
    for name, delta in attached(model):
        low, high = (part.detach().to(torch.bfloat16) for part in (delta.low, delta.high))
        deltas[name] = Delta(from_torch(low.clone()), from_torch(high.clone()))
        factor = delta.factor
    return Adapter(deltas, factor, base)


def attached(model: Transformer) -> Iterator[tuple[str, LowRank]]:
    """The deltas beside a network's weights, by module."""
    for name in adaptable(model.config):
        delta = _linear(model, name).adapter
        if isinstance(delta, LowRank):
            yield name, delta


def _linear(model: Transformer, name: str) -> Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, Linear)
    return linear


# --------------------------------------------------------------------------------------------------
# Running


def adapted(model: Transformer, adapter: Adapter) -> Transformer:
    """A network with the deltas merged in, which shares all other weights with `model`.

    Merged weights are in float32. Raises ValueError for deltas that fit no weight of it.
    """
    require_fit(adapter, model.config, "the adapter")
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, delta in adapter.deltas.items():
        state[f"{name}.weight"] = merged(
            Weight(state[f"{name}.weight"], state.pop(f"{name}.scale", None)), delta, adapter.factor
        )
    made = build_model(state, model.config, simulation=model.simulation, dtype=model.dtype)
    return made.requires_grad_(False)


@torch.no_grad()
def merged(weight: Weight, delta: Delta, factor: float) -> Float[Tensor, "*e o i"]:
    """A weight with its delta merged in, in float32."""
    low, high = (to_torch(part).to(weight.values.device).float() for part in delta)
    return with_delta(weight, low, high, factor)
