"""Estimates against their definitions."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.evaluation.statistics import (
    bootstrap,
    edit_distance,
    edit_similarity,
    pass_at_k,
    wilson,
)


@pytest.mark.parametrize(("samples", "passed"), [(1, 0), (1, 1), (5, 2), (6, 6), (7, 1)])
def test_pass_at_k_is_the_share_of_choices_with_a_pass(samples: int, passed: int) -> None:
    answers = [number < passed for number in range(samples)]
    for k in range(1, samples + 1):
        chosen = list(combinations(answers, k))
        share = sum(map(any, chosen)) / len(chosen)
        assert pass_at_k(samples, passed, k) == pytest.approx(share)


def test_pass_at_k_needs_enough_samples() -> None:
    with pytest.raises(ValueError, match="k = 3 must be from 1 to the number of samples, 2"):
        pass_at_k(2, 1, 3)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (400, 900)])
def test_wilson_holds_the_shares_whose_score_is_small(successes: int, trials: int) -> None:
    value, low, high = wilson(successes, trials)
    assert value == successes / trials
    for edge in (low, high):
        if 1e-9 < edge < 1 - 1e-9:
            score = (value - edge) / math.sqrt(edge * (1 - edge) / trials)
            assert abs(score) == pytest.approx(1.96, abs=1e-3)
    assert low <= value <= high


def test_wilson_of_nothing_knows_nothing() -> None:
    assert wilson(0, 0)[1:] == (0, 1)


def test_bootstrap_draws_groups_as_wholes() -> None:
    random = np.random.default_rng(0)
    values = random.normal(5, 2, 400)
    value, low, high = bootstrap([(x, 1.0) for x in values.tolist()], seed=1)
    assert value == pytest.approx(values.mean())
    standard_error = values.std() / 20
    assert low == pytest.approx(value - 1.96 * standard_error, abs=0.05)
    assert high == pytest.approx(value + 1.96 * standard_error, abs=0.05)
    # The same numbers in groups that agree with themselves say less.
    groups = [(10 * x, 10.0) for x in values[:40].tolist()]
    _, wide_low, wide_high = bootstrap(groups, seed=1)
    assert wide_high - wide_low > 2 * (high - low)
    assert bootstrap(groups, seed=1) == bootstrap(groups, seed=1)
    assert math.isnan(bootstrap([], seed=1).value)
    assert bootstrap([(1.0, 1.0), (0.0, 0.0)], seed=1) == (1, 1, 1)


def distance_by_table(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


@given(st.text("ab c", max_size=80), st.text("ab c", max_size=80))
def test_edit_distance_is_the_tables(one: str, other: str) -> None:
    assert edit_distance(one, other) == distance_by_table(one, other)


def test_edit_similarity_is_one_minus_distance_over_the_longer_length() -> None:
    assert edit_similarity("", "") == 1
    assert edit_similarity("abcd", "") == 0
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
