"""Drafting changes how long an answer takes and nothing else."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sounding.engine import runner
from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.drafting.selection import DraftSelection, drafters_for
from sounding.engine.engine import Engine
from sounding.engine.requests import DraftCounts, GenerationRequest
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings
from sounding.engine.stream import EventStream
from sounding.model.transformer import Transformer
from tests.engine.running import CONFIG, Gate, collect, prompt, request
from tests.networks import NetworkMaker, as_network

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
    """Whatever is drafted, right and wrong, in company; with right drafts in fewer steps.

    The drafter is one that the engine does not know."""
    how: dict[str, Any] = {"temperature": temperature, "max_tokens": 24, "top_logprobs": 2}
    asked = [request(length, seed=length + 1, **how) for length in (5, 40, 150)]
    expected = plain(network, asked)
    truth = {tuple(each.prompt): answer for each, answer in zip(asked, expected, strict=True)}

    class Scripted(Drafter):
        name, certain = "scripted", True

        def propose(
            self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
        ) -> list[list[int]]:
            return [self._future(sequence) for sequence in sequences]

        def _future(self, sequence: ActiveSequence) -> list[int]:
            done = sequence.answered
            future = truth[tuple(sequence.request.prompt)][done : done + 3]
            if done % 5 == 0:  # a wrong one after a right one
                future[1:2] = [(token + 1) % CONFIG.vocab_size for token in future[1:2]]
            return future

    monkeypatch.setattr(runner, "drafters_for", lambda *given: [Scripted()])
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
def test_the_same_tokens_with_drafts_of_its_own(network: Transformer, temperature: float) -> None:
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
    by_position = sum((end.usage.drafts for _, end in answers), DraftCounts())
    assert by_position == sum(stats.drafts.values(), DraftCounts())
    assert sum(by_position.verified) == stats.drafted_tokens
    assert sum(by_position.accepted) == stats.accepted_tokens
    assert list(by_position.verified) == sorted(by_position.verified, reverse=True)
    engine.close()


def test_drafts_are_counted_by_position() -> None:
    counts = DraftCounts().plus(3, 1).plus(1, 1).plus(2, 0)
    assert counts == DraftCounts((3, 2, 1), (2, 0, 0))
    assert counts + DraftCounts((1,), (1,)) == DraftCounts((4, 2, 1), (3, 0, 0))


def test_only_drafters_that_are_named_draft(network: Transformer) -> None:
    only = dataclasses.replace(EXACT, drafters=("prompt lookup",), always_draft=True)
    engine = Engine(as_network(network), settings=only)
    collect(engine.submit(request(prompt(40) * 2, max_tokens=30, guard_repetition=False)))
    stats = engine.stats()
    engine.close()
    assert list(stats.drafts) == ["prompt lookup"]
    with pytest.raises(ValueError, match=r"names 'lookup', which .* it has grammar, prompt lookup"):
        Engine(as_network(network), settings=dataclasses.replace(EXACT, drafters=("lookup",)))


def test_off_where_asked(network: Transformer) -> None:
    engine = Engine(as_network(network), settings=EXACT)
    _, end = collect(engine.submit(request(20, max_tokens=20, speculate=False)))
    engine.close()
    assert end.usage.drafted_tokens == 0


class Recording(Drafter):
    """Proposes the same drafts at every step, and remembers for which sequences."""

    def __init__(self, name: str, drafts: Sequence[int], *, certain: bool = False) -> None:
        self.name, self.certain, self._drafts = name, certain, list(drafts)
        self.asked: list[int] = []

    def is_ready(self, sequence: ActiveSequence) -> bool:
        return True

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        self.asked += [each.serial for each in sequences]
        counts = [worth(each, len(self._drafts)) for each in sequences]
        return [self._drafts[:count] for count in counts]


def sequence(serial: int, *, speculate: bool = True) -> ActiveSequence:
    asked = request(5, max_tokens=50, speculate=speculate)
    return ActiveSequence(
        asked,
        EventStream(f"r{serial}", lambda: None),
        serial=serial,
        state_bytes=0,
        tokenizer=None,
        constraint=None,
        stop_tokens=(),
        barred_tokens=(),
        repetition_tokens=256,
    )


def measured(selection: DraftSelection) -> DraftSelection:
    """With the steps that it compares with, so that drafts are made at once."""
    while selection.costs.baseline_due:
        selection.costs.record_step(0.01, 1, 1)
    return selection


def test_the_drafter_that_promises_most_is_chosen_and_judged_by_its_drafts() -> None:
    first, second = Recording("first", [7, 8]), Recording("second", [9])
    selection = measured(DraftSelection([first, second], 2))
    one = sequence(1)
    selection.propose([one])
    assert one.drafts == [7, 8]
    assert second.asked == []  # the same is expected of both, so the first is asked
    selection.verified(one, 2, 0)
    selection.propose([one])
    assert one.drafts == [9]
    selection.verified(one, 1, 1)
    other = sequence(2)
    selection.propose([one, other])  # a new sequence begins with what others have taught
    assert (one.drafts, other.drafts) == ([9], [9])


def test_a_drafter_that_cannot_draft_yet_is_no_rival() -> None:
    first, second = Recording("first", [7]), Recording("second", [9])
    second.is_ready = lambda sequence: False  # type: ignore[method-assign]
    selection = measured(DraftSelection([first, second], 4))
    one = sequence(1)
    selection.propose([one])
    selection.verified(one, 1, 0)
    selection.propose([one])
    assert one.drafts == [7]


def test_only_certain_drafts_are_made_while_a_baseline_is_due() -> None:
    unsure, certain = Recording("unsure", [7]), Recording("certain", [9], certain=True)
    selection = DraftSelection([unsure, certain], 4)
    one = sequence(1)
    selection.propose([one])
    assert one.drafts == [9] and unsure.asked == []


def test_nothing_is_drafted_for_those_that_do_not_want_it() -> None:
    drafter = Recording("any", [7], certain=True)
    silent, one = sequence(1, speculate=False), sequence(2)
    measured(DraftSelection([drafter], 4)).propose([silent, one])
    assert (silent.drafts, one.drafts, drafter.asked) == ([], [7], [2])
    DraftSelection([drafter], 0).propose([one])
    assert drafter.asked == [2]


def test_a_state_is_complete_only_if_all_drafters_have_read_along(network: Transformer) -> None:
    """Catches: a state resumed without drafting, and cached as if the block had read along."""
    model = as_network(network)
    selection = DraftSelection(drafters_for(model, CONFIG.vocab_size), 4)
    for speculate in (True, False):
        one = sequence(1, speculate=speculate)
        one.state = model.new_state(rewind_tokens=4)
        fed = model.predict(one.tokens, [4], [5], [one.state])
        selection.extend(one, fed.streams)
        assert selection.catch_up(one) == speculate
        selection.resume(one, fed.streams[-1:])
        assert selection.catch_up(one) == speculate
