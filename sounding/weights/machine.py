"""This machine's memory and disk, and their read speeds."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

# Reading speed taken where none can be measured: an ordinary NVMe drive.
ASSUMED_DISK_BANDWIDTH = 2e9
_MEMORY_SAMPLE_BYTES = 256 * 2**20  # far beyond any cache, a tenth of a second to pass over
_DISK_SAMPLE_BYTES = 256 * 2**20
_SMALLEST_DISK_SAMPLE_BYTES = 64 * 2**20  # below this, latency is measured instead
_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Sizes in bytes, bandwidths in bytes per second."""

    memory_bytes: int
    available_bytes: int
    disk_free_bytes: int
    memory_bandwidth: float
    disk_bandwidth: float
    disk_bandwidth_measured: bool
    memory_bandwidth_measured: bool = True

    def described(self, memory: int | None, disk: int | None, bandwidth: int | None) -> "Machine":
        """This machine with what is given in place of what was measured."""
        return Machine(
            memory_bytes=memory or self.memory_bytes,
            available_bytes=memory or self.available_bytes,
            disk_free_bytes=self.disk_free_bytes if memory is None else sys.maxsize,
            memory_bandwidth=float(bandwidth or self.memory_bandwidth),
            disk_bandwidth=float(disk or self.disk_bandwidth),
            disk_bandwidth_measured=disk is None and self.disk_bandwidth_measured,
            memory_bandwidth_measured=bandwidth is None,
        )


def this_machine(folder: Path, sample: Path | None = None) -> Machine:
    """Measure this machine, in about a second.

    `folder` tells which disk; `sample` is a large file on it to time reading with.
    """
    memory = psutil.virtual_memory()
    disk = measure_disk_bandwidth(sample) if sample is not None else None
    return Machine(
        memory_bytes=memory.total,
        available_bytes=memory.available,
        disk_free_bytes=shutil.disk_usage(folder).free,
        memory_bandwidth=measure_memory_bandwidth(memory.available),
        disk_bandwidth=disk or ASSUMED_DISK_BANDWIDTH,
        disk_bandwidth_measured=disk is not None,
    )


def measure_memory_bandwidth(available_bytes: int) -> float:
    """Bytes per second that all cores together read: the best of three passes over an array."""
    size = min(_MEMORY_SAMPLE_BYTES, available_bytes // 8)
    numbers = np.ones(size // 8, dtype=np.int64)
    best = min(_seconds(lambda: sum_in_threads(numbers, os.cpu_count() or 1)) for _ in range(3))
    return numbers.nbytes / best


def sum_in_threads(numbers: NDArray[np.int64], threads: int) -> int:
    """The sum of an array, each thread taking a part: what reads memory as fast as it goes."""
    with ThreadPoolExecutor(threads) as pool:
        return int(sum(pool.map(np.sum, np.array_split(numbers, threads))))


def measure_disk_bandwidth(sample: Path) -> float | None:
    """Bytes per second of sequential reading, past the page cache; None if it cannot be measured.

    The part of the file that is read is dropped from the cache first.
    """
    size = min(sample.stat().st_size, _DISK_SAMPLE_BYTES)
    if size < _SMALLEST_DISK_SAMPLE_BYTES or not hasattr(os, "posix_fadvise"):
        return None
    file = os.open(sample, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for offset in range(0, size, _BLOCK_BYTES):
            os.pread(file, min(_BLOCK_BYTES, size - offset), offset)
        return size / (time.perf_counter() - start)
    finally:
        os.close(file)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
