"""Muon's update in one pass over each matrix, if tiles serve. See ops/muon.py."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu import address
from sounding.ops.cpu.training.call import launch, rows, tiles_serve
from sounding.ops.muon import NEWTON_SCHULZ

_COEFFICIENTS = [number for step in NEWTON_SCHULZ for number in step]


def update(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    mu: float,
    shrink: float,
    length: float,
    dtype: torch.dtype,
) -> Any:
    """Twin of the reference; NotImplemented where tiles do not serve."""
    tensors = [*weights, *gradients, *momenta]
    if dtype != torch.bfloat16 or any(t.dtype != torch.float32 for t in tensors):
        return NotImplemented
    n, m = weights[0].shape[-2:]
    if not tiles_serve(n, m):
        return NotImplemented
    steps = (ctypes.c_float * len(_COEFFICIENTS))(*_COEFFICIENTS)
    factors = [ctypes.c_float(factor) for factor in (mu, shrink, length)]
    for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
        sizes = (rows(weight.numel() // (n * m)), rows(n), rows(m))
        held = (weight, gradient.contiguous(), momentum)  # until the kernel has run
        rounds = (steps, ctypes.c_int(len(NEWTON_SCHULZ)))
        launch("muon", *sizes, *map(address, held), *factors, *rounds)
    return None
