"""Batches for training: the rows of a stream, each batch with its resume state.

A stream is the rows of one dataset or a mixture of several. A batch takes its next rows, and the
next rank the rows after these: several ranks make the batches of one, each every world-th.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from sounding.data.data_rows import DocumentPiece, Row
from sounding.data.token_batch import StreamState, TokenBatch
from sounding.ops.loss import IGNORED

_T = TypeVar("_T")


@runtime_checkable
class RowStream(Protocol):
    """Rows in an order of their own, each with the state that resumes after it."""

    def follow(
        self, state: StreamState | None = None, *, epochs: int | None = None
    ) -> Iterator[tuple[Row, StreamState]]:
        """Rows from a state on, or from the beginning; `epochs` None never ends."""


class Loader:
    """Makes batches of `rows` rows for one of `world` ranks."""

    def __init__(self, stream: RowStream, *, rows: int, rank: int = 0, world: int = 1) -> None:
        if rows < 1:
            raise ValueError(f"rows = {rows} must be at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank = {rank} must be from 0 to {world - 1}")
        self.rows = rows
        self._stream, self._rank, self._world = stream, rank, world

    def batches(
        self, state: StreamState | None = None, *, epochs: int | None = None, prefetch: int = 0
    ) -> Iterator[tuple[TokenBatch, StreamState]]:
        """Batches with the state that resumes after each; `epochs` None never ends.

        `state` is what came with the last batch that was used; rows and ranks may have changed
        since. `prefetch` batches are made ahead in a thread. At the end of the last epoch, rows
        that do not go evenly over the ranks are left out. Raises ValueError for a state of
        another stream.
        """
        made = self._make(self._stream.follow(state, epochs=epochs))
        return _ahead(made, prefetch) if prefetch else made

    def _make(
        self, rows: Iterator[tuple[Row, StreamState]]
    ) -> Iterator[tuple[TokenBatch, StreamState]]:
        pending: list[Row] = []
        state: StreamState = {}
        for row, state in rows:
            pending.append(row)
            if len(pending) == self.rows * self._world:
                yield self._batch(pending), state
                pending = []
        even = len(pending) // self._world * self._world
        if even:
            yield self._batch(pending[:even]), state

    def _batch(self, rows: list[Row]) -> TokenBatch:
        each = len(rows) // self._world
        own = rows[self._rank * each : (self._rank + 1) * each]
        return _collate([piece for row in own for piece in row])


def _collate(pieces: list[DocumentPiece]) -> TokenBatch:
    lengths = [len(piece.tokens) for piece in pieces]
    tokens = np.concatenate([piece.tokens for piece in pieces])
    targets = np.full(len(tokens), IGNORED, np.int64)
    targets[:-1] = tokens[1:]
    ends = np.cumsum(lengths)
    targets[ends - 1] = IGNORED
    for piece, end, length in zip(pieces, ends.tolist(), lengths, strict=True):
        targets[end - length : end - length + max(0, piece.loss_from - 1)] = IGNORED
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        lengths=lengths,
        middles=[piece.middle for piece in pieces],
    )


def _ahead(made: Iterator[_T], depth: int) -> Iterator[_T]:
    """Prefetch up to `depth` items in a thread that ends with its consumer."""
    ready: queue.Queue[Callable[[], _T] | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Callable[[], _T] | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in made:
                put(lambda item=item: item)  # type: ignore[misc]
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the user, whatever it is
            put(_raiser(error))

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (take := ready.get()) is not None:
            yield take()
    finally:
        stop.set()
        thread.join()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail
