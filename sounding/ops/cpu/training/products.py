"""Linear maps for training: one, a stack of them with rows for each, or one per group of channels.

On processors that multiply bfloat16, in tiles (AMX) or in vectors (AVX512_BF16), their three
products (of the input, and of the gradient with the weight and with the input) are kernels of ours
on matrices in tiles; elsewhere torch's. See ops/matmul.py.
"""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.ops.cpu import library
from sounding.ops.cpu.threads import num_threads
from sounding.ops.cpu.training.call import rows, tiles_serve
from sounding.ops.matmul import Weight
from sounding.ops.quant import LINEAR_INPUT_BLOCK, simulate_fp8


def linear(x: Tensor, weight: Weight, *, simulate: bool = False) -> Any:
    """Twin of the reference; NotImplemented for packed weights and where tiles do not serve."""
    if weight.scale is not None or not have_tiles(x, weight.values):
        return NotImplemented
    if simulate:
        x = simulate_fp8(x, LINEAR_INPUT_BLOCK)
    flat = x.flatten(0, -2)
    product: Tensor = _Product.apply(flat, weight.values[None], [0, len(flat)])
    return product.unflatten(0, x.shape[:-1])


def wide_linear(x: Float[Tensor, "t i"], weight: Weight) -> Any:
    """Twin of the reference; NotImplemented for packed weights and where tiles do not serve.

    Like every product of bf16 numbers here it is added up in float32, and so are its gradients.
    """
    if weight.scale is not None or not have_tiles(x, weight.values):
        return NotImplemented
    return _Product.apply(x, weight.values[None], [0, len(x)], torch.float32)


def grouped_linear(x: Float[Tensor, "t g i"], weight: Weight, groups: int) -> Any:
    """Twin of the reference; NotImplemented for packed weights and where tiles do not serve."""
    stacked = weight.values.unflatten(0, (groups, -1))
    if weight.scale is not None or not have_tiles(x, stacked):
        return NotImplemented
    return _Grouped.apply(x, stacked)


def product(
    x: Float[Tensor, "t i"], weight: Float[Tensor, "e o i"], bounds: list[int]
) -> Float[Tensor, "t o"]:
    """Rows from bounds[e] to bounds[e + 1] of x times the transpose of weight e, in x's dtype."""
    result: Tensor = _Product.apply(x, weight, bounds)
    return result


def have_tiles(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels below serve an input and weights [..., o, i]."""
    bfloat16 = x.dtype == torch.bfloat16
    return bfloat16 and x.shape[-1] == weight.shape[-1] and tiles_serve(*weight.shape[-2:])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bounds: list[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        y = x.new_empty(len(x), weight.shape[1], dtype=dtype)
        ctx.bounds, ctx.like, ctx.tiles = bounds, weight, have_tiles(x, weight)
        if ctx.tiles:
            x = _with_rows(x)
            turned, straight = pack(weight)
            multiply(x, turned, bounds, y)
        else:
            straight = weight.to(x.dtype)
            for e, (low, high) in enumerate(pairwise(bounds)):
                torch.mm(x[low:high], straight[e].T, out=y[low:high])
        ctx.save_for_backward(x, straight)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, straight = ctx.saved_tensors
        grad_x = x.new_empty(x.shape)
        if ctx.tiles:
            grad = _with_rows(gradients[0].to(x.dtype))
            multiply(grad, straight, ctx.bounds, grad_x)
            grad_weight = torch.empty_like(ctx.like, dtype=torch.float32)
            outer(grad, x, ctx.bounds, grad_weight)
        else:
            grad, grad_weight = gradients[0].contiguous(), torch.empty_like(straight)
            for e, (low, high) in enumerate(pairwise(ctx.bounds)):
                torch.mm(grad[low:high], straight[e], out=grad_x[low:high])
                torch.mm(grad[low:high].T, x[low:high], out=grad_weight[e])
        return grad_x, grad_weight.to(ctx.like.dtype), None, None


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        turned, straight = pack(weight)
        y = x.new_empty(len(x), *weight.shape[:2])
        for group in range(len(weight)):
            multiply(x[:, group], turned[group, None], [0, len(x)], y[:, group])
        ctx.save_for_backward(x, straight)
        ctx.like = weight
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, straight = ctx.saved_tensors
        grad, bounds = gradients[0].contiguous(), [0, len(x)]
        grad_x = x.new_empty(x.shape)
        grad_weight = torch.empty_like(ctx.like, dtype=torch.float32)
        for group in range(len(straight)):
            multiply(grad[:, group], straight[group, None], bounds, grad_x[:, group])
            outer(grad[:, group], x[:, group], bounds, grad_weight[group])
        return grad_x, grad_weight.to(ctx.like.dtype)


def _with_rows(x: Tensor) -> Tensor:
    """With channels side by side, rows at any distance."""
    return x if x.stride(-1) == 1 else x.contiguous()


def pack(weight: Float[Tensor, "e o i"]) -> tuple[Tensor, Tensor]:
    """The right operands of y = x W^T and of dx = g W: as matrices [i, o] and [o, i], in tiles."""
    count, outputs, inputs = weight.shape
    turned = weight.new_empty(count, inputs, outputs, dtype=torch.bfloat16)
    straight = weight.new_empty(count, outputs, inputs, dtype=torch.bfloat16)
    sizes = (rows(count), rows(outputs), rows(inputs))
    bfloat16 = ctypes.c_int(weight.dtype == torch.bfloat16)
    _call("pack", *sizes, weight.contiguous(), turned, straight, first=(bfloat16,))
    return turned, straight


def multiply(
    x: Float[Tensor, "t k"], right: Float[Tensor, "e k n"], bounds: Sequence[int], y: Tensor
) -> None:
    """y = x times the right operand that a row belongs to; y is bfloat16 or float32."""
    sizes = (rows(right.shape[1]), rows(right.shape[2]))
    _call(
        "multiply",
        *(*_groups(bounds), *sizes, x, rows(x.stride(0)), right, y, rows(y.stride(0))),
        first=(ctypes.c_int(y.dtype == torch.bfloat16),),
    )


def outer(
    g: Float[Tensor, "t o"],
    x: Float[Tensor, "t i"],
    bounds: Sequence[int],
    out: Tensor,
    *,
    add: bool = False,
) -> None:
    """out = g^T x in float32, of each group's rows, or that added to it."""
    sizes = (rows(g.shape[1]), rows(x.shape[1]), ctypes.c_int(add))
    _call("outer", *_groups(bounds), *sizes, g, rows(g.stride(0)), x, rows(x.stride(0)), out)


def _groups(bounds: Sequence[int]) -> tuple[Any, ...]:
    return rows(len(bounds) - 1), (ctypes.c_int64 * len(bounds))(*bounds)


def _call(name: str, *arguments: Any, first: tuple[Any, ...] = ()) -> None:
    passed = [
        ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else argument
        for argument in arguments
    ]
    threads = ctypes.c_int(num_threads())
    getattr(library(), f"train_{name}")(*first, threads, *passed)
