"""Calls into the C++ kernels of inference, and how many threads they work with."""

import ctypes
import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.native.structs import NativeWeight
from sounding.ops.cpu import library

INT = ctypes.c_int64
_threads: int | None = None


def num_threads() -> int:
    """How many threads the kernels use: OMP_NUM_THREADS, else one per core of this process."""
    if _threads is None:
        set_num_threads(_default_threads())
    assert _threads is not None
    return _threads


def set_num_threads(count: int) -> None:
    """Choose how many threads the kernels use from now on, in the whole process."""
    global _threads
    if count < 1:
        raise ValueError(f"{count} threads are none; give at least 1")
    _threads = count


def _default_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def kernels() -> ctypes.CDLL:
    """The library. Only called where it was built."""
    found = library()
    assert found is not None, "chosen only where the library was built"
    for name in ("network_run", "network_begin_draft", "network_layout"):
        getattr(found, name).restype = INT
    return found


def address(array: NDArray[Any]) -> ctypes.c_void_p:
    """A C-contiguous array's memory."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def multiply(rows: NDArray[np.uint16], weight: NativeWeight) -> NDArray[np.float32]:
    """x W^T in float32, for rows x of bfloat16 (as bits) and any described weight."""
    made = np.empty((len(rows), weight.rows), dtype=np.float32)
    kernels().network_linear(
        ctypes.byref(weight), address(rows), INT(len(rows)), address(made), threads_argument()
    )
    return made


def threads_argument() -> ctypes.c_int:
    """The number of threads, as each kernel takes it."""
    return ctypes.c_int(num_threads())
