"""Recall of the lightning indexer: its selection compared with full attention.

For measuring only. It works in tiles of queries, as in `index_loss`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sounding.ops.attention import QUERY_TILE, index_scores, num_visible, top_k
from sounding.ops.index_loss import attention_paid

FIELDS = ("queries", "recall", "chance", "covered", "coverable")
"""The sums of `index_recall`: queries that see more entries than are picked, and over these the
share of the entries most attended to that are picked, the share that a random choice would pick,
the share of attention to entries that goes to those picked, and the most that any choice gets."""


@torch.no_grad()
def index_recall(
    q: Float[Tensor, "t h d"],
    window: Float[Tensor, "w d"],
    entries: Float[Tensor, "s d"],
    sink: Float[Tensor, " h"],
    index_q: Float[Tensor, "t hi di"],
    index_weights: Float[Tensor, "t hi"],
    index_keys: Float[Tensor, "s di"],
    *,
    start: int,
    sliding_window: int,
    ratio: int,
    sizes: Sequence[int],
) -> Float[Tensor, "k fields"]:
    """Sums over queries of `FIELDS`, a row for each number of entries picked.

    Attention is that of every visible entry, summed over heads and normalised over the entries.
    Other arguments are those of `attend` and `index_scores`.
    """
    total = q.new_zeros(len(sizes), len(FIELDS), dtype=torch.float64)
    before = window.shape[0] - q.shape[0]
    for low in range(0, q.shape[0], QUERY_TILE):
        rows = slice(low, low + QUERY_TILE)
        high = min(low + QUERY_TILE, q.shape[0])
        first = max(0, before + low - sliding_window + 1)
        visible = num_visible(torch.arange(low, high, device=q.device) + start, ratio)
        count = int(visible[-1])
        if count <= min(sizes, default=count):
            continue
        paid = attention_paid(
            q[rows],
            window[first : before + high],
            entries[:count],
            None,
            visible,
            sink,
            offset=before + low - first,
            sliding_window=sliding_window,
        )
        scores = index_scores(
            index_q[rows], index_weights[rows], index_keys[:count], start=start + low, ratio=ratio
        )
        for number, size in enumerate(sizes):
            total[number] += _compare(paid, scores, visible, size)
    return total


def _compare(
    paid: Float[Tensor, "t s"], scores: Float[Tensor, "t s"], visible: Int[Tensor, " t"], size: int
) -> Float[Tensor, " fields"]:
    """`FIELDS` of one tile."""
    some = visible > size
    paid, scores, visible = paid[some].double(), scores[some], visible[some]
    picked = _members(scores, size)
    unseen = scores == -torch.inf
    best = _members(paid.masked_fill(unseen, -torch.inf), size)
    return torch.stack(
        (
            some.sum().double(),
            (picked & best).sum().double() / size,
            (size / visible.double()).sum(),
            paid[picked].sum(),
            paid[best].sum(),
        )
    )


def _members(scores: Float[Tensor, "t s"], size: int) -> Bool[Tensor, "t s"]:
    """Mask of the `size` largest entries of each row."""
    members = torch.zeros_like(scores, dtype=torch.bool)
    return members.scatter_(1, top_k(scores, size), True)
