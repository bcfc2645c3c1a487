"""Guessing ahead changes how long an answer takes and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sounding.engine.drafting.cost_model import Clock, Lookup, Noted, Payoff
from sounding.engine.drafting.drafter import Drafter
from sounding.engine.engine import Engine
from sounding.engine.requests import GenerationRequest
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings
from sounding.model.state import growing_state
from sounding.model.transformer import Transformer
from tests.conftest import NetworkMaker
from tests.engine.running import CONFIG, Gate, collect, prompt, request
from tests.networks import as_network

EXACT = EngineSettings(exact_splits=True)


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(CONFIG, dtype=torch.float64)


def plain(network: Transformer, asked: Sequence[GenerationRequest]) -> list[list[int]]:
    engine = Engine(as_network(network), settings=EngineSettings(draft_tokens=0))
    answers = [collect(engine.submit(each))[0] for each in asked]
    engine.close()
    return answers


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_same_tokens_as_without(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Whatever is guessed, right and wrong, in company; with right guesses in fewer steps."""
    how: dict[str, Any] = {"temperature": temperature, "max_tokens": 24, "top_logprobs": 2}
    asked = [request(length, seed=length + 1, **how) for length in (5, 40, 150)]
    expected = plain(network, asked)
    truth = {tuple(each.prompt): answer for each, answer in zip(asked, expected, strict=True)}

    def draft(self: Drafter, generations: Sequence[ActiveSequence]) -> None:
        for generation in generations:
            done = generation.answered
            future = truth[tuple(generation.request.prompt)][done : done + 3]
            if done % 5 == 0:  # a wrong one after a right one
                future[1:2] = [(token + 1) % CONFIG.vocab_size for token in future[1:2]]
            generation.drafts = future
            generation.cut_drafts()

    monkeypatch.setattr(Drafter, "draft", draft)
    gate = Gate(network, monkeypatch)
    engine = Engine(as_network(network), settings=EXACT)
    streams = [engine.submit(each) for each in asked]
    gate.release()
    answers = [collect(stream) for stream in streams]
    engine.close()
    assert [tokens for tokens, _ in answers] == expected
    assert len(gate.lengths) < 15
    for _, end in answers:
        assert 4 < end.usage.accepted_tokens < end.usage.drafted_tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_real_guesses(network: Transformer, temperature: float) -> None:
    repeated = prompt(40) * 2
    asked = [
        request(given, temperature=temperature, seed=4, max_tokens=30, guard_repetition=False)
        for given in (7, 60, repeated)
    ]
    engine = Engine(as_network(network), settings=EXACT)
    streams = [engine.submit(each) for each in asked]
    answers = [collect(stream) for stream in streams]
    assert [tokens for tokens, _ in answers] == plain(network, asked)
    assert any(end.usage.drafted_tokens for _, end in answers)
    stats = engine.stats()
    assert stats.drafted_tokens == sum(end.usage.drafted_tokens for _, end in answers)
    assert stats.accepted_tokens == sum(end.usage.accepted_tokens for _, end in answers)
    engine.close()


def mtp_guesses(network: Transformer, tokens: Sequence[int], count: int) -> list[int]:
    """What the MTP block says comes next, having read everything anew."""
    block: Any = network.mtp[0]
    state = growing_state(CONFIG)
    with torch.inference_mode():
        streams = network(torch.tensor(tokens[:-1])).streams
        following = torch.tensor(tokens[1:])
        guesses: list[int] = []
        for _ in range(count):
            streams = network.draft(streams, following, None, [state]).streams[-1:]
            guesses.append(int(network.logits(block.hidden(streams))[0].argmax()))
            following = torch.tensor(guesses[-1:])
    return guesses


def test_the_block_reads_along(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guesses are those of a block that has read all of the text at once: after prompts in
    pieces, rejected guesses, in company, and where a state was found in the cache."""
    monkeypatch.setattr(Lookup, "find", lambda *given: [])
    monkeypatch.setattr(Payoff, "best_count", lambda self, most, **how: most - 1)
    made: list[tuple[list[int], list[int]]] = []
    draft = Drafter.draft

    def recorded(self: Drafter, generations: Sequence[ActiveSequence]) -> None:
        draft(self, generations)
        made.extend((list(g.tokens), list(g.drafts)) for g in generations)

    monkeypatch.setattr(Drafter, "draft", recorded)
    engine = Engine(as_network(network), settings=EXACT, stop_tokens=())
    tokens = prompt(150)
    for _ in range(2):
        streams = [engine.submit(request(given, max_tokens=7)) for given in (tokens, prompt(9))]
        (reply, end), _ = (collect(stream) for stream in streams)
        tokens = [*tokens, *reply, *prompt(5)]
    assert end.usage.hit_tokens == 156
    engine.close()
    assert len(made) > 20
    for tokens, drafts in made:
        assert drafts == mtp_guesses(network, tokens, 3)[: len(drafts)]
    assert {len(drafts) for _, drafts in made} == {0, 1, 2, 3}


def test_off_where_asked(network: Transformer) -> None:
    engine = Engine(as_network(network), settings=EXACT)
    _, end = collect(engine.submit(request(20, max_tokens=20, speculate=False)))
    engine.close()
    assert end.usage.drafted_tokens == 0


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
def test_lookup_finds_what_followed_last_time(tokens: list[int], count: int) -> None:
    lookup = Lookup()
    for end in range(0, len(tokens) + 1, 7):
        lookup.find(tokens[:end], count)
    expected: list[int] = []
    for length in (4, 3):
        pattern = tokens[len(tokens) - length :]
        places = [at for at in range(len(tokens) - length) if tokens[at : at + length] == pattern]
        if len(tokens) >= length and places:
            expected = tokens[places[-1] + length :][:count]
            break
    assert lookup.find(tokens, count) == expected


def test_numbers_are_found_whole() -> None:
    """Not where the bytes of two neighbours look like one."""
    tokens = [0x01000000, 0x00000002, 0x03000000, 0x00000004, 5, 1 << 24 | 2, 0x0201, 0x0403]
    assert Lookup().find([*tokens, 256, 2 << 8, 3 << 24], 2) == []


def test_noted_rows_are_read_in_order_and_once() -> None:
    rows = np.arange(10.0).reshape(10, 1, 1)
    noted = Noted(rows[:4])
    noted.append(rows[4:5])
    assert np.array_equal(noted.take(3), rows[:3])
    noted.append(rows[5:10])
    assert len(noted) == 7
    noted.keep(5)
    assert np.array_equal(noted.take(5), rows[5:10])
    assert len(noted) == 0


def test_what_guesses_take_is_measured() -> None:
    clock = Clock(0.25)
    clock.guessed(9.0, 1)
    assert clock.guess_cost == 0.25  # there is nothing to compare with yet
    clock.stepped(0.3, 2, 2)  # the first one is slow
    for _ in range(30):
        clock.stepped(0.024, 2, 2)  # two answers: 1.2 of one alone, which then takes 0.02
        clock.stepped(0.036, 1, 3)  # one with two guesses, each of which takes 0.4 more
        clock.guessed(0.04, 4)
    assert abs(clock.guess_cost - 0.5) < 0.01 and abs(clock.row_cost - 0.4) < 0.01
    assert Payoff().best_count(4, running=1, guess_cost=clock.guess_cost) < 4
    assert Payoff().best_count(4, running=1, guess_cost=2.0) == 0
    assert Payoff().best_count(4, running=1, guess_cost=0.0, row_cost=clock.row_cost) < 4
    clock.stepped(0.2, 1, 2)  # interrupted
    assert Payoff().best_count(4, running=1, guess_cost=0.0, row_cost=clock.row_cost) == 0
    for _ in range(500):
        clock.stepped(0.02, 1, 1)
    assert Payoff().best_count(4, running=1, guess_cost=0.0, row_cost=clock.row_cost) > 0


def test_guessing_stops_where_it_does_not_pay_and_is_tried_again() -> None:
    payoff = Payoff()
    assert payoff.best_count(4, running=1, guess_cost=0.0) == 4
    while (count := payoff.best_count(4, running=1, guess_cost=0.1)) > 0:
        payoff.observe(count, 0)
    rests = 0
    while payoff.best_count(4, running=1, guess_cost=0.1) == 0:
        rests += 1
    assert rests == 64
    for _ in range(100):
        payoff.observe(4, 4)
    assert payoff.best_count(4, running=64, guess_cost=0.1) == 4
    assert payoff.best_count(0, running=1, guess_cost=0.1) == 0
