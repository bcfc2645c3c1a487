"""Access to the C++ kernels of inference, and the number of their threads."""

import ctypes
import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.native.structs import NativeWeight
from sounding.ops.cpu import library

INT = ctypes.c_int64
STEP_ENDED = -3
"""Returned where the source of some experts ended a step."""
_threads: int | None = None


def num_threads() -> int:
    """Number of threads of the kernels: OMP_NUM_THREADS, else one per core of this process."""
    if _threads is None:
        set_num_threads(_default_threads())
    assert _threads is not None
    return _threads


def set_num_threads(count: int) -> None:
    """Set the number of threads of the kernels, for the whole process."""
    global _threads
    if count < 1:
        raise ValueError(f"threads = {count} must be at least 1")
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
    """The library, which must have been built."""
    found = library()
    assert found is not None, "the kernels were not built"
    counts = "run", "begin_draft", "read_context", "draft_block", "layout"
    for name in (f"network_{what}" for what in counts):
        getattr(found, name).restype = INT
    return found


def address(array: NDArray[Any]) -> ctypes.c_void_p:
    """The address of a C-contiguous array."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def multiply(rows: NDArray[np.uint16], weight: NativeWeight) -> NDArray[np.float32]:
    """x W^T in float32, for rows x of bfloat16 (as bits) and a weight of any format."""
    made = np.empty((len(rows), weight.rows), dtype=np.float32)
    kernels().network_linear(
        ctypes.byref(weight), address(rows), INT(len(rows)), address(made), threads_argument()
    )
    return made


def threads_argument() -> ctypes.c_int:
    """The number of threads as an argument of a kernel."""
    return ctypes.c_int(num_threads())
