"""Find lines whose neighbours resemble those of a missing line."""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

_WORD = re.compile(r"\w+|[^\w\s]")
# Parts of names and the characters between them.
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W_A-Za-z\d]+|_|[^\w\s]|\s+")
_NEIGHBOURS = 3  # lines compared above and below
_ALIKE = 0.5  # similarity from which two neighbours show a replacement of words


class Similar(NamedTuple):
    """A line's index, and the similarity of its neighbours to the gap's, from 0 to 3.67."""

    number: int
    likeness: float


class Around:
    """The lines around a gap. The gap extends to the end of its line."""

    def __init__(self, prefix: str, suffix: str, *, most: int | None = None) -> None:
        """Compare at most `most` lines on each side."""
        above = prefix.split("\n")
        self._typed = above.pop().lstrip()
        below = suffix.split("\n")[1:]
        if most is not None:
            above, below = above[-most:], below[:most]
        self._lines = [*above, "", *below]  # the gap keeps its place: it is a neighbour itself
        self._gap = len(above)

    def similar(self) -> Iterator[Similar]:
        """The lines that begin like the gap's line, nearest first."""
        gap = self._gap
        words = [_words(line) for line in self._lines]
        words[gap] = frozenset(["a word that is in no line"])
        wanted = _neighbours(words, gap)
        for number in sorted(range(len(words)), key=lambda number: abs(number - gap)):
            if number != gap and self.rest(number):
                pairs = zip(wanted, _neighbours(words, number), strict=True)
                yield Similar(number, math.fsum(_alike(*pair) for pair in pairs))

    def rest(self, number: int) -> str:
        """The rest of a line after the gap line's beginning; "" if it begins differently."""
        return self._behind_typed(self._lines[number].strip())

    def adapted(self, number: int) -> str:
        """The line with words replaced as between its neighbours and the gap's. For a gap below
        `return self._width`, a line `set_height` below `return self._height` becomes `set_width`.
        """
        exchanged: dict[str, str] = {}
        for distance in range(1, _NEIGHBOURS + 1):
            for step in (-distance, distance):
                theirs, ours = number + step, self._gap + step
                inside = all(0 <= at < len(self._lines) for at in (theirs, ours))
                if inside and self._gap not in (theirs, ours):
                    for word, other in _exchanged(self._lines[theirs], self._lines[ours]):
                        exchanged.setdefault(word, other)
        parts = _PART.findall(self._lines[number].strip())
        return self._behind_typed("".join(exchanged.get(part, part) for part in parts))

    def _behind_typed(self, line: str) -> str:
        return line[len(self._typed) :] if line.startswith(self._typed) else ""


@lru_cache(1 << 14)
def _words(line: str) -> frozenset[str]:
    return frozenset(_WORD.findall(line))


def _neighbours(
    words: Sequence[frozenset[str]], at: int
) -> tuple[Sequence[frozenset[str]], Sequence[frozenset[str]]]:
    """Neighbours above and below, nearest first."""
    return words[max(0, at - _NEIGHBOURS) : at][::-1], words[at + 1 : at + 1 + _NEIGHBOURS]


def _alike(wanted: Sequence[frozenset[str]], found: Sequence[frozenset[str]]) -> float:
    """Share of words that neighbours have in common; nearer neighbours weigh more."""
    pairs = zip(wanted, found, strict=False)
    return math.fsum(
        (len(one & other) + (one == other)) / (len(one | other) + 1) / (distance + 1)
        for distance, (one, other) in enumerate(pairs)
    )


@lru_cache(1 << 12)
def _exchanged(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Map parts of names of one line to the parts at the same place in the other."""
    one, other = _PART.findall(theirs.strip()), _PART.findall(ours.strip())
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    if not one or matcher.ratio() < _ALIKE:
        return ()
    return tuple(
        (part, another)
        for operation, low, high, first, last in matcher.get_opcodes()
        if operation == "replace" and high - low == last - first
        for part, another in zip(one[low:high], other[first:last], strict=True)
        if part[0].isalnum() and another[0].isalnum()
    )
