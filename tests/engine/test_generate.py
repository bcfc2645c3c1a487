"""Generation beside the plainest loop there is: the whole sequence anew for every token."""

from collections.abc import Iterator

import pytest
import torch

from sounding.engine import generate as module
from sounding.engine.generate import generate, require_tokens, split_logits
from sounding.engine.sampling import SamplingParams, sample
from sounding.model.transformer import Transformer
from sounding.presets import tiny
from tests.conftest import make_network

PROMPT = [int(token) for token in torch.arange(150) * 31 % 512]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_network(tiny(), dtype=torch.float64)


def _naive(model: Transformer, params: SamplingParams, count: int) -> Iterator[int]:
    tokens = list(PROMPT)
    generator = torch.Generator().manual_seed(params.seed)
    for _ in range(count):
        with torch.no_grad():
            hidden = model.hidden(model(torch.tensor(tokens)).streams)
            token = sample(model.logits(hidden)[-1], params, generator)
        tokens.append(token)
        yield token


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_the_naive_loop(
    model: Transformer, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_TOKENS", 64)
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=3)
    prefilled: list[int] = []
    ours = list(generate(model, PROMPT, params, max_tokens=8, prefilled=prefilled.append))
    assert ours == list(_naive(model, params, 8))
    assert prefilled == [64, 64, 22]


def test_it_ends_before_a_stop_token(model: Transformer) -> None:
    free = list(generate(model, PROMPT, SamplingParams(), max_tokens=6))
    stopped = list(generate(model, PROMPT, SamplingParams(), max_tokens=6, stop_tokens=free[3:4]))
    assert stopped == free[: free.index(free[3])]


def test_pieces_of_each_sequence_may_differ(model: Transformer) -> None:
    tokens = torch.arange(2 * 140).view(2, 140) * 13 % 512
    steps: list[int] = []
    ragged = split_logits(model, tokens, [[140], [3, 130, 7]], steps.append)
    whole = split_logits(model, tokens, [[140], [140]])
    assert steps == [143, 130, 7]
    torch.testing.assert_close(ragged, whole)


@pytest.mark.parametrize("token", [-1, 512])
def test_ids_outside_the_vocabulary_are_refused(model: Transformer, token: int) -> None:
    message = f"token id {token} is outside the model's vocabulary of 512"
    with pytest.raises(ValueError, match=message):
        require_tokens(torch.tensor([[1, token]]), 512)
    with pytest.raises(ValueError, match=message):
        next(generate(model, [1, token], SamplingParams(), max_tokens=1))


def test_lengths_that_cannot_be_are_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        next(generate(model, [], SamplingParams(), max_tokens=1))
    with pytest.raises(ValueError, match="exceed the 1048576 positions of the model"):
        next(generate(model, [1], SamplingParams(), max_tokens=2**20))
