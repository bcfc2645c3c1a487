"""The process that runs a model: its settings, peak memory, and release of free memory.

Importing has no effects. Code that opens a model calls `prepare_process` before its first
tensor.
"""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path


def prepare_process() -> None:
    """Ask for large tensors in huge pages (Linux), unless the environment sets otherwise.

    All weights are read for every token, and finding a small page takes as long as reading a part
    of it. PyTorch reads the variable once, before its first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_what_is_loaded() -> None:
    """Exempt all objects alive now from garbage collection, since a loaded model stays.

    Without this, searching its objects for garbage takes a twentieth of the time of decoding, and
    sometimes a pause.
    """
    gc.collect()
    gc.freeze()


def peak_resident_bytes() -> int:
    """Peak resident memory of the process since its program began.

    Not simply getrusage's maximum: on Linux a child begins with its parent's, and a small program
    started by a large one would report the large one's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_free_memory() -> None:
    """Return what the allocator keeps between what is in use; milliseconds, so when there is time.

    Only where the C library can (glibc); elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
