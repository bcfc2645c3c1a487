"""The DSpark drafter drafts as if it had read all of the text at once, and changes no token."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sounding.engine.drafting.acceptance import BlockAcceptance, Plan
from sounding.engine.drafting.cost_model import Prices, best_prefix
from sounding.engine.drafting.prompt_lookup import TokenHistory
from sounding.engine.drafting.selection import DraftSelection, drafters_for
from sounding.engine.engine import Engine
from sounding.engine.prefix.store import PrefixStore
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings
from sounding.engine.stream import EventStream
from sounding.model.state import growing_state
from sounding.model.transformer import Transformer
from tests.engine.running import collect, prompt, request
from tests.networks import DSPARK, NetworkMaker, as_network

EXACT = EngineSettings(exact_splits=True)


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(DSPARK, dtype=torch.float64)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of every block is verified, whatever it costs, and nothing is looked up."""
    monkeypatch.setattr(TokenHistory, "find", lambda *given: [])
    monkeypatch.setattr(BlockAcceptance, "plan", lambda self, most, prices: Plan(most, 9.0))
    monkeypatch.setattr(
        "sounding.engine.drafting.selection.best_prefix", lambda survival, prices: len(survival)
    )


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """Tokens and drafts of every sequence, step by step."""
    made: list[tuple[list[int], list[int]]] = []
    propose = DraftSelection.propose

    def recording(self: DraftSelection, sequences: Sequence[ActiveSequence]) -> None:
        propose(self, sequences)
        made.extend((list(each.tokens), list(each.drafts)) for each in sequences)

    monkeypatch.setattr(DraftSelection, "propose", recording)
    return made


def block_drafts(network: Transformer, tokens: Sequence[int]) -> list[int]:
    """The likeliest drafts, by a drafter that has read everything anew."""
    dspark = network.dspark
    assert dspark is not None
    state = growing_state(DSPARK)
    with torch.inference_mode():
        taps = network(torch.tensor(tokens[:-1])).taps
        assert taps is not None
        dspark.read(taps, [len(tokens) - 1], [state.blocks])
        previous = torch.tensor(tokens[-1:])
        block = network.draft_block(previous, [state])
        drafts: list[int] = []
        for row in range(4):
            bias = dspark.correct(block.hidden[:, row], previous).bias
            previous = (block.logits[:, row] + bias).argmax(-1)
            drafts.append(int(previous))
    return drafts


@pytest.mark.usefixtures("always")
def test_the_drafter_reads_along(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After prompts in pieces, rejected drafts, in company, and where a state was found in the
    cache. Catches: rejected tokens read, tokens read twice or not at all."""
    made = recorded(monkeypatch)
    engine = Engine(as_network(network), settings=EXACT, stop_tokens=())
    tokens = prompt(150)
    for _ in range(2):
        streams = [engine.submit(request(given, max_tokens=9)) for given in (tokens, prompt(9))]
        (reply, end), _ = (collect(stream) for stream in streams)
        tokens = [*tokens, *reply, *prompt(5)]
    assert end.usage.hit_tokens > 150
    engine.close()
    drafted = [(tokens, drafts) for tokens, drafts in made if drafts]
    assert len(drafted) > 12
    for tokens, drafts in drafted:
        assert drafts == block_drafts(network, tokens)[: len(drafts)]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.usefixtures("always")
def test_the_same_tokens_as_without(network: Transformer, temperature: float) -> None:
    asked = [request(n, temperature=temperature, seed=4, max_tokens=24) for n in (7, 60, 33)]
    without = EngineSettings(draft_tokens=0)
    plain = Engine(as_network(network), settings=without, stop_tokens=())
    expected = [collect(plain.submit(each))[0] for each in asked]
    plain.close()
    engine = Engine(as_network(network), settings=EXACT, stop_tokens=())
    streams = [engine.submit(each) for each in asked]
    answers = [collect(stream) for stream in streams]
    engine.close()
    assert [tokens for tokens, _ in answers] == expected
    assert all(end.usage.drafted_tokens > 20 for _, end in answers)


@pytest.mark.usefixtures("always")
def test_a_prefix_on_disk_holds_what_the_drafter_has_read(
    network: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = prompt(300)
    for run in range(2):
        store = PrefixStore(tmp_path, "0123456789abcdef")
        made = recorded(monkeypatch)
        engine = Engine(as_network(network), settings=EXACT, stop_tokens=(), store=store)
        _, end = collect(engine.submit(request(tokens, max_tokens=14)))
        engine.close()
        assert (end.usage.hit_tokens > 200) == bool(run)
        drafted = [(text, drafts) for text, drafts in made if drafts]
        assert drafted
        for text, drafts in drafted:
            assert drafts == block_drafts(network, text)[: len(drafts)]


def test_drafts_are_chosen_with_the_random_numbers_of_the_tokens() -> None:
    """So that the same scores give the same tokens, drafted or chosen."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20, 64)).astype(np.float32)
    asked = request(5, temperature=1.3, seed=9, max_tokens=50)
    sequence = sequence_of(asked)
    previewed = [sequence.preview()(logits[0]) for _ in range(2)]
    assert previewed[0] == previewed[1]
    choose = sequence.preview()
    expected = [choose(row) for row in logits]
    assert [sequence.choose(row) for row in logits] == expected
    assert len(set(expected)) > 5


def sequence_of(asked: Any) -> ActiveSequence:
    return ActiveSequence(
        asked,
        EventStream("r1", lambda: None),
        serial=1,
        state_bytes=0,
        tokenizer=None,
        constraint=None,
        stop_tokens=(),
        barred_tokens=(),
        repetition_tokens=256,
    )


def test_confidence_and_costs_decide_how_much_of_a_block_is_verified() -> None:
    def count(survival: Sequence[float], row_cost: float = 0.1, block_cost: float = 0.5) -> int:
        return best_prefix(survival, Prices(1.0, block_cost, row_cost))

    assert count([0.99] * 5) == 5
    assert count([0.99, 0.99, 0.02, 0.99, 0.99]) == 2
    assert count([0.01] * 5) == 0
    assert count([0.5, 0.5, 0.5], row_cost=0.25) == 2
    assert count([0.5, 0.5, 0.5], row_cost=0.01) == 3
    assert count([0.5, 0.5, 0.5], row_cost=1.0) == 0
    assert count([]) == 0
    assert count([float("nan")] * 3) == 0


def test_the_drafter_is_one_of_those_of_a_network(network: Transformer) -> None:
    names = [each.name for each in drafters_for(as_network(network), 64)]
    assert names == ["grammar", "prompt lookup", "dspark"]
    assert DSPARK.num_mtp_layers == 0


def test_more_rows_than_a_block_has_are_not_proposed(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, always: None
) -> None:
    made = recorded(monkeypatch)
    settings = dataclasses.replace(EXACT, draft_tokens=9)
    engine = Engine(as_network(network), settings=settings, stop_tokens=())
    collect(engine.submit(request(20, max_tokens=30)))
    engine.close()
    assert {len(drafts) for _, drafts in made} >= {0, 4}
    assert max(len(drafts) for _, drafts in made) == 4
