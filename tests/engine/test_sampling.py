"""Sampling: a wrong program would ignore a parameter, or sample from another distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sounding.engine.sampling import SamplingParams, logprob_of, sample


def _draws(logits: torch.Tensor, params: SamplingParams, count: int) -> torch.Tensor:
    generator = np.random.default_rng(params.seed)
    given = logits.float().numpy()
    return torch.tensor([sample(given, params, generator) for _ in range(count)])


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


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(0, 9),
)
def test_top_k_and_min_p_keep_what_they_say(
    values: list[float], top_k: int, min_p: float, seed: int
) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    probabilities = logits.softmax(-1)
    for how in ({"top_k": top_k}, {"min_p": min_p}):
        params = SamplingParams(temperature=1.0, seed=seed, **how)
        token = int(_draws(logits, params, 1))
        if "top_k" in how:
            assert int((probabilities > probabilities[token]).sum()) < top_k
        else:
            assert probabilities[token] >= min_p * probabilities.max() - 1e-12


def test_limits_leave_the_rest_as_it_was() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for how, kept in (
        ({"top_k": 2}, {0: 4 / 7, 1: 3 / 7}),
        ({"min_p": 0.45}, {0: 4 / 9, 1: 3 / 9, 2: 2 / 9}),
        ({"top_k": 3, "top_p": 0.65}, {0: 4 / 7, 1: 3 / 7}),
        ({"top_k": 9, "min_p": 0.0}, {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}),
    ):
        draws = _draws(logits, SamplingParams(temperature=1.0, **how), 3000)
        frequency = draws.bincount(minlength=4) / len(draws)
        expected = torch.tensor([kept.get(token, 0.0) for token in range(4)])
        assert ((frequency - expected).abs() <= 4 * (expected / len(draws)).sqrt()).all()


def test_masked_tokens_never_come() -> None:
    logits = torch.full((50,), -torch.inf)
    logits[[7, 49]] = 0.0
    draws = _draws(logits, SamplingParams(temperature=1.0, min_p=0.1), 200)
    assert set(draws.tolist()) == {7, 49}


def test_one_number_for_every_token() -> None:
    """So that how many tokens are chosen at once cannot change which."""
    generator, other = (np.random.default_rng(4) for _ in range(2))
    sample(np.zeros(9, dtype=np.float32), SamplingParams(temperature=1.0, top_k=3), generator)
    other.random()
    assert generator.bit_generator.state == other.bit_generator.state


def test_seeded_samples_stay_as_they_are() -> None:
    """Pinned: users rely on a seed giving the same text in the next version."""
    logits = np.linspace(0, 3, 50, dtype=np.float32)
    generator = np.random.default_rng(7)
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=7)
    assert [sample(logits, params, generator) for _ in range(12)] == [
        44,
        48,
        46,
        33,
        36,
        48,
        15,
        47,
        47,
        41,
        36,
        35,
    ]


def test_logprobs_are_those_of_a_float64_log_softmax() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, -torch.inf])
    logprob, best = logprob_of(logits.numpy(), 0, 3)
    expected = logits.double().log_softmax(-1)
    assert logprob == float(expected[0])
    assert best == [(1, float(expected[1])), (2, float(expected[2])), (0, float(expected[0]))]
    assert logprob_of(logits.numpy(), 3, 0) == (float("-inf"), [])


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
        ({"top_k": -1}, "top_k = -1 must be a count"),
        ({"min_p": 1.5}, "min_p = 1.5 must be from 0 to 1"),
        ({"min_p": float("nan")}, "min_p = nan"),
        ({"seed": -1}, "seed = -1 must be an integer from 0"),
    ],
)
def test_values_without_a_meaning_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)  # type: ignore[arg-type]
