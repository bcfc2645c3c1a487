"""Answers that rule over their tokens, and many of them at once."""

from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch

from sounding.engine.batch import Batch, Request
from sounding.engine.engine import Engine
from sounding.engine.requests import GenerationRequest
from sounding.engine.sampling import SamplingParams
from sounding.engine.settings import EngineSettings
from sounding.model.transformer import Transformer
from tests.engine.running import CONFIG, Gate, naive, prompt, small_vocabulary_config
from tests.engine.scripted import small_tokenizer
from tests.networks import NetworkMaker, as_network, make_network


class Collected:
    """Keeps tokens; may allow only some, and may have enough at one."""

    def __init__(self, only: Collection[int] | None = None, enough: int | None = None) -> None:
        self.tokens: list[int] = []
        self.only, self.enough = only, enough

    def allowed(self) -> Collection[int] | None:
        return self.only

    def push(self, token: int, logprob: float) -> bool:
        self.tokens.append(token)
        return token != self.enough


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(CONFIG, dtype=torch.float64)


@pytest.fixture
def engine(network: Transformer) -> Iterator[Engine]:
    engine = Engine(as_network(network), settings=EngineSettings(width=3, queue=2), stop_tokens=[3])
    yield engine
    engine.close()


def requests(answers: list[Collected], *, length: int = 4, **how: Any) -> list[Request]:
    max_tokens = how.pop("max_tokens", 6)
    return [
        Request(
            prompt=prompt(length, seed),
            answer=answer,
            params=SamplingParams(seed=seed, **how),
            max_tokens=max_tokens,
        )
        for seed, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_is_continued_as_alone(
    network: Transformer, engine: Engine, temperature: float
) -> None:
    """More than may wait at once, in any company."""
    answers = [Collected() for _ in range(6)]
    asked = requests(answers, temperature=temperature)
    over = [index for index, done in Batch(engine)(asked) if done]
    assert over == list(range(6))
    for request, answer in zip(asked, answers, strict=True):
        same = GenerationRequest(prompt=request.prompt, params=request.params, max_tokens=6)
        assert answer.tokens == list(naive(network, same, [3]))


def test_an_answer_rules_over_its_tokens(engine: Engine) -> None:
    answers = [Collected([7, 9]), Collected([4]), Collected([5], enough=5), Collected([3])]
    events = list(Batch(engine)(requests(answers)))
    assert set(answers[0].tokens) <= {7, 9}
    assert [len(answer.tokens) for answer in answers] == [6, 6, 1, 0]
    assert [sum(index == number for index, _ in events) for number in range(4)] == [7, 7, 2, 1]


def test_equal_prompts_are_read_once(
    network: Transformer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(network, monkeypatch)
    gate.release()
    asked = [
        Request(
            prompt=prompt(100), answer=Collected(), params=SamplingParams(seed=seed), max_tokens=4
        )
        for seed in range(4)
    ]
    list(Batch(engine)(asked))
    assert sum(map(sum, gate.lengths)) == 100 + 4 * 3


def test_ids_without_a_token_are_never_chosen() -> None:
    tokenizer = small_tokenizer()
    wide = make_network(small_vocabulary_config(tokenizer.num_tokens))
    engine = Engine(as_network(wide), tokenizer)
    answers = [Collected(), Collected([5, tokenizer.num_tokens + 1])]
    list(Batch(engine)(requests(answers, max_tokens=40, temperature=50.0)))
    engine.close()
    assert max(answers[0].tokens) < tokenizer.num_tokens
    assert set(answers[1].tokens) == {5}


def test_who_stops_reading_cancels(engine: Engine) -> None:
    for _ in Batch(engine)(requests([Collected() for _ in range(3)], max_tokens=5000)):
        break
    engine.close()
    assert engine.stats().running == engine.stats().waiting == engine.stats().state_bytes == 0


def test_what_fails_is_said(engine: Engine) -> None:
    class Failing(Collected):
        def push(self, token: int, logprob: float) -> bool:
            raise KeyError("no such token")

    with pytest.raises(RuntimeError, match="prompt 1 failed: 'no such token'"):
        list(Batch(engine)(requests([Collected(), Failing()])))


@pytest.mark.parametrize(
    ("wrong", "max_tokens", "message"),
    [
        ([], 1, "no tokens"),
        ([64], 1, "outside the model's vocabulary"),
        ([1], -1, "max_tokens = -1"),
        ([1], 2**20, "exceed the 1048576 positions"),
    ],
)
def test_a_wrong_request_is_refused_before_any_is_begun(
    engine: Engine, wrong: list[int], max_tokens: int, message: str
) -> None:
    good, bad = Collected(), Collected()
    asked = requests([good])
    asked.append(Request(prompt=wrong, answer=bad, params=SamplingParams(), max_tokens=max_tokens))
    with pytest.raises(ValueError, match=message):
        next(Batch(engine)(asked))
    assert good.tokens == []
