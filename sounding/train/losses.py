"""The losses of pre-training and fine-tuning, as sums over a batch.

Sums of several batches and processes add up; the objective divides them by the counts of the whole
step. Source: docs/training.md 2 to 4.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.data.token_batch import TokenBatch
from sounding.model.attention import Selection
from sounding.model.moe import Routing
from sounding.model.state import TensorState
from sounding.model.transformer import Transformer
from sounding.ops.loss import IGNORED, cross_entropy
from sounding.ops.norm import upcast
from sounding.parallel.context import Cut
from sounding.parallel.group import ALONE, Group
from sounding.train.expert_load import expert_loads, gates
from sounding.train.phases import SELECTIONS, Phase

_MIDDLE_ROWS = 256
_ALL = slice(None)


@dataclass(frozen=True)
class Piece:
    """What one process runs of a batch: all of it, or its part where a group shares the batch."""

    tokens: Int[Tensor, " t"]
    lengths: list[int]
    rows: slice
    """Where the tokens lie in the batch."""
    group: Group
    cut: Cut | None = None

    def states(self, model: Transformer) -> list[TensorState] | None:
        """The states of the sequences, for one run of the network or of a block of its drafter."""
        return None if self.cut is None else self.cut.states(model.config)


def piece_of(batch: TokenBatch, group: Group = ALONE) -> Piece:
    """This process's piece of a batch."""
    if group.size("context") == 1:
        return Piece(batch.tokens, batch.lengths, _ALL, group)
    cut = Cut(batch.lengths, group)
    return Piece(batch.tokens[cut.part.rows], list(cut.part.lengths), cut.part.rows, group, cut)


def count_targets(batch: TokenBatch, mtp_depth: int) -> dict[str, int]:
    """The counts by which the sums of a step are divided; `mtp_depth` is the number of MTP blocks.

    `targets` and `mtp_targets` count targets, `middles` those that belong to middles, `tokens` all
    tokens.
    """
    ahead, further = batch.targets, 0
    for _ in range(mtp_depth):
        ahead = token_after(ahead, batch.lengths)
        further += int((ahead != IGNORED).sum())
    return {
        "targets": int((batch.targets != IGNORED).sum()),
        "mtp_targets": further,
        "tokens": len(batch.tokens),
        "middles": sum(batch.middles),
    }


def token_after(targets: Int[Tensor, " t"], lengths: Sequence[int]) -> Int[Tensor, " t"]:
    """The target of the next position in the same sequence; IGNORED at its end."""
    shifted = targets.roll(-1)
    ends = torch.tensor([length for length in lengths if length]).cumsum(0) - 1
    shifted[ends.to(shifted.device)] = IGNORED
    return shifted


def sum_losses(
    model: Transformer,
    batch: TokenBatch,
    phase: Phase,
    *,
    mtp: bool = True,
    middles: bool = False,
    group: Group = ALONE,
) -> dict[str, Tensor]:
    """Run a batch and sum its losses; in the indexer phase only the indexer's, the others are 0.

    - `next_token`: of next tokens, and `middles`, the part of it that belongs to middles, which is
      computed only where it is asked for;
    - `mtp`: of the MTP blocks, which do not run unless `mtp`;
    - `balance`: of expert load, over tokens and layers;
    - `index`: of the indexers, over tokens and CSA layers;
    - `loads`: how often each expert was chosen, a row per layer, then one per MTP block that ran.

    Sums are those of the process's own tokens where a `group` shares the batch.
    """
    piece = piece_of(batch, group)
    output = model(piece.tokens, piece.lengths, piece.states(model), SELECTIONS[phase])
    zero = upcast(output.streams.new_zeros(()))
    sums = dict.fromkeys(("next_token", "mtp", "balance", "index", "middles"), zero)
    for report in output.reports:
        if report.indexer.loss is not None:
            sums["index"] = sums["index"] + report.indexer.loss
    if phase == "indexer":
        return sums | {"loads": expert_loads(output.routing)}
    hidden = model.hidden(output.streams)
    sums["next_token"] = cross_entropy(hidden, model.head.weight, batch.targets[piece.rows])
    if middles and any(batch.middles):
        rows, wanted = middle_rows(batch, piece.rows)
        sums["middles"] = cross_entropy(hidden[rows], model.head.weight, wanted)
    routing = output.routing
    if mtp:
        sums["mtp"], drafted = _mtp_loss(model, output.streams, batch, piece)
        routing += drafted
    steered = [r for r, gate in zip(routing, gates(model), strict=mtp) if gate.tid2eid is None]
    if steered:
        sums["balance"] = balance_loss(steered, batch.lengths, piece)
    return sums | {"loads": expert_loads(routing)}


def weighted_loss(
    sums: Mapping[str, Tensor],
    counts: Mapping[str, int],
    *,
    mtp_weight: float,
    balance_weight: float,
    middle_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """The share of one batch in the loss of a step with these counts.

    Source: docs/training.md 2.
    """
    return (
        (sums["next_token"] + sums["middles"] * (middle_weight - 1)) / max(1, counts["targets"])
        + sums["mtp"] * (mtp_weight / max(1, counts["mtp_targets"]))
        + (sums["balance"] * balance_weight + sums["index"]) / max(1, counts["tokens"])
    )


def next_token_loss(
    model: Transformer, batch: TokenBatch, *, dense: bool, group: Group = ALONE
) -> Float[Tensor, ""]:
    """Sum over targets of -log p(target); `dense` lets CSA layers read every visible entry.

    The sum is over the process's own targets where a `group` shares the batch.
    """
    piece = piece_of(batch, group)
    output = model(piece.tokens, piece.lengths, piece.states(model), Selection(dense=dense))
    targets = batch.targets[piece.rows]
    return cross_entropy(model.hidden(output.streams), model.head.weight, targets)


def middle_rows(
    batch: TokenBatch, within: slice = _ALL
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Positions whose targets belong to middles, and these targets; those `within` a part of the
    batch, counted from its beginning.

    Their number is rounded up, as matrix products are compiled for each shape they meet; the rows
    that are added have no target.
    """
    low, high, _ = within.indices(len(batch.tokens))
    ends = itertools.accumulate(batch.lengths)
    rows = [
        row - low
        for end, count in zip(ends, batch.middles, strict=True)
        for row in range(end - 1 - count, end - 1)
        if low <= row < high
    ]
    missing = -len(rows) % _MIDDLE_ROWS
    positions = torch.tensor(rows + [0] * missing, device=batch.tokens.device, dtype=torch.long)
    wanted = batch.targets[low:high][positions]
    wanted[len(rows) :] = IGNORED
    return positions, wanted


def _mtp_loss(
    model: Transformer, streams: Float[Tensor, "t m c"], batch: TokenBatch, piece: Piece
) -> tuple[Float[Tensor, ""], list[Routing]]:
    """Sum of the MTP blocks' losses, and their routing: block k reads position t and token
    t + k + 1, and predicts the token after. Source: docs/architecture.md 11."""
    total = upcast(streams.new_zeros(()))
    routing: list[Routing] = []
    ahead = batch.targets
    for depth, block in enumerate(model.mtp_blocks):
        # The last position of a sequence reads a token of the next one. No other position sees it,
        # as attention is causal, and its own target does not count.
        next_tokens = batch.tokens.roll(-1 - depth)[piece.rows]
        ahead = token_after(ahead, batch.lengths)
        states = piece.states(model)
        output = model.draft(streams, next_tokens, piece.lengths, states, depth=depth)
        streams = output.streams
        total = total + cross_entropy(block.hidden(streams), model.head.weight, ahead[piece.rows])
        routing += output.routing
    return total, routing


def balance_loss(
    routing: Sequence[Routing], lengths: Sequence[int], piece: Piece | None = None
) -> Float[Tensor, ""]:
    """Sum over layers and sequences of T sum_e f_e P_e, with T the tokens of a sequence.

    f_e = count_e E / (K T) of the choices, without gradient; P_e the mean affinity to expert e,
    each token's affinities normalised to 1. 1 per token when even; for layers that choose by
    affinity only. Of sequences that are cut, f_e counts all tokens and P_e the process's own, so
    that the sum over processes is the loss. Source: docs/training.md 3.2.
    """
    scores = torch.stack([routed.scores for routed in routing])  # layer t e
    chosen = torch.stack([routed.chosen for routed in routing])  # layer t k
    num_layers, _, num_experts = scores.shape
    tokens = torch.tensor(lengths, device=scores.device)
    sequence = torch.arange(len(lengths), device=scores.device).repeat_interleave(tokens)
    sequence = sequence if piece is None else sequence[piece.rows]
    share = scores / scores.sum(-1, keepdim=True)
    affinity = share.new_zeros(num_layers, len(lengths), num_experts)
    affinity = affinity.index_add(1, sequence, share)
    cells = torch.arange(num_layers, device=scores.device)[:, None] * len(lengths) + sequence
    cells = cells[..., None] * num_experts + chosen
    counts = cells.flatten().bincount(minlength=affinity.numel()).view_as(affinity)
    counts = counts if piece is None else piece.group.sum_along("context", counts)
    frequency = counts * num_experts / (chosen.shape[-1] * tokens.clamp_min(1))[:, None]
    return (frequency * affinity).sum()
