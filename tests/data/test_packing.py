"""Cutting and packing: nothing lost, nothing too long, little room wasted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.data.packing import best_fit, cut

CAPACITY = 64
_lengths = st.lists(st.integers(1, CAPACITY), max_size=80)


def first_fit(lengths: list[int], capacity: int) -> int:
    """Rows that packing in the order of arrival needs."""
    rooms: list[int] = []
    for length in lengths:
        for row, room in enumerate(rooms):
            if room >= length:
                rooms[row] -= length
                break
        else:
            rooms.append(capacity - length)
    return len(rooms)


@given(_lengths)
def test_every_piece_is_in_one_row_and_no_row_overflows(lengths: list[int]) -> None:
    rows = best_fit(lengths, CAPACITY)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= CAPACITY for row in rows)


@given(_lengths)
def test_waste_is_bounded(lengths: list[int]) -> None:
    # All but one row are more than half full, or two of them would have been one.
    num_rows = len(best_fit(lengths, CAPACITY))
    assert -(-sum(lengths) // CAPACITY) <= num_rows
    assert num_rows <= 1 or num_rows * CAPACITY < 2 * sum(lengths)


def test_fewer_rows_than_in_order_of_arrival() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, CAPACITY + 1, 2000).tolist()
    num_rows = len(best_fit(lengths, CAPACITY))
    assert num_rows < first_fit(lengths, CAPACITY)
    assert sum(lengths) / (num_rows * CAPACITY) > 0.98


def test_the_fullest_row_with_room_is_taken() -> None:
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([8, 7, 2, 2], 10) == [[0, 2], [1, 3]]
    assert best_fit([], 10) == []


@pytest.mark.parametrize("length", [0, 11])
def test_pieces_that_cannot_be_packed(length: int) -> None:
    with pytest.raises(ValueError, match=f"a piece of {length} tokens does not fit a row of 10"):
        best_fit([length], 10)


@given(st.sets(st.integers(1, 199)), st.integers(0, 200), st.integers(1, 40))
def test_runs_have_no_gaps_and_end_at_joints(places: set[int], count: int, limit: int) -> None:
    joints = np.array(sorted(place for place in places if place < count), dtype=np.int64)
    runs = cut(joints, count, limit)
    assert [position for run in runs for position in range(*run)] == list(range(count))
    for begin, end in runs:
        assert end - begin <= limit
        if end < count and end not in places:  # only where there is no joint in reach
            assert end - begin == limit and not places & set(range(begin + 1, end))


def test_a_run_is_as_long_as_possible() -> None:
    joints = np.array([2, 4, 6])
    assert cut(joints, 7, 5) == [(0, 4), (4, 7)]
    assert cut(joints, 7, 7) == [(0, 7)]
    with pytest.raises(ValueError, match="limit of 0 tokens"):
        cut(joints, 7, 0)
