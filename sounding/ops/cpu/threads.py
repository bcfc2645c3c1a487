"""The number of threads of a training kernel.

Results do not depend on it, so it may change during a batch.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ThreadShare:
    """Threads for pieces of work done at the same time: the last ones get those of the others."""

    def __init__(self, threads: int, pieces: int) -> None:
        self._threads, self._left = threads, pieces
        self._lock = threading.Lock()

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Do one of the pieces here: on one of torch's threads, and in kernels on its share."""
        torch.set_num_threads(1)  # applies to the calling thread
        _here.share = self
        try:
            yield
        finally:
            _here.share = None
            with self._lock:
                self._left -= 1

    def each(self) -> int:
        """Threads for each piece that is not done yet."""
        return max(1, self._threads // max(1, self._left))


class _Here(threading.local):
    share: ThreadShare | None = None


_here = _Here()


def num_threads() -> int:
    """Torch's threads; within a piece of shared work its share of them."""
    return torch.get_num_threads() if _here.share is None else _here.share.each()
