"""What reading experts from disk costs, beside the limit that disk and memory set.

Without any overlap a decoded token takes (reads / disk) + (weights / memory) seconds, and a prompt
the longer of its reads and its operations. The disk is measured by the store's own reads.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from mmap import mmap

from sounding.engine.network import Network
from sounding.native.expert_store import ExpertStore

_SAMPLE_BYTES = 1 << 30
_READERS = 4


@dataclass(frozen=True)
class ExpertUse:
    """What a measurement took from the disk, per token."""

    hit_rate: float
    """Share of needed experts that earlier steps left in memory."""
    ahead_rate: float
    """Share that was read ahead."""
    bytes_read: float
    waited_seconds: float
    """Time without anything to compute."""
    disk_seconds: float
    """Time that the reads take at the measured speed of the disk."""

    @property
    def hidden_seconds(self) -> float:
        """The part of `disk_seconds` in which something else was computed."""
        return max(0.0, self.disk_seconds - self.waited_seconds)


class DiskMeter:
    """Counts what a network reads between `start` and `use`."""

    def __init__(self, network: Network) -> None:
        """Measures the disk first, if the network has experts on it."""
        self._store = network.store
        self.bytes_per_second = 0.0
        if isinstance(self._store, ExpertStore):
            self.bytes_per_second = measure_reads(self._store)
        self.start()

    def start(self) -> None:
        """Begin to count."""
        self._before = None if self._store is None else self._store.stats()

    def use(self, tokens: int) -> ExpertUse | None:
        """What so many tokens took; None for a network with all experts in memory."""
        if self._store is None or self._before is None:
            return None
        after = self._store.stats()

        def per_token(name: str) -> float:
            return (getattr(after, name) - getattr(self._before, name)) / tokens

        needed = per_token("hits") + per_token("ahead") + per_token("misses")
        bytes_read = per_token("bytes_read")
        return ExpertUse(
            hit_rate=per_token("hits") / needed if needed else 1.0,
            ahead_rate=per_token("ahead") / needed if needed else 0.0,
            bytes_read=bytes_read,
            waited_seconds=per_token("waited_seconds"),
            disk_seconds=bytes_read / self.bytes_per_second,
        )


def measure_reads(store: ExpertStore) -> float:
    """Bytes per second of reading experts from all layers with as many threads as the store."""
    files = store.files
    keys = [(layer, expert) for layer, count in enumerate(files.counts) for expert in range(count)]
    wanted = max(_READERS, _SAMPLE_BYTES // max(1, files.slot_bytes))
    sample = keys[:: max(1, len(keys) // wanted)][:wanted]
    rooms = [memoryview(mmap(-1, files.slot_bytes)) for _ in range(_READERS)]

    def read(number: int) -> None:
        for key in sample[number::_READERS]:
            files.read(*key, rooms[number])

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(read, range(_READERS)))  # touches the memory once
        start = time.perf_counter()
        list(pool.map(read, range(_READERS)))
        seconds = time.perf_counter() - start
    return sum(files.nbytes(*key) for key in sample) / seconds
