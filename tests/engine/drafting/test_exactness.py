"""Drafts change the speed and nothing else, whoever makes them; a trained drafter's are accepted.

Acceptance is asserted, since nothing else shows a drafter that is wrong: the text is the same.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sounding.engine.network import Network
from sounding.engine.requests import GenerationRequest
from sounding.engine.sampling import SamplingParams
from sounding.model.transformer import Transformer
from sounding.ops.cpu import library
from tests.engine.drafting.trained import acceptance, answers, predictable, served, shuffled, train
from tests.engine.running import prompt, request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library() is None, reason="the engine drafts with the C++ kernels only"),
]
EACH = ("prompt lookup", "mtp", "dspark")


@pytest.fixture(scope="module")
def untrained() -> Transformer:
    return predictable()


@pytest.fixture(scope="module")
def trained(untrained: Transformer) -> Transformer:
    model = predictable()
    train(model, 120)
    return model


@pytest.fixture(scope="module")
def network(trained: Transformer) -> Network:
    return served(trained)


def unseen(count: int, **how: Any) -> list[GenerationRequest]:
    """Requests for short answers behind random prompts, on which nothing was trained."""
    return [
        request(prompt(20, 70 + number), guard_repetition=False, **({"max_tokens": 8} | how))
        for number in range(count)
    ]


def test_drafts_of_a_trained_drafter_are_accepted(network: Network, untrained: Transformer) -> None:
    """Behind text that was not trained on, and not the network's own repetitions."""
    alone = {"drafters": ("dspark",), "always_draft": True}
    before, after = (
        acceptance(answers(each, unseen(40), **alone)[1]) for each in (served(untrained), network)
    )
    assert after[0] > 0.6 and after[1] > 0.25
    assert before[1] < 0.5 * after[1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_broken_drafter_changes_no_token(
    network: Network, trained: Transformer, temperature: float
) -> None:
    asked = unseen(8, max_tokens=30, temperature=temperature)
    expected, _ = answers(network, asked, draft_tokens=0)
    for how in ({"always_draft": True, "drafters": ("dspark",)}, {}):
        assert answers(network, asked, **how)[0] == expected
        assert answers(served(shuffled(trained)), asked, **how)[0] == expected


@pytest.mark.parametrize(
    "tokens", [300, pytest.param(10_000, marks=pytest.mark.long)], ids=["short", "long"]
)
@pytest.mark.parametrize("drafters", [*((each,) for each in EACH), None])
def test_greedy_output_is_the_same_with_drafts(
    network: Network, drafters: tuple[str, ...] | None, tokens: int
) -> None:
    """Past windows and groups of 128; with each drafter alone, and as the engine chooses."""
    asked = [request(prompt(50), max_tokens=tokens, guard_repetition=False)]
    expected, _ = answers(network, asked, draft_tokens=0)
    found, stats = answers(network, asked, drafters=drafters, always_draft=drafters is not None)
    assert found == expected and len(found[0]) == tokens
    assert stats.accepted_tokens > 0 or drafters == ("mtp",)


@pytest.mark.parametrize(
    "seeds", [400, pytest.param(20_000, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_sampled_tokens_have_the_network_s_distribution(network: Network, seeds: int) -> None:
    """Chi-square of the second token, which is drafted, over many seeds."""
    given = prompt(20, seed=1)
    params = (SamplingParams(temperature=1.0, seed=seed) for seed in range(seeds))
    asked = [GenerationRequest(prompt=given, params=each, max_tokens=3) for each in params]
    found, stats = answers(network, asked, drafters=("dspark",), always_draft=True)
    assert (
        sum(stats.drafts["dspark"].verified) > 0.98 * seeds
    )  # some steps are plain, to compare with
    counts = Counter(answer[1] for answer in found)
    statistic, freedom = chi_square(counts, seeds * second_token(network, given))
    print(f"chi-square {statistic:.1f}, {freedom} degrees of freedom, {seeds} seeds")
    # Wilson and Hilferty: the cube root is nearly normal; 3.3 is one in two thousand.
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (
        2 / (9 * freedom)
    ) ** 0.5
    assert normal < 3.3


def second_token(network: Network, given: Sequence[int]) -> np.ndarray:
    """The distribution of the second token behind a prompt, over all first ones."""
    first = probabilities(network, given)
    return sum(
        first[token] * probabilities(network, [*given, token]) for token in range(len(first))
    )


def probabilities(network: Network, tokens: Sequence[int]) -> np.ndarray:
    made = network.predict(list(tokens), [len(tokens) - 1], [len(tokens)], [network.new_state()])
    return torch.tensor(made.logits[0], dtype=torch.float64).softmax(-1).numpy()


def chi_square(counts: Counter[int], expected: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens are counted together."""
    found = np.array([counts[token] for token in range(len(expected))], dtype=np.float64)
    rare = expected < 5
    found = np.append(found[~rare], found[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    return float(((found - wanted) ** 2 / wanted).sum()), len(wanted) - 1
