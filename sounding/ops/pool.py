"""Pooling of tokens into compressed entries. Source: spec/architecture.md 6."""

import torch
from jaxtyping import Float
from torch import Tensor


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
    of a token side by side. Source: spec/architecture.md 6.2.
    """
    before, own = rows.chunk(2, -1)
    return torch.cat((before[:-1], own[1:]), 1)
