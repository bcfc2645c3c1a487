"""Calls from the training twins to their kernels."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu import address, library
from sounding.ops.cpu.threads import num_threads


def call(name: str, like: Tensor, *arguments: Any) -> None:
    """Run `train_<name>` on tensors that hold float32 or bfloat16 as `like` does.

    Tensors are passed by address, None as no address, other values as they are.
    """
    passed = [
        address(argument) if isinstance(argument, Tensor) else argument for argument in arguments
    ]
    launch(name, *passed, first=(ctypes.c_int(like.dtype == torch.bfloat16),))


def launch(name: str, *arguments: Any, first: tuple[Any, ...] = ()) -> None:
    """Run `train_<name>` with arguments `first`, the number of threads, then `arguments`."""
    kernels = library()
    assert kernels is not None, "chosen only where the library was built"
    getattr(kernels, f"train_{name}")(*first, ctypes.c_int(num_threads()), *arguments)


def rows(count: int) -> ctypes.c_int64:
    """A number of rows, as kernels take it."""
    return ctypes.c_int64(count)


def tiles_serve(n: int, m: int) -> bool:
    """True if the processor multiplies bfloat16, and n rows and m columns fill tiles."""
    kernels = library()
    assert kernels is not None, "chosen only where the library was built"
    return bool(kernels.train_tiles_serve(rows(m), rows(n)))
