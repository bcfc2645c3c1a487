"""Cutting documents into runs that fit a row, and packing pieces into rows.

Best fit, longest first: pieces are never truncated, and rows are nearly full.
Source: Ding et al., "Fewer truncations improve language modeling", 2024.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cut(joints: NDArray[np.int64], num_tokens: int, limit: int) -> list[tuple[int, int]]:
    """Cut a document into runs (begin, end) of at most `limit` tokens, in order and without gaps.

    Every run but the last ends at the last of the `joints`, sorted positions, that it can reach;
    where there is none within the limit it ends at the limit.
    """
    if limit < 1:
        raise ValueError(f"the limit of {limit} tokens must be at least 1")
    runs, begin = [], 0
    while num_tokens - begin > limit:
        index = int(np.searchsorted(joints, begin + limit, side="right")) - 1
        end = int(joints[index]) if index >= 0 and joints[index] > begin else begin + limit
        runs.append((begin, end))
        begin = end
    if begin < num_tokens:
        runs.append((begin, num_tokens))
    return runs


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute items over rows of `capacity`; returns the indices of the items in each row.

    Every item goes, longest first, into the fullest row that still has room for it. Ties fall to
    the earlier item and the earlier row, so the result depends on the lengths alone. Raises
    ValueError for an item longer than a row.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"a piece of {length} tokens does not fit a row of {capacity}")
        at = bisect_left(spaces, (length, -1))
        if at == len(spaces):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = spaces.pop(at)
        rows[row].append(index)
        if room > length:
            insort(spaces, (room - length, row))
    return rows
