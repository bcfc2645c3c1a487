"""Which lines of a text stand where a missing one could: those with neighbours like its own."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

_WORD = re.compile(r"\w+|[^\w\s]")
_NEIGHBOURS = 3  # lines above and below that are compared


def similar_lines(
    prefix: str, suffix: str, *, most: int | None = None
) -> Iterator[tuple[str, float]]:
    """The lines around a gap that begin as the gap's line does, the nearest first: what they go on
    with, and how much their neighbours are like the gap's, from 0 to 3.67.

    At most so many `most` on each side are looked at.
    """
    above = prefix.split("\n")
    typed = above.pop().lstrip()
    below = suffix.split("\n")[1:]
    if most is not None:
        above, below = above[-most:], below[:most]
    lines = [*above, "", *below]  # the gap keeps its place: it is its neighbours' neighbour
    gap = len(above)
    words = [_words(line) for line in lines]
    words[gap] = frozenset(["a word that is in no line"])
    wanted = words[max(0, gap - _NEIGHBOURS) : gap][::-1], words[gap + 1 : gap + 1 + _NEIGHBOURS]
    for number in sorted(range(len(lines)), key=lambda number: abs(number - gap)):
        line = lines[number].strip()
        if not line.startswith(typed) or not line:
            continue
        found = words[max(0, number - _NEIGHBOURS) : number][::-1]
        after = words[number + 1 : number + 1 + _NEIGHBOURS]
        yield line[len(typed) :], _alike(wanted[0], found) + _alike(wanted[1], after)


@lru_cache(1 << 14)
def _words(line: str) -> frozenset[str]:
    return frozenset(_WORD.findall(line))


def _alike(wanted: Sequence[frozenset[str]], found: Sequence[frozenset[str]]) -> float:
    """Share of words that neighbours have in common, the nearest neighbours counting most."""
    pairs = zip(wanted, found, strict=False)
    return math.fsum(
        (len(one & other) + (one == other)) / (len(one | other) + 1) / (distance + 1)
        for distance, (one, other) in enumerate(pairs)
    )
