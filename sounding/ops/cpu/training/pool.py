"""Pooling of tokens into compressed entries for training. See ops/pool.py."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu import address
from sounding.ops.cpu.training.call import launch, rows


class _Pooling(ctypes.Structure):
    """struct Pooling of pool.cpp."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("ratio", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("overlapping", ctypes.c_int32),
        ("leads", ctypes.c_int32),
    )


def pool_groups(projections: Tensor, ratio: int, *, overlapping: bool, leads: bool) -> Any:
    """Twin of the reference; NotImplemented for what is not float32, or no whole group."""
    count = len(projections) // ratio - int(overlapping and not leads)
    if projections.dtype != torch.float32 or count < 1:
        return NotImplemented
    width = projections.shape[1] // (4 if overlapping else 2)
    groups = _Pooling(count, ratio, width, overlapping, leads)
    return _Pool.apply(projections.contiguous(), groups)


def add_places(projections: Tensor, bias: Tensor, places: Tensor) -> Any:
    """Twin of the reference, in the memory of `projections`; NotImplemented for other numbers."""
    if not projections.dtype == bias.dtype == torch.float32 or not projections.is_contiguous():
        return NotImplemented
    return _AddPlaces.apply(projections, bias.contiguous(), places.contiguous())


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projections: Tensor, groups: _Pooling) -> Tensor:
        entries = projections.new_empty(groups.count, groups.width)
        launch("pool", ctypes.byref(groups), address(projections), address(entries))
        ctx.save_for_backward(projections)
        ctx.groups = groups
        return entries

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (projections,), grad_entries = ctx.saved_tensors, gradients[0].contiguous()
        grad = torch.empty_like(projections)
        memory = map(address, (projections, grad_entries, grad))
        launch("pool_backward", ctypes.byref(ctx.groups), *memory)
        return grad, None


class _AddPlaces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projections: Tensor, bias: Tensor, places: Tensor) -> Tensor:
        ctx.mark_dirty(projections)
        ctx.save_for_backward(places)
        ctx.bias = bias
        sizes, gates = _gates(projections, bias)
        launch("add_places", *sizes, address(places), address(bias), gates)
        return projections

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (places,), grad = ctx.saved_tensors, gradients[0].contiguous()
        grad_bias = torch.empty_like(ctx.bias)
        sizes, gates = _gates(grad, grad_bias)
        sums = (rows(len(grad_bias)), address(grad_bias))
        launch("sum_places", *sizes, address(places), gates, *sums)
        return grad, grad_bias, None


def _gates(projections: Tensor, bias: Tensor) -> tuple[tuple[ctypes.c_int64, ...], ctypes.c_void_p]:
    """Layout of the gates beside the values: tokens, channels, row stride, first gate."""
    width = bias.shape[1]
    sizes = (rows(len(projections)), rows(width), rows(projections.shape[1]))
    return sizes, ctypes.c_void_p(projections[:, width:].data_ptr())
