"""Experts for training: rows sorted by expert, one product per expert. See ops/experts.py."""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sounding.ops.cpu.training.call import call, rows
from sounding.ops.cpu.training.products import product
from sounding.ops.matmul import Weight
from sounding.ops.quant import LINEAR_INPUT_BLOCK, simulate_fp8

# Rows of an expert are a multiple of this: products are compiled for each shape they meet.
_ALIGNMENT = 32


class _Places(NamedTuple):
    """The rows of (token, choice) pairs, sorted by expert.

    An expert's rows are padded with blank ones: zeros without a token.
    """

    token: Tensor  # of each row, -1 in blank ones
    of_token: Tensor  # [t, k] the rows of each token, in order of experts
    row: Tensor  # of each pair, flat over tokens and choices
    bounds: list[int]  # rows of expert e are bounds[e] to bounds[e + 1]


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w1: Weight,
    w2: Weight,
    w3: Weight,
    *,
    limit: float,
    simulate: bool = False,
    always: Tensor | None = None,
) -> Any:
    """Twin of the reference; NotImplemented for packed weights, which are not trained."""
    if not _plain(w1, w2, w3):
        return NotImplemented
    places = _sort(chosen, w1.values.shape[0])
    if simulate:
        x = simulate_fp8(x, LINEAR_INPUT_BLOCK)
    gathered = _ToExperts.apply(x.contiguous(), places)
    by = weights.new_zeros(len(places.token)).index_put((places.row,), weights.flatten())
    inner = _swiglu(gathered, w1.values, w3.values, by, places.bounds, limit)
    if simulate:
        inner = simulate_fp8(inner, LINEAR_INPUT_BLOCK)
    if always is not None:
        always = always.contiguous()
    return _ToTokens.apply(product(inner, places.bounds, w2.values), places, always)


def swiglu(
    x: Tensor,
    w1: Weight,
    w2: Weight,
    w3: Weight,
    *,
    limit: float,
    weight: Tensor | None = None,
    simulate: bool = False,
) -> Any:
    """Twin of the reference; NotImplemented for packed weights, which are not trained."""
    if not _plain(w1, w2, w3):
        return NotImplemented
    bounds = [0, len(x)]
    if simulate:
        x = simulate_fp8(x, LINEAR_INPUT_BLOCK)
    by = None if weight is None else weight[:, 0].float()
    inner = _swiglu(x.contiguous(), w1.values[None], w3.values[None], by, bounds, limit)
    if simulate:
        inner = simulate_fp8(inner, LINEAR_INPUT_BLOCK)
    return product(inner, bounds, w2.values[None])


def _plain(*weights: Weight) -> bool:
    return all(weight.scale is None for weight in weights)


def _sort(chosen: Tensor, num_experts: int) -> _Places:
    flat = chosen.flatten()
    counts = flat.bincount(minlength=num_experts)
    taken = (counts + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
    first, before = taken.cumsum(0) - taken, counts.cumsum(0) - counts
    order = flat.argsort(stable=True)
    sorted_experts = flat[order]
    row_in_order = torch.arange(len(order)) + (first - before)[sorted_experts]
    row = torch.empty_like(order).index_put((order,), row_in_order)
    bounds = [0, *taken.cumsum(0).tolist()]
    token = torch.full((bounds[-1],), -1)
    token[row_in_order] = order // chosen.shape[1]
    return _Places(token, row.view_as(chosen).sort(1).values, row, bounds)


def _swiglu(
    x: Tensor, w1: Tensor, w3: Tensor, by: Tensor | None, bounds: list[int], limit: float
) -> Tensor:
    inner: Tensor = _SwiGLU.apply(product(x, bounds, w1, w3), by, limit)
    return inner


class _SwiGLU(torch.autograd.Function):
    """SwiGLU of gates and inputs that are side by side."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, by: Tensor | None, limit: float) -> Tensor:
        inner = both.new_empty(len(both), both.shape[1] // 2)
        sizes = (rows(len(both)), inner.shape[1], ctypes.c_float(limit))
        call("swiglu", both, *sizes, both, by, inner)
        ctx.save_for_backward(both, by)
        ctx.sizes = sizes
        return inner

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        both, by = ctx.saved_tensors
        grad_both = torch.empty_like(both)
        grad_by = None if by is None else torch.empty_like(by)
        grad = gradients[0].contiguous()
        call("swiglu_backward", both, *ctx.sizes, both, by, grad, grad_both, grad_by)
        return grad_both, grad_by, None


class _ToExperts(torch.autograd.Function):
    """A row of x for every choice, sorted by expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        return _gather(x, places, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        grad = gradients[0].contiguous()
        return _combine(grad, ctx.places, None, grad.dtype), None


class _ToTokens(torch.autograd.Function):
    """The sum of each token's rows, in float32 and in order of experts; what there is `always` is
    added, and the sum cast to its dtype."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, places: _Places, always: Tensor | None) -> Tensor:
        ctx.places, ctx.dtype = places, y.dtype
        return _combine(y, places, always, torch.float32 if always is None else y.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:
        grad = gradients[0].contiguous()
        return _gather(grad, ctx.places, ctx.dtype), None, grad if ctx.needs_input_grad[2] else None


def _gather(x: Tensor, places: _Places, dtype: torch.dtype) -> Tensor:
    y = x.new_empty(len(places.token), x.shape[1], dtype=dtype)
    call("gather", y, rows(len(y)), x.shape[1], x.dtype == torch.float32, x, places.token, y)
    return y


def _combine(x: Tensor, places: _Places, more: Tensor | None, dtype: torch.dtype) -> Tensor:
    tokens, picks = places.of_token.shape
    y = x.new_empty(tokens, x.shape[1], dtype=dtype)
    sizes = (rows(tokens), x.shape[1], picks, dtype == torch.float32)
    call("combine", x, *sizes, x, places.of_token, more, y)
    return y
