"""Split a sequence's state into blocks and a tail, and rebuild it.

Compressed entries are only appended to, never changed, so those of every block of tokens are stored
once, however many states contain them. The rest (the window, the projections of groups that other
groups still need, the drafters' windows) is of a fixed size and belongs to one length: the tail.
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
    """The part of a state of this length that is not in whole blocks."""

    length: int
    entries: Entries
    """Compressed entries behind the last whole block."""
    rows: Mapping[str, StoredRows]
    lengths: Mapping[str, int]
    """Full lengths of the lists in `rows`, of which some keep only the last rows."""
    streams: Streams
    """Streams of the last token, from which the next one is chosen."""
    drafting: bool
    """True if the drafters have read all tokens before the last one."""

    @property
    def nbytes(self) -> int:
        return sum(
            array.nbytes for array in (*self.entries.values(), *self.rows.values(), self.streams)
        )


def entries_between(state: State, start: int, end: int) -> dict[str, StoredRows]:
    """Copy the entries that tokens from `start` to `end` added."""
    first, last = _entry_counts(state, start), _entry_counts(state, end)
    return {
        name: rows.read()[first[name] : last[name]].copy()
        for name, rows, _ in _lists(state, end)
        if name in first
    }


def take_tail(state: State, streams: Streams, *, drafting: bool = False) -> Tail:
    """Copy the part of a state that is not in blocks; for the arguments see `Tail`."""
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
    """Restore an empty state from blocks and a tail."""
    for name, rows, length in _lists(state, tail.length):
        if name in tail.entries:
            rows.restore(np.concatenate([part[name] for part in (*blocks, tail.entries)]), length)
        else:
            rows.restore(tail.rows[name], tail.lengths[name])


def _lists(state: State, length: int) -> Iterator[tuple[str, Rows, int]]:
    """Every list with its name and the length it has after `length` tokens."""
    for group, layers in state.groups():
        for index, layer in enumerate(layers):
            for name, rows, rows_length in layer.lengths_after(length):
                yield f"{group}.{index}.{name}", rows, rows_length


def _entry_counts(state: State, length: int) -> dict[str, int]:
    return {name: count for name, rows, count in _lists(state, length) if rows.per_group}
