"""Other lines of the file as candidates for the missing one, in addition to the network's.

Files repeat themselves, and a small network sees only part of a file. The more a line's neighbours
resemble the gap's, the likelier is a copy of it, with the same words replaced as in the neighbours.
"""

import math

from sounding.completion.similar import Around

_NEAR_LINES = 500  # most lines searched on each side of a gap
_LIKELIEST = 16  # lines to adapt
_SHARPNESS = 3.0  # logarithm of a line's weight per unit of likeness


def copies(prefix: str, suffix: str, most: int) -> dict[str, float]:
    """Up to `most` texts that may complete the gap's line, likeliest first.

    Maps each to the logarithm of its weight; the weights of equal lines add up.
    """
    around = Around(prefix, suffix, most=_NEAR_LINES)
    likeliest = sorted(around.similar(), key=lambda line: -line.likeness)[:_LIKELIEST]
    weights: dict[str, float] = {}
    for number, likeness in likeliest:
        text = around.adapted(number)
        if text:
            weights[text] = weights.get(text, 0.0) + math.exp(_SHARPNESS * likeness)
    ordered = sorted(weights, key=lambda text: -weights[text])[:most]
    return {text: math.log(weights[text]) for text in ordered}
