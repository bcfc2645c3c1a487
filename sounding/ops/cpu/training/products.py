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

from sounding.ops.cpu.training.call import launch, rows, tiles_serve
from sounding.ops.matmul import Weight
from sounding.ops.quant import LINEAR_INPUT_BLOCK, simulate_fp8


def linear(x: Tensor, weight: Weight, *, simulate: bool = False) -> Any:
    """Twin of the reference; NotImplemented for packed weights and where tiles do not serve."""
    if weight.scale is not None or not have_tiles(x, weight.values):
        return NotImplemented
    if simulate:
        x = simulate_fp8(x, LINEAR_INPUT_BLOCK)
    flat = x.flatten(0, -2)
    product: Tensor = _Product.apply(flat, [0, len(flat)], x.dtype, weight.values[None])
    return product.unflatten(0, x.shape[:-1])


def wide_linear(x: Float[Tensor, "t i"], *weights: Weight) -> Any:
    """Twin of the reference; NotImplemented for packed weights and where tiles do not serve.

    Like every product of bf16 numbers here it is added up in float32, and so are its gradients.
    """
    if any(w.scale is not None or not have_tiles(x, w.values) for w in weights):
        return NotImplemented
    return _Product.apply(x, [0, len(x)], torch.float32, *(w.values[None] for w in weights))


def grouped_linear(x: Float[Tensor, "t g i"], weight: Weight, groups: int) -> Any:
    """Twin of the reference; NotImplemented for packed weights and where tiles do not serve."""
    stacked = weight.values.unflatten(0, (groups, -1))
    if weight.scale is not None or not have_tiles(x, stacked):
        return NotImplemented
    return _Grouped.apply(x, stacked)


def product(
    x: Float[Tensor, "t i"], bounds: list[int], *weights: Float[Tensor, "e _ i"]
) -> Float[Tensor, "t oo"]:
    """Rows from bounds[e] to bounds[e + 1] of x times the transpose of weight e, in x's dtype; of
    several weights side by side."""
    result: Tensor = _Product.apply(x, bounds, x.dtype, *weights)
    return result


def have_tiles(x: Tensor, weight: Tensor) -> bool:
    """True if the kernels below serve an input and weights [..., o, i]."""
    bfloat16 = x.dtype == torch.bfloat16
    return bfloat16 and x.shape[-1] == weight.shape[-1] and tiles_serve(*weight.shape[-2:])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bounds: list[int], dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        ctx.bounds, ctx.weights = bounds, weights
        ctx.outputs = [weight.shape[1] for weight in weights]
        ctx.tiles = all(have_tiles(x, weight) for weight in weights)
        y = x.new_empty(len(x), sum(ctx.outputs), dtype=dtype)
        if ctx.tiles:
            x = _with_rows(x)
            turned, straight = pack(*weights)
            multiply(x, turned, bounds, y)
            ctx.save_for_backward(x, straight)
            return y
        straights = [weight.to(x.dtype) for weight in weights]
        for part, straight in zip(y.split(ctx.outputs, 1), straights, strict=True):
            for e, (low, high) in enumerate(pairwise(bounds)):
                torch.mm(x[low:high], straight[e].T, out=part[low:high])
        ctx.save_for_backward(x, *straights)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *straights = ctx.saved_tensors
        grad_x = x.new_empty(x.shape)
        learns = any(ctx.needs_input_grad[3:])  # all of one call do, or are frozen beside a delta
        if ctx.tiles:
            grad = _with_rows(gradients[0].to(x.dtype))
            multiply(grad, straights[0], ctx.bounds, grad_x)
            if not learns:
                return grad_x, None, None, *(None for _ in ctx.weights)
            grads = [torch.empty_like(weight, dtype=torch.float32) for weight in ctx.weights]
            outer(grad, x, ctx.bounds, *grads)
        else:
            grads = [torch.empty_like(straight) for straight in straights]
            parts = gradients[0].contiguous().split(ctx.outputs, 1)
            for e, (low, high) in enumerate(pairwise(ctx.bounds)):
                for grad, grad_weight in zip(parts, grads, strict=True):
                    torch.mm(grad[low:high].T, x[low:high], out=grad_weight[e])
                torch.mm(parts[0][low:high], straights[0][e], out=grad_x[low:high])
                for grad, straight in zip(parts[1:], straights[1:], strict=True):
                    grad_x[low:high].addmm_(grad[low:high], straight[e])
        back = [g.to(weight.dtype) for g, weight in zip(grads, ctx.weights, strict=True)]
        return grad_x, None, None, *back


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
    """Make channels contiguous; rows may have any stride."""
    return x if x.stride(-1) == 1 else x.contiguous()


def pack(*weights: Float[Tensor, "e _ i"]) -> tuple[Tensor, Tensor]:
    """The right operands of y = x W^T and of dx = g W: as matrices [i, o] and [o, i], in tiles.

    Of several weights, W is one below the other.
    """
    count, _, inputs = weights[0].shape
    total, begin = sum(weight.shape[1] for weight in weights), 0
    turned = weights[0].new_empty(count, inputs, total, dtype=torch.bfloat16)
    straight = weights[0].new_empty(count, total, inputs, dtype=torch.bfloat16)
    for weight in weights:
        sizes = (rows(count), rows(weight.shape[1]), rows(inputs))
        place = (rows(begin), rows(total), turned, straight)
        bfloat16 = ctypes.c_int(weight.dtype == torch.bfloat16)
        _call("pack", *sizes, weight.contiguous(), *place, first=(bfloat16,))
        begin += weight.shape[1]
    return turned, straight


def multiply(
    x: Float[Tensor, "t k"], right: Float[Tensor, "e k n"], bounds: Sequence[int], y: Tensor
) -> None:
    """y = x times each row's right operand; y is bfloat16 or float32."""
    sizes = (rows(right.shape[1]), rows(right.shape[2]))
    _call(
        "multiply",
        *(*_groups(bounds), *sizes, x, rows(x.stride(0)), right, y, rows(y.stride(0))),
        first=(ctypes.c_int(y.dtype == torch.bfloat16),),
    )


def outer(
    g: Float[Tensor, "t oo"],
    x: Float[Tensor, "t i"],
    bounds: Sequence[int],
    *out: Float[Tensor, "*e _ i"],
    add: bool = False,
) -> None:
    """out = g^T x in float32, of each group's rows, or that added to it.

    Several are those of columns of g side by side.
    """
    outputs = (ctypes.c_int64 * len(out))(*(one.shape[-2] for one in out))
    to = (ctypes.c_void_p * len(out))(*(one.data_ptr() for one in out))
    sizes = (rows(x.shape[1]), ctypes.c_int(add))
    memory = (g, rows(g.stride(0)), x, rows(x.stride(0)), rows(len(out)), outputs, to)
    _call("outer", *_groups(bounds), *sizes, *memory)


def _groups(bounds: Sequence[int]) -> tuple[Any, ...]:
    return rows(len(bounds) - 1), (ctypes.c_int64 * len(bounds))(*bounds)


def _call(name: str, *arguments: Any, first: tuple[Any, ...] = ()) -> None:
    passed = [
        ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else argument
        for argument in arguments
    ]
    launch(name, *passed, first=first)
