"""Native twins of `connect` and `write` in `ops/hyper_connection.py`, with their gradients."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu import address, library
from sounding.ops.cpu.threads import num_threads
from sounding.ops.hyper_connection import Connection

# Sizes of the kernel's stack arrays: MAX_STREAMS and MAX_ITERATIONS in hyper_connection.h.
_MAX_STREAMS = 8
_MAX_ITERATIONS = 64

# Tokens of a partial sum: RANGE in training/hyper_tiles.cpp.
_RANGE = 256


class _Shape(ctypes.Structure):
    """struct Shape of hyper_connection.h."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("streams", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("iterations", ctypes.c_int),
        ("norm_eps", ctypes.c_float),
        ("hc_eps", ctypes.c_float),
    )


def connect(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    *,
    iterations: int,
    norm_eps: float,
    hc_eps: float,
) -> Any:
    """See the reference; NotImplemented for shapes and dtypes it has to serve itself."""
    small = streams.shape[1] <= _MAX_STREAMS and iterations <= _MAX_ITERATIONS
    if not small or any(part.dtype != torch.float32 for part in (fn, base, scale)):
        return NotImplemented
    shape = _Shape(*streams.shape, iterations, norm_eps, hc_eps)
    parts = (streams.contiguous(), fn.contiguous(), base.contiguous(), scale.contiguous())
    return Connection(*_Connect.apply(*parts, shape))


def write(streams: Tensor, output: Tensor, post: Tensor, mix: Tensor) -> Any:
    """See the reference; NotImplemented for shapes and dtypes it has to serve itself."""
    floats = post.dtype == mix.dtype == torch.float32 and output.dtype == streams.dtype
    if streams.shape[1] > _MAX_STREAMS or not floats:
        return NotImplemented
    return _Write.apply(
        streams.contiguous(), output.contiguous(), post.contiguous(), mix.contiguous()
    )


def collapse(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, hc_eps: float
) -> Any:
    """See the reference: what `connect` reads, with no weight on what it would write."""
    m = streams.shape[1]
    rest = (1 + m) * m
    connection = connect(
        streams,
        torch.cat((fn, fn.new_zeros(rest, fn.shape[1]))),
        torch.cat((base, base.new_zeros(rest))),
        torch.cat((scale, scale.new_zeros(2))),
        iterations=1,
        norm_eps=norm_eps,
        hc_eps=hc_eps,
    )
    return connection if connection is NotImplemented else connection.x


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, shape: _Shape
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens, m, channels = streams.shape
        x = streams.new_empty(tokens, channels)
        post, mix = fn.new_empty(tokens, m), fn.new_empty(tokens, m, m)
        raw, rho = fn.new_empty(tokens, fn.shape[0]), fn.new_empty(tokens)
        _call("connect", shape, streams, fn, base, scale, x, post, mix, raw, rho)
        ctx.save_for_backward(streams, fn, base, scale, raw, rho)
        ctx.shape = shape
        return x, post, mix, streams.view_as(streams)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        streams, fn, base, scale, raw, _ = ctx.saved_tensors
        given = (*ctx.saved_tensors, *(gradient.contiguous() for gradient in gradients))
        grad_streams = torch.empty_like(streams)
        if _on_tiles(streams):
            sizes = (fn.numel(), base.numel(), scale.numel())
            sums = fn.new_empty(-(-len(streams) // _RANGE), sum(sizes))
            _call("connect_backward", ctx.shape, *given, grad_streams, sums)
            grad_fn, grad_base, grad_scale = sums.sum(0).split(sizes)
            return grad_streams, grad_fn.view_as(fn), grad_base, grad_scale, None
        grad_z, grad_product = torch.empty_like(raw), torch.empty_like(raw)
        _call("connect_backward", ctx.shape, *given, grad_streams, grad_z, grad_product)
        m = streams.shape[1]
        scales = [part.sum() for part in (grad_z * raw).split((m, m, m * m), -1)]
        # The products of bf16 streams are bf16 products, as those of every other matrix here.
        grad_fn = (grad_product.to(streams.dtype).T @ streams.flatten(1)).float()
        return grad_streams, grad_fn, grad_z.sum(0), torch.stack(scales), None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, output: Tensor, post: Tensor, mix: Tensor) -> Tensor:
        result = torch.empty_like(streams)
        _call("write", _Shape(*streams.shape), streams, output, post, mix, result)
        ctx.save_for_backward(streams, output, post, mix)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        streams, output, post, mix = ctx.saved_tensors
        results = (
            torch.empty_like(streams),
            torch.empty_like(output),
            torch.empty_like(post),
            torch.empty_like(mix),
        )
        _call(
            "write_backward",
            _Shape(*streams.shape),
            *(streams, output, post, mix, gradients[0].contiguous()),
            *results,
        )
        return results


def tiles_serve(streams: int, channels: int) -> bool:
    """True if bfloat16 streams are connected on tiles, with all gradients in one order."""
    kernels = library()
    assert kernels is not None, "chosen only where the library was built"
    return bool(kernels.train_connect_serves(streams, channels))


def _on_tiles(streams: Tensor) -> bool:
    return streams.dtype == torch.bfloat16 and tiles_serve(*streams.shape[1:])


def _call(name: str, shape: _Shape, streams: Tensor, *tensors: Tensor) -> None:
    """Run a kernel over the tokens of `streams`: that of training/ where tiles serve them.

    Elsewhere that of hyper_connection.cpp, where like all of their width they may be bfloat16.
    """
    kernels = library()
    assert kernels is not None, "chosen only where the library was built"
    arguments = (ctypes.c_int(num_threads()), *map(address, (streams, *tensors)))
    if _on_tiles(streams):
        getattr(kernels, f"train_{name}")(ctypes.byref(shape), *arguments)
    else:
        bfloat16 = ctypes.c_int(streams.dtype == torch.bfloat16)
        getattr(kernels, f"hyper_{name}")(ctypes.byref(shape), bfloat16, *arguments)
