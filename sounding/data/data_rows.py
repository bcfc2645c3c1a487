"""DataRows of one dataset: documents shuffled, rearranged, cut, packed; each with its resume state.

One stream of rows is defined by dataset, settings and seed alone. Documents of an epoch are taken
in a shuffled order, a window of them at a time; a window is rearranged, cut, packed best-fit into
rows and its rows shuffled, independently of other windows. A position in the stream is thus three
numbers, and resuming costs one window.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.data.dataset import Dataset
from sounding.data.fim import FimSettings, middle_span, piece_limit
from sounding.data.line_ends import LineEnds
from sounding.data.packing import best_fit, cut
from sounding.data.token_batch import StreamState
from sounding.data.token_cuts import Joints, Segment
from sounding.text.fim_format import FimFormat, FimTokens

_TEXT_TOKENS = 2  # BOS and EOS
_FIM_TOKENS = 5  # BOS, begin, hole, end, EOS
_FIM_SLACK = 16  # tokens by which cutting words apart may lengthen a text


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """The settings of a stream of rows; a state is valid only for the same settings."""

    sequence_length: int = 1024
    seed: int = 0
    window_documents: int = 512
    fim: FimSettings = field(default_factory=FimSettings)
    middle_only: bool = False  # of rearranged documents, train on the middle and EOS alone
    split_rate: float = 0.0
    """Share of punctuation-and-newline tokens that become two."""

    def __post_init__(self) -> None:
        if not 0 <= self.split_rate <= 1:
            raise ValueError(f"split_rate = {self.split_rate} must be a share from 0 to 1")
        if self.sequence_length < 2 * (_FIM_TOKENS + _FIM_SLACK):
            raise ValueError(
                f"sequence_length = {self.sequence_length} must be at least "
                f"{2 * (_FIM_TOKENS + _FIM_SLACK)}, to leave room for the FIM tokens"
            )
        if self.window_documents < 1:
            raise ValueError(f"window_documents = {self.window_documents} must be at least 1")


@dataclass(frozen=True)
class DocumentPiece:
    tokens: NDArray[np.int64]
    loss_from: int  # the first token that is a target
    middle: int = 0  # tokens of the middle that was cut out, which come last, with EOS


@dataclass(frozen=True)
class _Gap:
    """A run of tokens to be rearranged, and its prefix, middle and suffix."""

    run: NDArray[np.int64]
    parts: list[Segment]
    written: int | None = None  # bytes at the end of the middle that fill the gap; None is all


Row = list[DocumentPiece]
_Position = tuple[int, int, int]  # epoch, window of it, rows of the window that are used up


class DataRows:
    """The rows of one dataset, in an order that depends on the settings alone."""

    def __init__(self, dataset: Dataset, settings: LoaderSettings) -> None:
        self.dataset, self.settings = dataset, settings
        self._stream = stream_name(dataset.digest, settings)
        self._bos, self._eos = dataset.tokenizer.bos_id, dataset.tokenizer.eos_id
        self._fim = FimTokens.of(dataset.tokenizer)
        self._joints = Joints(dataset.tokenizer)
        self._line_ends = LineEnds(dataset.tokenizer)
        self._window_count = -(-len(dataset) // settings.window_documents)

    def follow(
        self, state: StreamState | None = None, *, epochs: int | None = None
    ) -> Iterator[tuple[Row, StreamState]]:
        """DataRows with the state that resumes after each; `epochs` None never ends.

        Raises ValueError for a state of another dataset or other settings.
        """
        return self._follow(self._start(state), epochs)

    def _start(self, state: StreamState | None) -> _Position:
        if state is None:
            return 0, 0, 0
        if state.get("stream") != self._stream:
            raise ValueError(
                "this loader state belongs to another dataset or other loader settings; resume "
                "with those, or start without a state"
            )
        return state["epoch"], state["window"], state["row"]

    def _state(self, epoch: int, window: int, row: int) -> StreamState:
        return {"stream": self._stream, "epoch": epoch, "window": window, "row": row}

    def _follow(self, start: _Position, epochs: int | None) -> Iterator[tuple[Row, StreamState]]:
        epoch, window, used = start
        while epochs is None or epoch < epochs:
            order = permutation(len(self.dataset), self.settings.seed, epoch)
            while window < self._window_count:
                size = self.settings.window_documents
                rows = self._window_rows(epoch, order[window * size : (window + 1) * size])
                for index in range(used, len(rows)):
                    yield rows[index], self._state(epoch, window, index + 1)
                window, used = window + 1, 0
            epoch, window = epoch + 1, 0

    def _window_rows(self, epoch: int, documents: NDArray[np.int64]) -> list[Row]:
        pieces = self._pieces(epoch, documents)
        capacity = self.settings.sequence_length
        packed = best_fit([len(piece.tokens) for piece in pieces], capacity)
        # Packing leaves the longest pieces first; rows come in random order instead.
        first = int(documents[0])
        return [
            [pieces[index] for index in packed[row]]
            for row in permutation(len(packed), self.settings.seed, epoch, first)
        ]

    # Documents to pieces

    def _pieces(self, epoch: int, documents: NDArray[np.int64]) -> list[DocumentPiece]:
        """Pieces of the documents; all the text that needs new tokens is encoded in one go."""
        pieces: list[DocumentPiece] = []
        gaps: list[_Gap] = []
        for document in documents.tolist():
            # A string seeds through SHA-512, the same in every version and process.
            rng = random.Random(f"{self.settings.seed} {epoch} {document}")
            rearrange = rng.random() < self.settings.fim.rate
            tokens = self._tokens(epoch, document)
            room = _FIM_TOKENS + _FIM_SLACK if rearrange else _TEXT_TOKENS
            limit = self.settings.sequence_length - room
            if rearrange:
                limit = piece_limit(rng, self.settings.fim, limit)
            runs = cut(self._joints.find(tokens), len(tokens), limit) or [(0, 0)]
            for number, (begin, end) in enumerate(runs, 1):
                run = tokens[begin:end]
                gap = self._gap(run, rng) if rearrange else None
                if gap:
                    gaps.append(gap)
                else:
                    pieces.append(self._plain(run, number == 1 or rearrange, number == len(runs)))
        return pieces + self._filled(gaps)

    def _tokens(self, epoch: int, document: int) -> NDArray[np.int64]:
        """A document's tokens, some of them split: by draws of its own, which move no others."""
        tokens = self.dataset.document(document).astype(np.int64)
        if not self.settings.split_rate:
            return tokens
        rng = random.Random(f"{self.settings.seed} {epoch} {document} line ends")
        return self._line_ends.split(tokens, self.settings.split_rate, rng)

    def _plain(self, run: NDArray[np.int64], opens: bool, ends: bool) -> DocumentPiece:
        bos, eos = [self._bos] if opens else [], [self._eos] if ends else []
        return DocumentPiece(np.concatenate([bos, run, eos]).astype(np.int64), 0)

    def _gap(self, run: NDArray[np.int64], rng: random.Random) -> _Gap | None:
        """The cuts of a run, or None if it has no middle or ends inside of a character."""
        content = self.dataset.bytes_of(run)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return None
        span = middle_span(text, rng, self.settings.fim)
        if span is None:
            return None
        if len(text) != len(content):
            span = len(text[: span[0]].encode()), len(text[: span[1]].encode())
        begin, end = span
        suffix_first = self.settings.fim.suffix_first
        if suffix_first and rng.random() < suffix_first:
            return _Gap(run, self._joints.segments(run, content, (0, end)), end - begin)
        return _Gap(run, self._joints.segments(run, content, span))

    def _filled(self, gaps: list[_Gap]) -> list[DocumentPiece]:
        texts = [text for gap in gaps for part in gap.parts for text in (part.head, part.tail)]
        encoded = iter(self.dataset.tokenizer.encode_many(texts, named=False))
        pieces = []
        for gap in gaps:
            prefix, middle, suffix = (
                np.concatenate([next(encoded), part.tokens, next(encoded)]).astype(np.int64)
                for part in gap.parts
            )
            # A gap with the suffix first has an empty prefix here, and its own in the middle: both
            # are encoded in one piece.
            parts = FimFormat().arrange(self._fim, prefix, suffix)
            ids = np.concatenate([*parts, middle]).astype(np.int64)
            if len(ids) < self.settings.sequence_length:
                count = len(middle)
                if gap.written is not None:
                    count = self._joints.last(middle, gap.written)
                loss_from = len(ids) - count if self.settings.middle_only else 0
                whole = np.append(ids, self._eos).astype(np.int64)
                pieces.append(DocumentPiece(whole, loss_from, count + 1))
            else:  # the cuts made too many new tokens, which is rare
                pieces.append(self._plain(gap.run, True, False))
        return pieces


def stream_name(dataset_digest: str, settings: LoaderSettings) -> str:
    """A digest of everything that a stream of rows depends on, by which its states are recognized.

    Fields that were added later are part of it only where they are not at their default, so that
    the states of older runs stay valid.
    """

    def listed(value: Any) -> str:
        if not is_dataclass(value):
            return repr(value)
        pairs = [
            f"{each.name}={listed(getattr(value, each.name))}"
            for each in fields(value)
            if each.name not in later
        ]
        return f"{type(value).__name__}({', '.join(pairs)})"

    later = {"split_rate": settings.split_rate, "suffix_first": settings.fim.suffix_first}
    changed = "".join(f" {name}={value}" for name, value in later.items() if value)
    identity = f"{dataset_digest} {listed(settings)}{changed}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """A random permutation that depends on `count` and `key` alone, in every numpy version.

    Sorting by a hash of the index (the finalizer of SplitMix64).
    """
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable").astype(np.int64)
