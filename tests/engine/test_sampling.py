"""Sampling: a wrong program would ignore a parameter, or sample from another distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sounding.engine.sampling import SamplingParams, sample


def _draws(logits: torch.Tensor, params: SamplingParams, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(params.seed)
    return torch.tensor([sample(logits, params, generator) for _ in range(count)])


def test_greedy_takes_the_largest_and_the_lower_of_equals() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 2.0])
    assert _draws(logits, SamplingParams(), 5).tolist() == [1] * 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.3])
    draws = _draws(logits, SamplingParams(temperature=temperature, seed=1), 4000)
    expected = (logits / temperature).softmax(-1)
    frequency = draws.bincount(minlength=4) / len(draws)
    # four standard deviations of a share
    assert ((frequency - expected).abs() < 4 * (expected / len(draws)).sqrt()).all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0.05, 1.0), st.integers(0, 9))
def test_top_p_keeps_the_smallest_set_that_reaches_it(
    values: list[float], top_p: float, seed: int
) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    token = int(_draws(logits, SamplingParams(temperature=1.0, top_p=top_p, seed=seed), 1))
    probabilities = logits.softmax(-1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < top_p + 1e-9


def test_top_p_drops_the_tail() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    assert set(_draws(logits, SamplingParams(temperature=1.0, top_p=0.65), 300).tolist()) == {0, 1}


def test_the_seed_decides() -> None:
    logits = torch.zeros(100)
    first, again, other = (
        _draws(logits, SamplingParams(temperature=1.0, seed=seed), 20).tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0 must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"seed": -1}, "seed = -1 must be an integer from 0"),
    ],
)
def test_values_without_a_meaning_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)  # type: ignore[arg-type]
