"""The load of experts: counting it, and moving gate biases against it.

Source: docs/training.md 3.1.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sounding.model.moe import ExpertGate, Routing
from sounding.model.transformer import Transformer


def gates(model: Transformer) -> list[ExpertGate]:
    """The gate of every layer, then of every MTP block."""
    found = []
    for block in (*model.blocks, *model.mtp_blocks):
        gate = block.get_submodule("ffn.gate")
        assert isinstance(gate, ExpertGate)
        found.append(gate)
    return found


def expert_loads(routing: Sequence[Routing]) -> Int[Tensor, "layers e"]:
    """How many tokens chose each expert, a row for each routing."""
    rows = [r.chosen.flatten().bincount(minlength=r.scores.shape[-1]) for r in routing]
    return torch.stack(rows)


@torch.no_grad()
def steer(model: Transformer, loads: Int[Tensor, "layers e"], speed: float) -> None:
    """Move each gate's bias against its load, in place: b += speed * sign(mean load - load).

    `loads` are those of a whole step. MTP blocks that did not run have no row, and frozen gates
    keep their bias.
    """
    for gate, load in zip(gates(model), loads, strict=False):
        if gate.tid2eid is None and gate.weight.requires_grad:
            gate.bias.add_(torch.sign(load.float().mean() - load), alpha=speed)


def load_entropy(loads: Int[Tensor, "layers e"]) -> list[float]:
    """Entropy of each layer's load, as a share of the largest possible: 1 is even."""
    share = loads.double() / loads.sum(-1, keepdim=True).clamp_min(1)
    entropy = -torch.xlogy(share, share).sum(-1) / math.log(max(2, loads.shape[-1]))
    values: list[float] = entropy.tolist()
    return values
