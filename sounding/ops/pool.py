"""Pooling of tokens into compressed entries. Source: docs/architecture.md 6."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.ops.dispatch import op


def pool(values: Float[Tensor, "g r d"], gates: Float[Tensor, "g r d"]) -> Float[Tensor, "g d"]:
    """Blend the r slots of each group into one entry, channel by channel.

    entry = sum_r softmax_r(gate) * value; a gate of -inf drops a slot.
    """
    return (gates.softmax(1) * values).sum(1)


def overlap(
    rows: Float[Tensor, "g r d2"],
) -> Float[Tensor, "g-1 r2 d"]:
    """The slots of overlapping groups: the first half-channels of the group before, then the
    second half-channels of the group itself.

    Takes one group more than it gives, the first being only a predecessor. CSA stores both halves
    of a token side by side. Source: docs/architecture.md 6.2.
    """
    before, current = rows.chunk(2, -1)
    return torch.cat((before[:-1], current[1:]), 1)


@op(training={"cpu": "sounding.ops.cpu.training.pool:add_places"})
def add_places(
    projections: Float[Tensor, "t w"], bias: Float[Tensor, "r v"], places: Int[Tensor, " t"]
) -> Float[Tensor, "t w"]:
    """Values as they are, and each token's gates with the bias of its place in the group."""
    values, gates = projections.chunk(2, -1)
    return torch.cat((values, gates + bias[places]), -1)


@op(training={"cpu": "sounding.ops.cpu.training.pool:pool_groups"})
def pool_groups(
    projections: Float[Tensor, "p w"], ratio: int, *, overlapping: bool, leads: bool
) -> Float[Tensor, "g d"]:
    """The entries of consecutive groups of `ratio` tokens, from values and gates side by side.

    Where groups overlap, the rows begin with those of the group before; if the first one `leads`
    there is none, which counts as a blank one: value 0 and gate -inf.
    """
    if overlapping and leads:
        blank = projections.new_zeros(ratio, projections.shape[1] // 2)
        projections = torch.cat((torch.cat((blank, blank - torch.inf), 1), projections))
    parts = projections.unflatten(0, (-1, ratio)).chunk(2, -1)
    values, gates = (overlap(part) for part in parts) if overlapping else parts
    return pool(values, gates)
