"""Statistics: pass@k, Wilson and bootstrap intervals, edit similarity."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Estimate:
    """A share of independent trials, with Wilson's score interval.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if not trials:
        return Estimate(math.nan, 0.0, 1.0)
    share = successes / trials
    spread = _Z95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # Rounding must not exclude the share itself.
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def bootstrap(groups: Sequence[tuple[float, float]], *, seed: int) -> Estimate:
    """A ratio of sums over groups, with a percentile interval over resampled groups.

    groups[i] has the contributions of group i (a file, a problem) to numerator and denominator:
    sums and counts give a mean, bits and bytes give bits per byte. Items of a group are resampled
    together.
    """
    table = np.asarray(groups, np.float64).reshape(-1, 2)
    if not table[:, 1].any():
        return Estimate(math.nan, math.nan, math.nan)
    random = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES):
        above, below = table[random.integers(len(table), size=len(table))].sum(0)
        if below:  # otherwise only groups without weight were drawn
            ratios.append(above / below)
    above, below = table.sum(0)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Estimate(float(above / below), float(low), float(high))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that one of k answers passes, estimated without bias from n >= k samples.

    1 - C(n - c, k) / C(n, k). Raises ValueError for k above n.
    Source: Chen et al., "Evaluating large language models trained on code", 2021.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} must be from 1 to the number of samples, {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def edit_distance(one: str, other: str) -> int:
    """Edit distance: the fewest insertions, deletions and replacements of characters.

    Stores a column of the usual table as the bits of two integers: its steps up and down.
    Source: Hyyrö, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances",
    2003.
    """
    if not one:
        return len(other)
    last, mask = 1 << (len(one) - 1), (1 << len(one)) - 1
    places: dict[str, int] = {}
    for index, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << index
    up, down, distance = mask, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right_up = down | ~(diagonal | up) & mask
        right_down = diagonal & up
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1
        right_down <<= 1
        up = (right_down | ~(diagonal | right_up)) & mask
        down = diagonal & right_up & mask
    return distance


def edit_similarity(one: str, other: str) -> float:
    """1 - edit distance / length of the longer text; 1 for two empty texts."""
    longer = max(len(one), len(other))
    return 1.0 - edit_distance(one, other) / longer if longer else 1.0
