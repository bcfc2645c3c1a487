"""A sequence's state taken apart and put together again.

Compressed entries never change and only become more, so those of every block of tokens are stored
once, however many states contain them. The rest (the window, the projections of groups that other
groups still need, the MTP blocks' windows) is of a fixed size and belongs to one length: the tail.
Source: docs/architecture.md 8 and 8.2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sounding.engine.network import State, Streams
from sounding.engine.settings import BLOCK_TOKENS
from sounding.state.rows import Rows, StoredRows

Entries = Mapping[str, StoredRows]
"""Rows of every list of entries, by name."""


@dataclass(frozen=True)
class Tail:
    """What a state of this length holds besides the entries of whole blocks."""

    length: int
    entries: Entries
    """Behind the last whole block."""
    rows: Mapping[str, StoredRows]
    lengths: Mapping[str, int]
    """Of the lists in `rows`: of some only the last rows are kept."""
    streams: Streams
    """Of the last token, from which the next one is chosen."""
    drafting: bool
    """Whether the MTP blocks have read everything before the last token."""

    @property
    def nbytes(self) -> int:
        return sum(
            array.nbytes for array in (*self.entries.values(), *self.rows.values(), self.streams)
        )


def entries_between(state: State, start: int, end: int) -> dict[str, StoredRows]:
    """Copies of the entries that tokens from `start` to `end` have brought."""
    first, last = _entry_counts(state, start), _entry_counts(state, end)
    return {
        name: rows.read()[first[name] : last[name]].copy()
        for name, rows, _ in _lists(state, end)
        if name in first
    }


def take_tail(state: State, streams: Streams, *, drafting: bool = False) -> Tail:
    """Copy what is not in blocks; for the arguments see `Tail`."""
    length = state.length
    entries = entries_between(state, length - length % BLOCK_TOKENS, length)
    others = [(name, rows) for name, rows, _ in _lists(state, length) if name not in entries]
    return Tail(
        length,
        entries,
        {name: rows.read().copy() for name, rows in others},
        {name: rows.length for name, rows in others},
        streams.copy(),
        drafting,
    )


def put_together(state: State, blocks: Sequence[Entries], tail: Tail) -> None:
    """Make an empty state what the blocks and the tail were taken from."""
    for name, rows, length in _lists(state, tail.length):
        if name in tail.entries:
            rows.restore(np.concatenate([part[name] for part in (*blocks, tail.entries)]), length)
        else:
            rows.restore(tail.rows[name], tail.lengths[name])


def _lists(state: State, length: int) -> Iterator[tuple[str, Rows, int]]:
    """Every list with its name and the length it has after `length` tokens."""
    for group, layers in (("layers", state.layers), ("drafts", state.drafts)):
        for index, layer in enumerate(layers):
            for name, rows, rows_length in layer.lengths_after(length):
                yield f"{group}.{index}.{name}", rows, rows_length


def _entry_counts(state: State, length: int) -> dict[str, int]:
    return {name: count for name, rows, count in _lists(state, length) if rows.per_group}
