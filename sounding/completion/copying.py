"""The other lines of a file as guesses at the one that is missing, beside the network's own.

Files repeat themselves, and a small network sees only a part of one. A line is the likelier a copy
the more its neighbours are like the gap's, with words exchanged as the neighbours' are. When the
network has written its line, that has the probability the network gave it, as a whole, and every
copy its weight: the likeliest is taken.
"""

import math
from typing import NamedTuple

from sounding.completion.similar import Around

_NEAR_LINES = 500  # on each side of a gap, of files that are longer
_MOST_COPIES = 16

# Logarithms of weights: of a line, by its likeness, and of the network. The likeliest for lines of
# the training packages.
_SHARPNESS, _NETWORK = 3.0, 10.0


class Copies:
    """Lines that compete with a network's over one gap."""

    def __init__(self, prefix: str, suffix: str) -> None:
        around = Around(prefix, suffix, most=_NEAR_LINES)
        likeliest = sorted(around.similar(), key=lambda line: -line.likeness)[:_MOST_COPIES]
        weights: dict[str, float] = {}
        for number, likeness in likeliest:
            text = around.adapted(number)
            if text:
                weights[text] = weights.get(text, 0.0) + math.exp(_SHARPNESS * likeness)
        ordered = sorted(weights, key=lambda text: -weights[text])
        self._weights = {text: math.log(weights[text]) for text in ordered}

    def rank(self, own: "Candidate") -> list["Candidate"]:
        """The network's line among the copies, the likeliest first."""
        text = own.text.strip()
        if not text:  # a network that writes nothing is sure of nothing
            own = own._replace(weight=-math.inf)
        elif text in self._weights:  # both agree
            own = own._replace(weight=math.inf)
        others = [Candidate(*pair) for pair in self._weights.items() if pair[0] != text]
        return sorted([own, *others], key=lambda candidate: -candidate.weight)


class Candidate(NamedTuple):
    """A line that may be taken."""

    text: str
    weight: float
    """Logarithm of its share among all."""
    written: bool = False
    """By the network."""


def written(text: str, logprob: float) -> Candidate:
    """What a network wrote; `logprob` is the natural logarithm of the probability it gave to all
    of it."""
    return Candidate(text, _NETWORK + logprob, written=True)
