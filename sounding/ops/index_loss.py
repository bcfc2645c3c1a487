"""The lightning indexer's loss: its target is the attention of the network itself.

It works in tiles of queries, recomputed for the gradient, so memory does not grow with the square
of the context.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sounding.ops.attention import QUERY_TILE, index_scores, num_visible
from sounding.ops.dispatch import op
from sounding.ops.norm import upcast

_HIDDEN = -1e30  # finite, so that a query which sees no entry has a softmax and a gradient


@op(training={"cpu": "sounding.ops.cpu.training.attention:index_loss"})
def index_loss(
    q: Float[Tensor, "t h d"],
    window: Float[Tensor, "w d"],
    entries: Float[Tensor, "s d"],
    selected: Int[Tensor, "t k"] | None,
    sink: Float[Tensor, " h"],
    index_q: Float[Tensor, "t hi di"],
    index_weights: Float[Tensor, "t hi"],
    index_keys: Float[Tensor, "s di"],
    *,
    start: int,
    sliding_window: int,
    ratio: int,
) -> Float[Tensor, ""]:
    """Sum over queries of KL(p || softmax(I)) over the entries that a query attends to.

    p is the attention paid to each entry, summed over heads and normalised over the entries; no
    gradient flows into it. I is the index score. The set is `selected`, or every visible entry.
    Other arguments are those of `attend` and `index_scores`.
    Source: docs/training.md 4.2.
    """
    zero = upcast(q.new_zeros(()))
    # Zero, but dependent on the indexer also where no query sees an entry: several processes that
    # share a sequence all take part in its gradient.
    total = sum((upcast(part[:0]).sum() for part in (index_q, index_weights, index_keys)), zero)
    before = window.shape[0] - q.shape[0]
    for low in range(0, q.shape[0], QUERY_TILE):
        rows = slice(low, low + QUERY_TILE)
        high = min(low + QUERY_TILE, q.shape[0])
        first = max(0, before + low - sliding_window + 1)
        visible = num_visible(torch.arange(low, high, device=q.device) + start, ratio)
        count = int(visible[-1])
        if count == 0:
            continue
        choice = None if selected is None else selected[rows]
        paid = attention_paid(
            q[rows].detach(),
            window[first : before + high].detach(),
            entries[:count].detach(),
            choice,
            visible,
            sink.detach(),
            offset=before + low - first,
            sliding_window=sliding_window,
        )
        total = total + checkpoint(
            _divergence_of_tile,
            paid,
            index_q[rows],
            index_weights[rows],
            index_keys[:count],
            choice,
            start + low,
            ratio,
            use_reentrant=False,
        )
    return total


@torch.no_grad()
def attention_paid(
    q: Tensor,
    window: Tensor,
    entries: Tensor,
    selected: Tensor | None,
    visible: Tensor,
    sink: Tensor,
    *,
    offset: int,
    sliding_window: int,
) -> Tensor:
    """Each query's attention to its entries, summed over heads, summing to 1; 0 if it has none.

    Row 0 of `q` belongs to row `offset` of `window`.
    """
    tile, keys, some = upcast(q), upcast(window), upcast(entries)
    numbers = torch.arange(keys.shape[0], device=q.device)
    distance = torch.arange(q.shape[0], device=q.device)[:, None] + offset - numbers
    hidden = (distance < 0) | (distance >= sliding_window)
    near = torch.einsum("thd,sd->ths", tile, keys).masked_fill(hidden[:, None], -torch.inf)
    if selected is None:
        unseen = torch.arange(some.shape[0], device=q.device) >= visible[:, None]
        far = torch.einsum("thd,sd->ths", tile, some)
    else:
        unseen = selected < 0
        far = torch.einsum("thd,tkd->thk", tile, some[selected.clamp_min(0)])
    far = far.masked_fill(unseen[:, None], -torch.inf)
    sinks = upcast(sink)[None, :, None].expand(q.shape[0], -1, 1)
    scores = torch.cat((torch.cat((near, far), -1) * q.shape[-1] ** -0.5, sinks), -1)
    paid = scores.softmax(-1)[..., near.shape[-1] : -1].sum(1)
    return paid / paid.sum(-1, keepdim=True).clamp_min(torch.finfo(paid.dtype).tiny)


def _divergence_of_tile(
    paid: Tensor,
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    selected: Tensor | None,
    start: int,
    ratio: int,
) -> Tensor:
    scores = index_scores(q, weights, keys, start=start, ratio=ratio)
    if selected is not None:
        scores = scores.gather(1, selected.clamp_min(0)).masked_fill(selected < 0, -torch.inf)
    return divergence(paid, scores)


def divergence(paid: Float[Tensor, "t s"], scores: Float[Tensor, "t s"]) -> Float[Tensor, ""]:
    """Sum over queries of KL(paid || softmax(scores)); scores of -inf are of entries not read."""
    guess = scores.masked_fill(scores == -torch.inf, _HIDDEN).log_softmax(-1)
    return (torch.xlogy(paid, paid) - paid * guess).sum()
