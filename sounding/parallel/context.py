"""Sequences cut over processes, in the two stages of the report.

A batch is laid end to end and cut into one part per process, wherever that falls. A process whose
first tokens continue a sequence needs what a state would remember of the tokens before: first, the
last rows of the window and of the projections that compressors still read, from the process before
it; second, the finished entries, from all processes before it that have a part of the sequence.
So a state is made for every sequence of a part, whose lists receive such rows as they are appended
to. The network is the one that runs alone, and what a token sees follows from its position.
Source: docs/clusters.md 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sounding.config import ModelConfig
from sounding.model.rows import GrowingRows, TensorRows
from sounding.model.state import TensorState
from sounding.parallel.exchange import Route, exchange
from sounding.parallel.group import Group
from sounding.state.row_layout import ListLayout, all_lists
from sounding.state.sequence_state import empty_state

PURPOSE = "context"


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a batch, and the sequences that they belong to."""

    rows: slice
    """Where they lie in the batch."""
    sequences: tuple[int, ...]
    """The numbers of the sequences, in the batch."""
    starts: tuple[int, ...]
    """The position of the first token of each; above 0 only for the first."""
    lengths: tuple[int, ...]
    """The tokens of each in this part."""

    @property
    def end(self) -> int:
        """The tokens of the last sequence up to the end of this part."""
        return self.starts[-1] + self.lengths[-1]


def cut(lengths: Sequence[int], size: int) -> list[Part]:
    """Cut sequences of these lengths, end to end, into `size` parts of equal numbers of tokens.

    Earlier parts have one more where it does not go evenly. Raises ValueError for fewer tokens.
    """
    total = sum(lengths)
    if total < size:
        raise ValueError(f"{total} tokens cannot be cut into {size} parts")
    bounds = [total * at // size for at in range(size)] + [total]
    begins = list(accumulate(lengths, initial=0))
    parts = []
    for low, high in pairwise(bounds):
        inside = [
            (number, max(low, begin) - begin, min(high, end) - max(low, begin))
            for number, (begin, end) in enumerate(pairwise(begins))
            if max(low, begin) < min(high, end)
        ]
        numbers, starts, counts = zip(*inside, strict=True)
        parts.append(Part(slice(low, high), numbers, starts, counts))
    return parts


def least_tokens(config: ModelConfig) -> int:
    """The fewest tokens that a part may have: as many as the next one may need of it."""
    return max(layout.retention.needed for layout in all_lists(config))


class Cut:
    """One process's part of a batch."""

    def __init__(self, lengths: Sequence[int], group: Group) -> None:
        self._group, self.rank = group, group.rank_in("context")
        self._parts = cut(lengths, group.size("context"))
        self.part = self._parts[self.rank]

    def states(self, config: ModelConfig) -> list[TensorState]:
        """The states to run this part with, each of the length where its sequence begins here."""
        last = len(self.part.lengths) - 1
        seams: list[_Seam] = []

        def first_rows(layout: ListLayout) -> TensorRows:
            before = seams[-1] if layout.per_group else None  # projections come before entries
            seams.append(_Seam(self._route(layout), self._group, before))
            return ReceivedRows(layout, self.part.starts[0], seams[-1])

        states = [empty_state(config, first_rows)]
        remaining = iter(seams)

        def last_rows(layout: ListLayout) -> TensorRows:
            return SentRows(layout, next(remaining))

        for index in range(1, last + 1):
            states.append(empty_state(config, last_rows if index == last else _plain_rows))
        return states

    def _route(self, layout: ListLayout) -> Route:
        """What the part before, or all before, send of a list, and what this one sends."""
        if layout.per_group:
            return self._route_of_entries(layout.tokens_per_row)
        wanted = [min(layout.retention.needed, part.starts[0]) for part in self._parts]
        send, receive = [0] * len(self._parts), [0] * len(self._parts)
        if self.rank:
            receive[self.rank - 1] = wanted[self.rank]
        if self.rank + 1 < len(self._parts):
            send[self.rank + 1] = wanted[self.rank + 1]
        return Route("context", send, receive)

    def _route_of_entries(self, ratio: int) -> Route:
        made = [part.end // ratio - part.starts[-1] // ratio for part in self._parts]

        def sent(sender: int, receiver: int) -> int:
            one, other = self._parts[sender], self._parts[receiver]
            goes_on = sender < receiver and one.sequences[-1] == other.sequences[0]
            return made[sender] if goes_on else 0

        ranks = range(len(self._parts))
        send = [sent(self.rank, rank) for rank in ranks]
        receive = [sent(rank, self.rank) for rank in ranks]
        return Route("context", send, receive)


def _plain_rows(layout: ListLayout) -> TensorRows:
    return GrowingRows(layout.width, layout.retention, per_group=layout.per_group)


# --------------------------------------------------------------------------------------------------
# Lists of rows across the seam between two parts


class _Seam:
    """A list of one layer: what the last sequence of a part sends, and the first receives."""

    def __init__(self, route: Route, group: Group, before: "_Seam | None") -> None:
        """`before` is that of the rows from which these are made."""
        self._route, self._group, self._before = route, group, before
        self.last: Tensor | None = None
        """The rows of the part's last sequence, if it is not also the first."""
        self._came = torch.zeros(0)

    def received(self, own: Tensor) -> Tensor:
        """Exchange rows, those of the first sequence being `own`; collective."""
        rows = own if self.last is None else self.last
        sent = [rows[len(rows) - count :] for count in self._route.send if count]
        flat = torch.cat(sent) if sent else rows[:0]
        if self._before is not None:
            # Where no group is complete no entry depends on projections, and yet their gradient
            # must be waited for.
            flat = flat + self._before._came[:0].sum().to(flat.dtype)
        self._came = exchange(flat, self._route, self._group, PURPOSE)
        return self._came


class ReceivedRows(GrowingRows):
    """Rows of a sequence that may have begun in an earlier part."""

    def __init__(self, layout: ListLayout, start: int, seam: _Seam) -> None:
        super().__init__(layout.width, layout.retention, per_group=layout.per_group)
        self.length = start // layout.tokens_per_row
        self._seam = seam

    def append(self, rows: Tensor) -> Tensor:
        """As `GrowingRows.append`; once, as the rows before are received and not kept."""
        self.length += len(rows)
        return torch.cat((self._seam.received(rows), rows))


class SentRows(GrowingRows):
    """Rows of the last sequence of a part, which may go on in the next."""

    def __init__(self, layout: ListLayout, seam: _Seam) -> None:
        super().__init__(layout.width, layout.retention, per_group=layout.per_group)
        self._seam = seam

    def append(self, rows: Tensor) -> Tensor:
        self._seam.last = rows
        return super().append(rows)
