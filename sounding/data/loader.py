"""Batches for training: documents shuffled, rearranged, cut, packed; each with its resume state.

One stream of rows is defined by dataset, settings and seed alone. Documents of an epoch are taken
in a shuffled order, a window of them at a time; a window is rearranged, cut, packed best-fit into
rows and its rows shuffled, without a look at other windows. A batch takes the next rows of the
stream, dealt out over the ranks. A position in the stream is thus three numbers, and resuming
costs the making of one window; the stream stays the same whatever the number of ranks and rows.
"""

import hashlib
import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from sounding.data.dataset import Dataset
from sounding.data.fim import FimSettings, cut
from sounding.data.packing import best_fit, cut_lines
from sounding.text.markup import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE

IGNORED = -100  # a target without loss
State = dict[str, Any]

_FIM_TOKENS = 5  # BOS, begin, hole, end, EOS
_FIM_SLACK = 16  # tokens by which cutting words apart may lengthen a text
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """What the stream of rows is made of; all of it decides what a state means."""

    sequence_length: int = 1024
    seed: int = 0
    window_documents: int = 512
    fim: FimSettings = field(default_factory=FimSettings)
    middle_only: bool = False  # of rearranged documents, train on the middle and EOS alone

    def __post_init__(self) -> None:
        if self.sequence_length < 2 * (_FIM_TOKENS + _FIM_SLACK):
            raise ValueError(
                f"sequence_length = {self.sequence_length} must be at least "
                f"{2 * (_FIM_TOKENS + _FIM_SLACK)}, to leave room for the FIM tokens"
            )
        if self.window_documents < 1:
            raise ValueError(f"window_documents = {self.window_documents} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences laid end to end, without padding; none of them sees another.

    `targets` holds the token after each one of the same sequence, and IGNORED where there is none
    or no loss is wanted. `lengths` are the sequences' tokens, in order; they add up to t, which is
    at most rows * sequence_length.
    """

    tokens: Int64[Tensor, " t"]
    targets: Int64[Tensor, " t"]
    lengths: list[int]


@dataclass(frozen=True)
class _Piece:
    tokens: NDArray[np.int64]
    loss_from: int  # the first token that is a target


_Row = list[_Piece]
_Position = tuple[int, int, int]  # epoch, window of it, rows of the window that are used up


class Loader:
    """Makes batches of `rows` rows for one of `world` ranks."""

    def __init__(
        self,
        dataset: Dataset,
        settings: LoaderSettings,
        *,
        rows: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows = {rows} must be at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank = {rank} must be from 0 to {world - 1}")
        self.dataset, self.settings, self.rows = dataset, settings, rows
        self._rank, self._world = rank, world
        self._stream = hashlib.sha256(f"{dataset.digest} {settings}".encode()).hexdigest()[:16]
        names = (BOS, EOS, FIM_BEGIN, FIM_HOLE, FIM_END)
        self._bos, self._eos, *fim = map(dataset.tokenizer.id_of, names)
        self._begin, self._hole, self._end = fim
        self._window_count = -(-len(dataset) // settings.window_documents)

    def batches(
        self, state: State | None = None, *, epochs: int | None = None, prefetch: int = 0
    ) -> Iterator[tuple[Batch, State]]:
        """Batches with the state that resumes after each; `epochs` None never ends.

        `state` is what came with the last batch that was used; rows and ranks may have changed
        since. `prefetch` batches are made ahead in a thread. At the end of the last epoch, rows
        that do not go evenly over the ranks are left out. Raises ValueError for a state of
        another dataset or other settings.
        """
        made = self._make(self._start(state), epochs)
        return _ahead(made, prefetch) if prefetch else made

    def _start(self, state: State | None) -> _Position:
        if state is None:
            return 0, 0, 0
        if state.get("stream") != self._stream:
            raise ValueError(
                "this loader state belongs to another dataset or other loader settings; resume "
                "with those, or start without a state"
            )
        return state["epoch"], state["window"], state["row"]

    def _make(self, start: _Position, epochs: int | None) -> Iterator[tuple[Batch, State]]:
        held: list[_Row] = []
        position = start
        for row, position in self._row_stream(start, epochs):
            held.append(row)
            if len(held) == self.rows * self._world:
                yield self._batch(held), self._state(position)
                held = []
        even = len(held) // self._world * self._world
        if even:
            yield self._batch(held[:even]), self._state(position)

    def _batch(self, rows: list[_Row]) -> Batch:
        return _collate([piece for row in rows[self._rank :: self._world] for piece in row])

    def _state(self, position: _Position) -> State:
        epoch, window, row = position
        return {"stream": self._stream, "epoch": epoch, "window": window, "row": row}

    def _row_stream(self, start: _Position, epochs: int | None) -> Iterator[tuple[_Row, _Position]]:
        """Rows from a position on, each with the position after it."""
        epoch, window, used = start
        while epochs is None or epoch < epochs:
            order = _order(len(self.dataset), self.settings.seed, epoch)
            while window < self._window_count:
                size = self.settings.window_documents
                rows = self._window_rows(epoch, order[window * size : (window + 1) * size])
                for index in range(used, len(rows)):
                    yield rows[index], (epoch, window, index + 1)
                window, used = window + 1, 0
            epoch, window = epoch + 1, 0

    def _window_rows(self, epoch: int, documents: NDArray[np.int64]) -> list[_Row]:
        pieces = self._pieces(epoch, documents)
        capacity = self.settings.sequence_length
        packed = best_fit([len(piece.tokens) for piece in pieces], capacity)
        # Packing leaves the longest pieces first; rows come in random order instead.
        first = int(documents[0])
        return [
            [pieces[index] for index in packed[row]]
            for row in _order(len(packed), self.settings.seed, epoch, first)
        ]

    # Documents to pieces

    def _pieces(self, epoch: int, documents: NDArray[np.int64]) -> list[_Piece]:
        """Pieces of the documents in order; all that must be encoded again is, in one go."""
        pieces: list[_Piece | None] = []
        cuts: list[tuple[int, NDArray[np.int64], tuple[str, str, str]]] = []
        for document in documents.tolist():
            # A string seeds through SHA-512, the same in every version and process.
            rng = random.Random(f"{self.settings.seed} {epoch} {document}")
            tokens = self.dataset.document(document).astype(np.int64)
            if len(tokens) and rng.random() < self.settings.fim.rate:
                limit = self.settings.sequence_length - _FIM_TOKENS - _FIM_SLACK
                runs = self._cut(tokens, limit)
                for number, run in enumerate(runs, 1):
                    end = [self._eos] if number == len(runs) else []
                    plain = np.concatenate([[self._bos], run, end]).astype(np.int64)
                    parts = self._cut_middle(run, rng)
                    if parts:
                        cuts.append((len(pieces), plain, parts))
                    pieces.append(None if parts else _plain(plain))
            else:
                # Room is left for EOS, which would otherwise come to be a piece of its own.
                limit = self.settings.sequence_length - 1
                *runs, last = self._cut(np.concatenate([[self._bos], tokens]), limit)
                pieces.extend(map(_plain, (*runs, np.append(last, self._eos))))
        for index, piece in self._rearranged(cuts):
            pieces[index] = piece
        return [piece for piece in pieces if piece is not None]

    def _cut(self, tokens: NDArray[np.int64], limit: int) -> list[NDArray[np.int64]]:
        runs = cut_lines(self.dataset.line_ends[tokens], limit)
        return [tokens[begin:end] for begin, end in runs]

    def _cut_middle(
        self, tokens: NDArray[np.int64], rng: random.Random
    ) -> tuple[str, str, str] | None:
        try:
            text = self.dataset.bytes_of(tokens.astype(np.uint32)).decode()
        except UnicodeDecodeError:  # an overlong line was cut inside of a character
            return None
        return cut(text, rng, self.settings.fim)

    def _rearranged(
        self, cuts: list[tuple[int, NDArray[np.int64], tuple[str, str, str]]]
    ) -> Iterator[tuple[int, _Piece]]:
        texts = [part for _, _, parts in cuts for part in parts]
        encoded = self.dataset.tokenizer.encode_many(texts, named=False)
        for number, (index, plain, _) in enumerate(cuts):
            prefix, middle, suffix = encoded[3 * number : 3 * number + 3]
            ids = [self._bos, self._begin, *prefix, self._hole, *suffix, self._end]
            ids += [*middle, self._eos]
            if len(ids) > self.settings.sequence_length:
                yield index, _plain(plain)  # the cuts made it too long, which is rare
                continue
            loss_from = len(ids) - len(middle) - 1 if self.settings.middle_only else 0
            yield index, _Piece(np.asarray(ids, np.int64), loss_from)


def _plain(tokens: NDArray[np.int64]) -> _Piece:
    return _Piece(tokens, 0)


def _collate(pieces: list[_Piece]) -> Batch:
    lengths = [len(piece.tokens) for piece in pieces]
    tokens = np.concatenate([piece.tokens for piece in pieces])
    targets = np.full(len(tokens), IGNORED, np.int64)
    targets[:-1] = tokens[1:]
    ends = np.cumsum(lengths)
    targets[ends - 1] = IGNORED
    for piece, end, length in zip(pieces, ends.tolist(), lengths, strict=True):
        targets[end - length : end - length + max(0, piece.loss_from - 1)] = IGNORED
    return Batch(
        tokens=torch.from_numpy(tokens), targets=torch.from_numpy(targets), lengths=lengths
    )


def _order(count: int, *key: int) -> NDArray[np.int64]:
    """A random permutation that depends on `count` and `key` alone, in every numpy version.

    Sorting by a hash of the index (the finalizer of SplitMix64).
    """
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable").astype(np.int64)


def _ahead(made: Iterator[_T], depth: int) -> Iterator[_T]:
    """The same items, up to `depth` of them made in advance by a thread that ends with its user."""
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
