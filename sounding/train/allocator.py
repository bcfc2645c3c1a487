"""How the process gets its memory: every step makes and drops the same large tensors."""

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Have freed memory used again rather than given back to the system, where glibc allows it.

    By default every large tensor is mapped anew, and touching its pages for the first time takes
    longer than what is computed in them. The process then holds its peak until it ends.
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
