"""The other lines of a file as guesses at the one that is missing, beside the network's own.

Files repeat themselves, and a small network sees only a part of one. A line is the likelier a copy
the more its neighbours are like the gap's, with words exchanged as the neighbours' are. When the
network has written its line, that has the probability the network gave it, as a whole, and every
copy its weight: the likeliest is taken.
"""

import math

from sounding.text.similar import Around

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

    def rank(self, text: str, logprob: float) -> list[str]:
        """The copies that are likelier than the network's line, the likeliest first; then that.

        `logprob` is the natural logarithm of the probability the network gave all of its line.
        """
        own = _NETWORK + logprob
        if text.strip() in self._weights:
            return [text]  # both agree
        return [*(copy for copy, weight in self._weights.items() if weight > own), text]
