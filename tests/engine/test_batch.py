"""Continuing many prompts is continuing each of them."""

import dataclasses
from collections.abc import Collection
from typing import Any

import pytest
import torch

from sounding.engine import batch
from sounding.engine.batch import Batch, Request
from sounding.engine.generate import generate, split_logits
from sounding.engine.sampling import SamplingParams
from sounding.engine.scoring import token_logprobs
from sounding.model.transformer import Transformer
from sounding.presets import tiny
from tests.conftest import NetworkMaker

CONFIG = dataclasses.replace(
    tiny(),
    quantization_config=None,
    expert_dtype=None,
    num_hidden_layers=2,
    compress_ratios=(128, 4, 0),
)


class Collected:
    """Keeps tokens; may allow only some, and may have enough at one."""

    def __init__(self, only: Collection[int] | None = None, enough: int | None = None) -> None:
        self.tokens: list[int] = []
        self.only, self.enough = only, enough

    def allowed(self) -> Collection[int] | None:
        return self.only

    def push(self, token: int) -> bool:
        self.tokens.append(token)
        return token != self.enough


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(CONFIG)


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(512, (length,), generator=generator).tolist() for length in lengths]


def requests(
    given: list[list[int]], answers: list[Collected], *, max_tokens: int = 6, **how: Any
) -> list[Request]:
    return [
        Request(
            prompt=prompt,
            answer=answer,
            params=SamplingParams(seed=seed, **how),
            max_tokens=max_tokens,
        )
        for seed, (prompt, answer) in enumerate(zip(given, answers, strict=True))
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("width", [2, 16])
def test_together_as_alone(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, width: int, temperature: float
) -> None:
    monkeypatch.setattr(batch, "PREFILL_TOKENS", 50)  # some prompts share a chunk, one is cut
    given = prompts(5, 140, 1, 20, 9)
    answers = [Collected() for _ in given]
    asked = requests(given, answers, temperature=temperature)
    over = [index for index, done in Batch(network, width=width)(asked) if done]
    alone = [
        list(generate(network, request.prompt, request.params, max_tokens=6)) for request in asked
    ]
    assert [answer.tokens for answer in answers] == alone
    assert sorted(over) == list(range(5))


def test_equal_prompts_are_read_once(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    forward = network.forward

    def counted(tokens: torch.Tensor, *given: object, **named: object) -> object:
        lengths.append(len(tokens))
        return forward(tokens, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "forward", counted)
    given = prompts(30) * 4
    answers = [Collected() for _ in given]
    asked = requests(given, answers, temperature=1.0)
    list(Batch(network)(asked))
    assert lengths == [30, 4, 4, 4, 4, 4]
    monkeypatch.undo()
    assert [answer.tokens for answer in answers] == [
        list(generate(network, request.prompt, request.params, max_tokens=6)) for request in asked
    ]


def test_an_answer_rules_over_its_tokens(network: Transformer) -> None:
    answers = [Collected([7, 9]), Collected(), Collected([5], enough=5), Collected([3])]
    asked = requests(prompts(4, 4, 4, 4), answers)
    events = list(Batch(network, stop_tokens=[3])(asked))
    assert set(answers[0].tokens) <= {7, 9}
    assert len(answers[0].tokens) == len(answers[1].tokens) == 6
    assert (answers[2].tokens, answers[3].tokens) == ([5], [])
    assert [event for event in events if event[1]] == [(2, True), (3, True), (0, True), (1, True)]


def test_ids_without_a_token_are_never_chosen(network: Transformer) -> None:
    answers = [Collected(), Collected([5, 400])]
    asked = requests(prompts(4, 4), answers, max_tokens=30, temperature=2.0)
    list(Batch(network, num_tokens=300)(asked))
    assert max(answers[0].tokens) < 300
    assert set(answers[1].tokens) == {5}


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 1, "no tokens"),
        ([512], 1, "outside the model's vocabulary"),
        ([1], 0, "max_tokens = 0"),
        ([1], 2**20, "exceed the 1048576 positions"),
    ],
)
def test_a_wrong_request_is_refused_at_once(
    network: Transformer, prompt: list[int], max_tokens: int, message: str
) -> None:
    asked = requests([[1], prompt], [Collected(), Collected()], max_tokens=max_tokens)
    with pytest.raises(ValueError, match=message):
        next(Batch(network)(asked))
    with pytest.raises(ValueError, match="width = 0"):
        Batch(network, width=0)


def test_logprobs_are_those_of_the_logits(network: Transformer) -> None:
    given = prompts(7, 1, 150)
    found = token_logprobs(network, given)
    for sequence, logprobs in zip(given, found, strict=True):
        tokens = torch.tensor([sequence])
        logits = split_logits(network, tokens, [[len(sequence)]])[0].double().log_softmax(-1)
        expected = logits[torch.arange(len(sequence) - 1), tokens[0, 1:]]
        torch.testing.assert_close(
            torch.tensor(logprobs, dtype=torch.double), expected, atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="no tokens"):
        token_logprobs(network, [[1], []])
