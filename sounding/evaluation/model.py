"""The functions of a model that evaluations need; the caller provides them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class Filled(NamedTuple):
    """The text that a model wrote in a gap."""

    number: int
    text: str
    confidence: float = 0.0
    """Estimated probability that the text is exactly right."""


@runtime_checkable
class FillGaps(Protocol):
    """Completes text."""

    def __call__(self, gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[Filled]:
        """Fill each (prefix, suffix) with its seed; yields results as they finish, in any order.

        A text without letters means that the answer was withheld."""


@runtime_checkable
class LogProbs(Protocol):
    """Scores tokens."""

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        """Return the natural logarithm of the probability of each token after the first."""
