"""The calls that an evaluation needs of a model, provided by the caller."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class FillGaps(Protocol):
    """Completes text."""

    def __call__(
        self, gaps: Sequence[tuple[str, str]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        """FillGaps each (prefix, suffix) with its seed; yield number and text, in any order."""


@runtime_checkable
class LogProbs(Protocol):
    """Scores tokens."""

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        """Return the natural logarithm of the probability of each token after the first."""
