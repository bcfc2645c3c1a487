"""The interface of a draft source.

A drafter keeps what it knows of a sequence itself, and is called for all sequences of a step
together, so that a network that drafts runs once for all of them.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sounding.engine.network import Streams
from sounding.engine.sequence import ActiveSequence


@runtime_checkable  # for the shape checks of the tests
class CountDrafts(Protocol):
    """The number of drafts worth verifying, by a source's acceptance and cost, and by those of the
    other sources."""

    def __call__(self, sequence: ActiveSequence, available: int) -> int:
        """At most `available`; 0 if none pays. Called once per sequence and step, and only where
        the source has something to propose: while drafts do not pay, calls are counted."""

    def to_verify(self, sequence: ActiveSequence, survival: Sequence[float]) -> int:
        """How many of the drafts of a block to verify; survival[i] is the probability that draft i
        is accepted if all before it were."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """A draft source. `propose` is all that one without a state of its own defines."""

    name: str
    """Unique among the drafters of an engine."""
    certain: bool = False
    """True if its drafts are always accepted: they need no baseline to be compared with."""
    assumed_cost: float = 0.0
    """Cost of making one draft, in steps of one sequence, until it is measured; 0 stays 0."""
    in_blocks: bool = False
    """True if a block of drafts is made at once: costs are those of a block, however many of its
    drafts are proposed."""

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        """Up to `most` drafts for each sequence, no more than it asked of `worth`; [] if none.

        Drafts follow the last token of `sequence.tokens`.
        """
        ...

    def is_ready(self, sequence: ActiveSequence) -> bool:
        """True if it will draft for the sequence if it is asked to; False if it may not."""
        return False

    def extend(self, sequence: ActiveSequence, streams: Streams) -> None:
        """Read the streams of the last tokens fed: of a prompt, and later of accepted drafts only,
        in order. A state made of these alone never goes back."""
        return

    def catch_up(self, sequences: Sequence[ActiveSequence]) -> None:
        """Bring its part of `sequence.state` up to date, before the states are cached."""
        return

    def is_caught_up(self, sequence: ActiveSequence) -> bool:
        """True if `sequence.state` and the streams of the last token are all that `resume`
        needs."""
        return True

    def resume(self, sequence: ActiveSequence, streams: Streams) -> None:
        """Continue from a cached state; `streams` are those of its last token."""
        return
