"""With native kernels nothing depends on company, caches and guesses, to the last bit."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.engine.engine import Engine
from sounding.engine.exact import splits_are_exact
from sounding.engine.requests import Event, Finished, GenerationRequest
from sounding.engine.sampling import SamplingParams
from sounding.engine.settings import EngineSettings
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.weights.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

VECTORS = Path(__file__).parent.parent / "vectors" / "tiny"


@cache
def network() -> KernelNetwork:
    checkpoint = Checkpoint(VECTORS)
    return KernelNetwork(checkpoint.config, checkpoint.read_all())


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return torch.randint(2, 512, (length,), generator=generator).tolist()


def request(tokens: list[int], seed: int, *, speculate: bool = True) -> GenerationRequest:
    return GenerationRequest(
        prompt=tokens,
        params=SamplingParams(temperature=0.8 * (seed % 2), seed=seed),
        max_tokens=4 + seed % 5,
        top_logprobs=2,
        speculate=speculate,
    )


def told(events: Iterator[Event]) -> tuple[list[Event], Finished]:
    *tokens, last = events
    assert isinstance(last, Finished)
    return tokens, last


def alone(asked: list[GenerationRequest]) -> list[list[Event]]:
    """Each by itself, without a cache and without guessing."""
    engine = Engine(network(), settings=EngineSettings(prefix_limit_bytes=0, draft_tokens=0))
    answers = [told(iter(engine.submit(each)))[0] for each in asked]
    engine.close()
    return answers


def test_these_kernels_are_exact() -> None:
    assert splits_are_exact(network())


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6))
def test_everything_at_once_is_each_alone(seed: int) -> None:
    """Logprobs included: prompts that begin alike, answers that are continued, all in company."""
    choose = random.Random(seed)
    engine = Engine(
        network(),
        settings=EngineSettings(exact_splits=True, width=4, prefix_limit_bytes=20_000_000),
    )
    shared, texts = prompt(choose.randint(1, 300), seed), [prompt(9)]
    asked: list[GenerationRequest] = []
    answers: list[list[Event]] = []
    for _ in range(2):
        for number in range(3):
            base = choose.choice([shared, *texts])
            tokens = base[: choose.randint(1, len(base))] + prompt(choose.randint(0, 40), number)
            asked.append(request(tokens, choose.randint(0, 9)))
        streams = [engine.submit(each) for each in asked[-3:]]
        for each, stream in zip(asked[-3:], streams, strict=True):
            events, _ = told(iter(stream))
            answers.append(events)
            texts.append([*each.prompt, *(e.token for e in events if not isinstance(e, Finished))])
    engine.close()
    assert answers == alone(asked)


def test_a_state_behind_an_answer_is_as_good_as_a_prompts() -> None:
    engine = Engine(network(), settings=EngineSettings(exact_splits=True), stop_tokens=())
    tokens, asked, answers = prompt(150), [], []
    for turn in range(4):
        asked.append(request(tokens, turn))
        events, end = told(iter(engine.submit(asked[-1])))
        answers.append(events)
        if turn:  # all but the last token of the answer, which was never fed, and what is new
            assert len(tokens) - end.usage.hit_tokens == 1 + 7
        reply = [event.token for event in events if not isinstance(event, Finished)]
        tokens = [*tokens, *reply, *prompt(7, turn)]
    engine.close()
    cold = Engine(
        network(),
        settings=EngineSettings(prefix_limit_bytes=0, draft_tokens=0),
        stop_tokens=(),
    )
    assert answers == [told(iter(cold.submit(each)))[0] for each in asked]
    cold.close()
