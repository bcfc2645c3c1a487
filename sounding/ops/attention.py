"""Attention over a window and compressed entries with a sink, and the selection of those entries.

One sequence at a time: its queries are consecutive tokens. Work goes in tiles of queries, so memory
grows with the tile and the context, never with their square. Visibility follows from absolute
positions alone, which is why any split of a sequence gives the same result.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.ops.dispatch import op
from sounding.ops.norm import upcast

QUERY_TILE = 128  # queries whose scores exist at once; a tile of window keys is then 255 long
SCORE_BUDGET = 1 << 24  # numbers in one tile of index scores


def num_visible(positions: Int[Tensor, " t"], ratio: int) -> Int[Tensor, " t"]:
    """Number of compressed entries visible to the query at each position: those whose last token
    is not after it. Source: docs/architecture.md 5.4."""
    return (positions + 1) // ratio


@op(training={"cpu": "sounding.ops.cpu.training.attention:attend"})
def attend(
    q: Float[Tensor, "t h d"],
    window: Float[Tensor, "w d"],
    entries: Float[Tensor, "s d"] | None,
    selected: Int[Tensor, "t k"] | None,
    sink: Float[Tensor, " h"],
    *,
    start: int,
    sliding_window: int,
    ratio: int,
) -> Float[Tensor, "t h d"]:
    """Attend to the window and to compressed entries under one softmax with a sink.

    The queries have positions start, start + 1, ...; `window` ends with their own keys.
    `entries` are all that exist, or None in a window layer; `selected` restricts them to the listed
    ones per query (-1 is none), otherwise every visible one counts. Keys are also the values.
    weights = exp(d^-0.5 <q, k>) / (sum exp(...) + exp(sink)). Source: docs/architecture.md 5.5.
    """
    tiles = []
    before = window.shape[0] - q.shape[0]  # keys of earlier chunks
    for low in range(0, q.shape[0], QUERY_TILE):
        rows = slice(low, low + QUERY_TILE)
        tile = upcast(q[rows])
        positions = torch.arange(low, low + tile.shape[0], device=q.device) + start
        first = max(0, before + low - sliding_window + 1)
        keys = upcast(window[first : before + low + tile.shape[0]])
        distance = positions[:, None] - (
            torch.arange(keys.shape[0], device=q.device) + (first - before + start)
        )
        hidden = (distance < 0) | (distance >= sliding_window)
        parts = [(torch.einsum("thd,sd->ths", tile, keys), hidden, keys)]
        if entries is not None and selected is not None:
            chosen = upcast(entries[selected[rows].clamp_min(0)])  # t k d
            parts.append((torch.einsum("thd,tkd->thk", tile, chosen), selected[rows] < 0, chosen))
        elif entries is not None:
            count = num_visible(positions, ratio)
            some = upcast(entries[: int(count[-1])])
            unseen = torch.arange(some.shape[0], device=q.device) >= count[:, None]
            parts.append((torch.einsum("thd,sd->ths", tile, some), unseen, some))
        tiles.append(_attend_to_parts(parts, sink, q.shape[-1]).to(q.dtype))
    return torch.cat(tiles) if tiles else q


def attend_to_all(
    q: Float[Tensor, "t h d"], keys: Float[Tensor, "s d"], sink: Float[Tensor, " h"]
) -> Float[Tensor, "t h d"]:
    """Attend to all keys, whatever the position of a query, under one softmax with a sink."""
    tile, wide = upcast(q), upcast(keys)
    none = torch.zeros(len(q), len(keys), dtype=torch.bool, device=q.device)
    parts = [(torch.einsum("thd,sd->ths", tile, wide), none, wide)]
    return _attend_to_parts(parts, sink, q.shape[-1]).to(q.dtype)


def _attend_to_parts(
    parts: list[tuple[Tensor, Tensor, Tensor]], sink: Tensor, width: int
) -> Tensor:
    """Softmax over the union of parts, each (scores, hidden ones, values shared or per query)."""
    scores = [raw.masked_fill(hidden[:, None], -torch.inf) for raw, hidden, _ in parts]
    sizes = [part.shape[-1] for part in scores]
    sinks = sink.to(scores[0].dtype)[None, :, None].expand(scores[0].shape[0], -1, 1)
    weights = torch.cat((*(part * width**-0.5 for part in scores), sinks), -1).softmax(-1)
    output = torch.zeros((), dtype=weights.dtype, device=weights.device)
    for share, (_, _, values) in zip(weights.split((*sizes, 1), -1), parts, strict=False):
        equation = "ths,sd->thd" if values.ndim == 2 else "thk,tkd->thd"
        output = output + torch.einsum(equation, share, values)
    return output


def select_entries(
    q: Float[Tensor, "t h d"],
    weights: Float[Tensor, "t h"],
    keys: Float[Tensor, "s d"],
    *,
    start: int,
    ratio: int,
    limit: int,
) -> Int[Tensor, "t k"]:
    """The entries each query attends to: the best `limit` visible ones by index score, then -1.

    score = sum_h weight_h * relu(<q_h, key>); ties go to the lower index. Ascending in each row.
    Source: docs/architecture.md 7.
    """
    limit = min(limit, keys.shape[0])
    # One tensor for all tiles: kept one by one between their large scores, which are freed, they
    # would leave the heap full of holes, gigabytes for a long chunk.
    chosen = torch.empty(q.shape[0], limit, dtype=torch.int64, device=q.device)
    tile = max(1, SCORE_BUDGET // max(1, q.shape[1] * keys.shape[0]))
    for low in range(0, q.shape[0], tile):
        rows = slice(low, low + tile)
        visible = keys[: (start + min(low + tile, q.shape[0])) // ratio]
        scores = index_scores(q[rows], weights[rows], visible, start=start + low, ratio=ratio)
        chosen[rows] = top_k(scores, limit)
    return chosen


def index_scores(
    q: Float[Tensor, "t h d"],
    weights: Float[Tensor, "t h"],
    keys: Float[Tensor, "s d"],
    *,
    start: int,
    ratio: int,
) -> Float[Tensor, "t s"]:
    """Index score of every entry for queries from position `start` on; -inf where not visible."""
    products = torch.einsum("thd,sd->ths", upcast(q), upcast(keys)).relu()
    scores = torch.einsum("ths,th->ts", products, upcast(weights))
    positions = torch.arange(q.shape[0], device=q.device) + start
    entry = torch.arange(keys.shape[0], device=q.device)
    return scores.masked_fill(entry >= num_visible(positions, ratio)[:, None], -torch.inf)


def top_k(scores: Float[Tensor, "t s"], k: int) -> Int[Tensor, "t k"]:
    """Indices of the k largest scores in ascending order, ties to the lower index.

    Rows with fewer scores above -inf end in -1. torch.topk breaks ties differently for different
    lengths, which would make a result depend on how a sequence is split; so it only finds the
    k-th value, and ties with that are counted out.
    """
    indices = scores.new_full((scores.shape[0], k), -1, dtype=torch.int64)
    if 0 in (k, *scores.shape):
        return indices
    threshold = scores.topk(min(k, scores.shape[1]), -1).values[:, -1:]
    chosen = (scores >= threshold) & (scores > -torch.inf)
    crowded = (chosen.sum(-1) > k).nonzero().flatten()
    if len(crowded):
        edge, rest = threshold[crowded], scores[crowded]
        room = k - (rest > edge).sum(-1, keepdim=True)
        chosen[crowded] = (rest > edge) | ((rest == edge) & ((rest == edge).cumsum(-1) <= room))
    rows, columns = chosen.nonzero(as_tuple=True)
    counts = chosen.sum(-1)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    indices[rows, place] = columns
    return indices
