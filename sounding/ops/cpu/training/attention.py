"""Attention for training: if tiles serve, one kernel forward and one backward.

Elsewhere products are torch's, softmax and its gradient a kernel, in tiles of queries: a tile's
keys are the window's and the entries' concatenated, so each product is one for all heads.
All entries are scored and those not selected masked: at the lengths of training that costs less
than gathering. See ops/attention.py.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sounding.ops.attention import index_scores, num_visible
from sounding.ops.cpu import address
from sounding.ops.cpu.training.call import call, launch, tiles_serve
from sounding.ops.index_loss import divergence

_QUERIES = 128  # of a tile
# Queries and keys of a tile are multiples of this, blank ones at the end that nothing sees:
# products are compiled for each shape they meet.
_ALIGNMENT = 32
_MOST_PAIRS = 1 << 22  # of query and entry, for which index scores exist at once


class _Where(NamedTuple):
    """The context of a span of queries; see `attend`."""

    start: int
    sliding_window: int
    ratio: int


class _Attention(ctypes.Structure):
    """struct Attention of attend_tiles.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in "queries heads width".split()),
        *((name, ctypes.c_int64) for name in "before num_entries picks".split()),
        *((name, ctypes.c_int64) for name in _Where._fields),
        *((name, ctypes.c_void_p) for name in "q window entries selected sink".split()),
    )


class _Gradient(ctypes.Structure):
    """struct Gradient of attend_tiles.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in "output grad log_sum delta grad_q grad_window grad_entries".split()
    )


class _Tile(ctypes.Structure):
    """struct Tile of attention.cpp."""

    _fields_ = (
        ("queries", ctypes.c_int64),
        ("heads", ctypes.c_int),
        ("near", ctypes.c_int),
        ("far", ctypes.c_int),
        ("offset", ctypes.c_int),
        ("window", ctypes.c_int),
        ("scale", ctypes.c_float),
    )


def attend(
    q: Tensor,
    window: Tensor,
    entries: Tensor | None,
    selected: Tensor | None,
    sink: Tensor,
    *,
    start: int,
    sliding_window: int,
    ratio: int,
) -> Any:
    """Twin of the reference; NotImplemented for float64 sinks."""
    if sink.dtype != torch.float32:
        return NotImplemented
    width = q.shape[-1]
    if entries is None:
        entries = window[:0]
    where = _Where(start, sliding_window, ratio)
    bfloat16 = all(part.dtype == torch.bfloat16 for part in (q, window, entries))
    function = _AttendOnTiles if bfloat16 and tiles_serve(width, width) else _Attend
    return function.apply(
        q.contiguous(), window.contiguous(), entries.contiguous(), selected, sink, where
    )


def index_loss(
    q: Tensor,
    window: Tensor,
    entries: Tensor,
    selected: Tensor | None,
    sink: Tensor,
    index_q: Tensor,
    index_weights: Tensor,
    index_keys: Tensor,
    *,
    start: int,
    sliding_window: int,
    ratio: int,
) -> Any:
    """Twin of the reference, without its tiles: for sequences whose square fits in memory."""
    if sink.dtype != torch.float32 or len(q) * len(entries) > _MOST_PAIRS:
        return NotImplemented
    where = _Where(start, sliding_window, ratio)
    paid = _attention_paid(q.detach(), window.detach(), entries.detach(), selected, sink, where)
    scores = index_scores(index_q, index_weights, index_keys, start=start, ratio=ratio)
    if selected is not None:
        scores = scores.masked_fill(_chosen(selected, len(entries)) == 0, -torch.inf)
    return divergence(paid, scores)


@torch.no_grad()
def _attention_paid(
    q: Tensor, window: Tensor, entries: Tensor, selected: Tensor | None, sink: Tensor, where: _Where
) -> Tensor:
    """Each query's attention to all entries, summed over heads and normalised over them."""
    paid = q.new_zeros(len(q), len(entries), dtype=torch.float32)
    for tile in _tiles(q, window, entries, selected, where):
        scores = tile.queries @ tile.keys.T
        log_sum = q.new_empty(len(scores), dtype=torch.float32)
        part = q.new_empty(tile.shape.queries, tile.shape.far, dtype=torch.float32)
        call(
            "softmax",
            scores,
            *(ctypes.byref(tile.shape), scores, tile.seen, sink.contiguous(), log_sum, part),
        )
        count = tile.rows.stop - tile.rows.start
        paid[tile.rows, : tile.far] = part[:count, : tile.far]
    return paid / paid.sum(-1, keepdim=True).clamp_min(torch.finfo(paid.dtype).tiny)


def _chosen(selected: Tensor, count: int) -> Tensor:
    """[t, count] 1 where an entry is selected."""
    chosen = torch.zeros(len(selected), count + 1, dtype=torch.uint8)
    return chosen.scatter_(1, torch.where(selected < 0, count, selected), 1)[:, :count]


class _Part(NamedTuple):
    """One tile: its queries as rows of heads, its keys, and which entries each query sees."""

    rows: slice
    queries: Tensor
    keys: Tensor
    seen: Tensor
    near: slice  # of the window
    far: int
    shape: _Tile


def _tiles(
    q: Tensor, window: Tensor, entries: Tensor, selected: Tensor | None, where: _Where
) -> list[_Part]:
    total, heads, width = q.shape
    before = window.shape[0] - total  # keys of earlier chunks
    chosen = None if selected is None else _chosen(selected, len(entries))
    parts = []
    for low in range(0, total, _QUERIES):
        high = min(low + _QUERIES, total)
        size = _aligned(high - low)
        first = max(0, before + low - where.sliding_window + 1)
        near = slice(first, before + high)
        far = 0
        if len(entries):
            visible = num_visible(torch.arange(low, high) + where.start, where.ratio)
            far = int(visible[-1])
        seen = torch.zeros(size, _aligned(far), dtype=torch.uint8)
        if chosen is not None:
            seen[: high - low, :far] = chosen[low:high, :far]
        elif far:
            seen[: high - low, :far] = torch.arange(far) < visible[:, None]
        keys = torch.cat(_padded(window[near]) + _padded(entries[:far]))
        shape = _Tile(
            size,
            heads,
            len(keys) - seen.shape[1],
            seen.shape[1],
            before + low - first,
            where.sliding_window,
            width**-0.5,
        )
        rows = slice(low, high)
        parts.append(_Part(rows, _rows_of(q, rows, size), keys, seen, near, far, shape))
    return parts


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _padded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, and blank ones up to a multiple of the alignment."""
    return rows, rows.new_zeros(_aligned(len(rows)) - len(rows), rows.shape[1])


def _rows_of(x: Tensor, part: slice, size: int) -> Tensor:
    """A tile of [t, h, ...] as rows [size * h, ...], blank ones at the end."""
    some = x[part]
    if len(some) < size:
        some = torch.cat((some, some.new_zeros(size - len(some), *some.shape[1:])))
    return some.flatten(0, 1)


def _put(rows: Tensor, to: Tensor, part: slice) -> None:
    """The inverse of `_rows_of`, into a tile of `to`."""
    to[part] = rows.unflatten(0, (-1, to.shape[1]))[: part.stop - part.start]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        window: Tensor,
        entries: Tensor,
        selected: Tensor | None,
        sink: Tensor,
        where: _Where,
    ) -> Tensor:
        output = torch.empty_like(q)
        log_sums = q.new_empty(q.shape[:2], dtype=torch.float32)
        for tile in _tiles(q, window, entries, selected, where):
            weights = tile.queries @ tile.keys.T  # scores, until the kernel has passed
            log_sum = q.new_empty(len(weights), dtype=torch.float32)
            shape = ctypes.byref(tile.shape)
            call("softmax", weights, shape, weights, tile.seen, sink.contiguous(), log_sum, None)
            _put(weights @ tile.keys, output, tile.rows)
            _put(log_sum, log_sums, tile.rows)
        ctx.save_for_backward(q, window, entries, selected, sink, output, log_sums)
        ctx.where = where
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor, None]:
        q, window, entries, selected, sink, output, log_sums = ctx.saved_tensors
        grad = gradients[0].contiguous()
        grad_q = torch.empty_like(q)
        grad_window = window.new_zeros(window.shape, dtype=torch.float32)
        grad_entries = entries.new_zeros(entries.shape, dtype=torch.float32)
        delta = (grad.float() * output.float()).sum(-1)
        for tile in _tiles(q, window, entries, selected, ctx.where):
            size = tile.shape.queries
            outer = _rows_of(grad, tile.rows, size)
            weights = tile.queries @ tile.keys.T  # scores, until the kernel has passed
            moved = outer @ tile.keys.T  # gradient of the weights, then of the scores
            call(
                "softmax_backward",
                weights,
                *(ctypes.byref(tile.shape), weights, moved, tile.seen),
                *(_rows_of(log_sums, tile.rows, size), _rows_of(delta, tile.rows, size)),
            )
            _put(moved @ tile.keys, grad_q, tile.rows)
            # Keys are also values.
            grad_keys = (moved.T @ tile.queries).float() + weights.T @ outer
            near = tile.near.stop - tile.near.start
            grad_window[tile.near] += grad_keys[:near]
            grad_entries[: tile.far] += grad_keys[tile.shape.near :][: tile.far]
        grad_sink = -((sink - log_sums).exp() * delta).sum(0)
        return (
            grad_q,
            grad_window.to(window.dtype),
            grad_entries.to(entries.dtype),
            None,
            grad_sink,
            None,
        )


def _attention(
    q: Tensor, window: Tensor, entries: Tensor, selected: Tensor | None, sink: Tensor, where: _Where
) -> Any:
    """The arguments of both kernels, by address: the tensors must outlive it."""
    picks = 0 if selected is None else selected.shape[1]
    sizes = (*q.shape, len(window) - len(q), len(entries), picks)
    chosen = None if selected is None else address(selected)
    memory = (address(q), address(window), address(entries), chosen, address(sink))
    return ctypes.byref(_Attention(*sizes, *where, *memory))


class _AttendOnTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        window: Tensor,
        entries: Tensor,
        selected: Tensor | None,
        sink: Tensor,
        where: _Where,
    ) -> Tensor:
        output = torch.empty_like(q)
        log_sums = q.new_empty(q.shape[:2], dtype=torch.float32)
        selected = None if selected is None else selected.contiguous()
        sink = sink.contiguous()
        ctx.save_for_backward(q, window, entries, selected, sink, output, log_sums)
        ctx.where = where
        given = _attention(q, window, entries, selected, sink, where)
        launch("attend", given, address(output), address(log_sums))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor, None]:
        q, window, entries, selected, sink, output, log_sums = ctx.saved_tensors
        results = [torch.empty_like(part) for part in (log_sums, q, window, entries)]
        grad = gradients[0].contiguous()
        memory = [address(part) for part in (output, grad, log_sums, *results)]
        given = _attention(q, window, entries, selected, sink, ctx.where)
        launch("attend_backward", given, ctypes.byref(_Gradient(*memory)))
        delta, grad_q, grad_window, grad_entries = results
        grad_sink = -((sink - log_sums).exp() * delta).sum(0)
        return grad_q, grad_window, grad_entries, None, grad_sink, None
