"""How much memory this process has needed, and giving back what it does not."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most physical memory the process has held at a time since its program began.

    Not simply getrusage's maximum: on Linux a child begins with its parent's, and a small program
    started by a large one would be said to be large.
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
