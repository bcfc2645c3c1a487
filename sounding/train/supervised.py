"""What pre-training and fine-tuning minimise; they differ in the targets of a batch only.

Losses are sums, so that batches of a step and processes add up; dividing by the counts of the whole
step is the trainer's first act. Source: docs/training.md 2 to 4.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.model.attention import Selection
from sounding.model.moe import Gate, Routing
from sounding.model.transformer import MTPBlock, Transformer
from sounding.ops.loss import IGNORED, cross_entropy
from sounding.ops.norm import upcast
from sounding.train.run_config import SparsityConfig
from sounding.train.source import Batch

_MIDDLE_ROWS = 256


class Phase(Enum):
    """A part of the dense-to-sparse schedule; see `SparsityConfig`."""

    DENSE = Selection(dense=True)
    INDEXER = Selection(dense=True, learn=True)
    SPARSE = Selection(learn=True)


def phase_of(step: int, config: SparsityConfig) -> Phase:
    """The phase that a step belongs to."""
    if step < config.dense_steps:
        return Phase.DENSE
    if step < config.dense_steps + config.indexer_steps:
        return Phase.INDEXER
    return Phase.SPARSE


@dataclass(frozen=True)
class Counts:
    """What the sums of a step are divided by."""

    targets: int = 0
    mtp_targets: int = 0
    tokens: int = 0
    middles: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(sum, zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[int]:
        return iter((self.targets, self.mtp_targets, self.tokens, self.middles))


class Losses(NamedTuple):
    """Sums over one batch."""

    next_token: Float[Tensor, ""]
    mtp: Float[Tensor, ""]  # over MTP blocks
    balance: Float[Tensor, ""]  # over tokens and layers
    indexer: Float[Tensor, ""]  # over tokens and CSA layers
    middles: Float[Tensor, ""]  # the part of `next_token` that belongs to middles
    loads: Int[Tensor, "layers e"]
    """Choices of each expert by tokens: a row per layer, then one per MTP block that ran."""


def count(batch: Batch, mtp_depth: int) -> Counts:
    """Targets and tokens of a batch; `mtp_depth` is the number of MTP blocks."""
    ahead, further = batch.targets, 0
    for _ in range(mtp_depth):
        ahead = token_after(ahead, batch.lengths)
        further += int((ahead != IGNORED).sum())
    return Counts(
        int((batch.targets != IGNORED).sum()), further, len(batch.tokens), sum(batch.middles)
    )


def token_after(targets: Int[Tensor, " t"], lengths: Sequence[int]) -> Int[Tensor, " t"]:
    """The next position's target within the same sequence: none at its end."""
    shifted = targets.roll(-1)
    ends = torch.tensor([length for length in lengths if length]).cumsum(0) - 1
    shifted[ends.to(shifted.device)] = IGNORED
    return shifted


def losses(
    model: Transformer, batch: Batch, phase: Phase, *, mtp: bool = True, middles: bool = False
) -> Losses:
    """Run a batch and add up its losses; where only the indexer learns, only its own.

    Without `mtp` the MTP blocks do not run: their loss is 0 and their loads are missing. The loss
    of `middles` is only worked out where it is asked for.
    """
    tokens, targets, lengths = batch.tokens, batch.targets, batch.lengths
    output = model(tokens, lengths, selection=phase.value)
    zero = upcast(output.streams.new_zeros(()))
    indexer = zero
    for routed in output.routing:
        if routed.index_loss is not None:
            indexer = indexer + routed.index_loss
    if phase is Phase.INDEXER:
        return Losses(zero, zero, zero, indexer, zero, _loads(output.routing))
    hidden = model.hidden(output.streams)
    next_token = cross_entropy(hidden, model.head.weight, targets)
    filled = zero
    if middles and any(batch.middles):
        rows, wanted = middle_rows(batch)
        filled = cross_entropy(hidden[rows], model.head.weight, wanted)
    ahead, drafted = _mtp_loss(model, output.streams, batch) if mtp else (zero, [])
    routing = [*output.routing, *drafted]
    steered = [r for r, gate in zip(routing, gates(model), strict=mtp) if gate.tid2eid is None]
    balance = balance_loss(steered, lengths) if steered else zero
    return Losses(next_token, ahead, balance, indexer, filled, _loads(routing))


def middle_rows(batch: Batch) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Positions whose targets belong to middles, and these targets.

    Their number goes up in steps, as matrix products are compiled for each shape they meet; what is
    added has no target.
    """
    ends = itertools.accumulate(batch.lengths)
    rows = [
        row
        for end, count in zip(ends, batch.middles, strict=True)
        for row in range(end - 1 - count, end - 1)
    ]
    missing = -len(rows) % _MIDDLE_ROWS
    positions = torch.tensor(rows + [0] * missing, device=batch.tokens.device)
    wanted = batch.targets[positions]
    wanted[len(rows) :] = IGNORED
    return positions, wanted


def next_token_loss(model: Transformer, batch: Batch, phase: Phase) -> Float[Tensor, ""]:
    """Sum over targets of -log p(target), nothing else."""
    output = model(
        batch.tokens, batch.lengths, selection=Selection(dense=phase is not Phase.SPARSE)
    )
    return cross_entropy(model.hidden(output.streams), model.head.weight, batch.targets)


def _mtp_loss(
    model: Transformer, streams: Tensor, batch: Batch
) -> tuple[Float[Tensor, ""], list[Routing]]:
    """Sum of the MTP blocks' losses: block k of position t is given token t + k + 1 and predicts
    the one after. Source: docs/architecture.md 11."""
    total = upcast(streams.new_zeros(()))
    routing: list[Routing] = []
    ahead = batch.targets
    for depth, block in enumerate(model.mtp):
        assert isinstance(block, MTPBlock)
        # The last position of a sequence is given a token of the next one. Nothing reads it:
        # attention is causal, and its own target does not count.
        given = batch.tokens.roll(-1 - depth)
        ahead = token_after(ahead, batch.lengths)
        output = model.draft(streams, given, batch.lengths, depth=depth)
        streams = output.streams
        total = total + cross_entropy(block.hidden(streams), model.head.weight, ahead)
        routing += output.routing
    return total, routing


def balance_loss(routing: Sequence[Routing], lengths: Sequence[int]) -> Float[Tensor, ""]:
    """Sum over layers and sequences of T sum_e f_e P_e, with T the tokens of a sequence.

    f_e = count_e E / (K T) of the selections, without gradient; P_e the mean affinity to expert e,
    each token's affinities normalised to 1. 1 per token when even; only layers whose choice the
    affinities make belong here. Source: docs/training.md 3.2.
    """
    scores = torch.stack([routed.scores for routed in routing])  # layer t e
    chosen = torch.stack([routed.chosen for routed in routing])  # layer t k
    num_layers, _, num_experts = scores.shape
    tokens = torch.tensor(lengths, device=scores.device)
    sequence = torch.arange(len(lengths), device=scores.device).repeat_interleave(tokens)
    share = scores / scores.sum(-1, keepdim=True)
    affinity = share.new_zeros(num_layers, len(lengths), num_experts)
    affinity = affinity.index_add(1, sequence, share)
    cells = torch.arange(num_layers, device=scores.device)[:, None] * len(lengths) + sequence
    cells = cells[..., None] * num_experts + chosen
    counts = cells.flatten().bincount(minlength=affinity.numel()).view_as(affinity)
    frequency = counts * num_experts / (chosen.shape[-1] * tokens.clamp_min(1))[:, None]
    return (frequency * affinity).sum()


def total_loss(
    sums: Losses,
    counts: Counts,
    *,
    mtp_weight: float,
    balance_weight: float,
    middle_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """The share of one batch in the loss of a step with these counts."""
    return (
        (sums.next_token + sums.middles * (middle_weight - 1)) / max(1, counts.targets)
        + sums.mtp * (mtp_weight / max(1, counts.mtp_targets))
        + (sums.balance * balance_weight + sums.indexer) / max(1, counts.tokens)
    )


# --------------------------------------------------------------------------------------------------
# Expert load


def gates(model: Transformer) -> list[Gate]:
    """The gate of every layer, then of every MTP block."""
    found = []
    for block in (*model.layers, *model.mtp):
        gate = block.get_submodule("ffn.gate")
        assert isinstance(gate, Gate)
        found.append(gate)
    return found


@torch.no_grad()
def steer(model: Transformer, loads: Int[Tensor, "layers e"], speed: float) -> None:
    """After a step, move each gate's bias against its load: b += speed * sign(mean - load).

    `loads` are those of the step's whole batch; MTP blocks that did not run have none. Gates that
    do not learn stay. Source: docs/training.md 3.1.
    """
    for gate, load in zip(gates(model), loads, strict=False):
        if gate.tid2eid is None and gate.weight.requires_grad:
            gate.bias.add_(torch.sign(load.float().mean() - load), alpha=speed)


def load_entropy(loads: Int[Tensor, "layers e"]) -> list[float]:
    """Entropy of each layer's expert load, as a share of the largest possible: 1 is even."""
    share = loads.double() / loads.sum(-1, keepdim=True).clamp_min(1)
    entropy = -torch.xlogy(share, share).sum(-1) / math.log(max(2, loads.shape[-1]))
    values: list[float] = entropy.tolist()
    return values


def _loads(routing: Sequence[Routing]) -> Int[Tensor, "layers e"]:
    rows = [r.chosen.flatten().bincount(minlength=r.scores.shape[-1]) for r in routing]
    return torch.stack(rows)
