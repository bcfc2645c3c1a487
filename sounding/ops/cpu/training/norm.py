"""RMS normalisation and rotation for training. See ops/norm.py and ops/rope.py."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu.training.call import call, rows

_GRAIN = 64  # GRAIN of norm.cpp: rows that share a partial gradient of the weight


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Any:
    """Twin of the reference."""
    if weight is not None and weight.dtype != torch.float32:
        return NotImplemented
    return _RMSNorm.apply(x.contiguous(), weight, eps)


def rotate(x: Tensor, by: tuple[Tensor, Tensor], *, inverse: bool = False) -> Any:
    """Twin of the reference."""
    return _Rotate.apply(x.contiguous(), *by, -1.0 if inverse else 1.0)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        width = x.shape[-1]
        count = x.numel() // width
        y, rho = torch.empty_like(x), x.new_empty(count, dtype=torch.float32)
        call("rms_norm", x, rows(count), width, ctypes.c_float(eps), x, weight, y, rho)
        ctx.save_for_backward(x, weight, rho)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, rho = ctx.saved_tensors
        grad_x, width = torch.empty_like(x), x.shape[-1]
        partial = None
        if weight is not None:
            partial = x.new_empty(-(-len(rho) // _GRAIN), width, dtype=torch.float32)
        call(
            "rms_norm_backward",
            x,
            *(rows(len(rho)), width, x, weight, rho),
            *(gradients[0].contiguous(), grad_x, partial),
        )
        return grad_x, partial.sum(0) if partial is not None else None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.sign = sign
        return _rotated(x, cos, sin, sign)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        # A rotation's transpose turns back.
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0].contiguous(), cos, sin, -ctx.sign), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    y, (tokens, pairs) = torch.empty_like(x), cos.shape
    heads = x.shape[1] if x.ndim == 3 else 1
    sizes = (rows(tokens), heads, x.shape[-1], pairs, ctypes.c_float(sign))
    call("rotate", x, *sizes, x, cos.contiguous(), sin.contiguous(), y)
    return y
