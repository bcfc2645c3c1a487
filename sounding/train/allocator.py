"""Tune the C allocator for training: every step allocates and frees the same large tensors."""

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system.

    By default every large tensor is mapped anew, and the first access to its pages takes longer
    than the computation in them. In exchange the process keeps its peak memory until it ends.
    Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_ARENA_MAX, 1)  # what one thread freed, another may use
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)  # the largest: never
    mallopt(_TOP_PAD, 64 << 20)
