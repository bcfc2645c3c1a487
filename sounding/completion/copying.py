"""Other lines of a file as candidates for the missing one, beside the network's own.

Files repeat themselves, and a small network sees only a part of one. A line is the likelier a copy
the more its neighbours are like the gap's, with words exchanged as the neighbours' are.
"""

import math

from sounding.completion.similar import Around

_NEAR_LINES = 500  # on each side of a gap, of files that are longer
_LIKELIEST = 16  # lines that are adapted
_SHARPNESS = 3.0  # logarithm of a line's weight, by its likeness


def copies(prefix: str, suffix: str, most: int) -> dict[str, float]:
    """Up to `most` lines that may fill a gap, by the rest of the line, the likeliest first.

    Each with the logarithm of its weight: lines that are alike add up.
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
