"""Prefix reuse: what was found in a cache is what would have been computed, to the last bit.

The network is in float32, where another split into chunks would already show.
"""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.engine.engine import Engine
from sounding.engine.prefix.cache import PrefixCache, common_prefix
from sounding.engine.prefix.snapshot import put_together
from sounding.engine.requests import Event, Finished
from sounding.engine.settings import BLOCK_TOKENS, EngineSettings
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.state import growing_state
from sounding.model.transformer import Transformer
from tests.engine.running import CONFIG, Gate, collect, prompt, request
from tests.networks import NetworkMaker, as_network, make_network

NETWORK = ReferenceNetwork(make_network(CONFIG))


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(CONFIG, dtype=torch.float64)


def answer(engine: Engine, tokens: list[int]) -> tuple[list[Event], Finished]:
    asked = request(tokens, temperature=1.0, top_logprobs=3, max_tokens=3)
    *events, last = engine.submit(asked)
    assert isinstance(last, Finished)
    return events, last


BRANCHES = st.lists(
    st.tuples(st.integers(0, 400), st.one_of(st.integers(0, 150), st.just(128)), st.integers(0, 2)),
    min_size=2,
    max_size=5,
)


@settings(max_examples=5)
@given(branches=BRANCHES, limit=st.sampled_from([600_000, 10**8]))
def test_a_hit_is_as_good_as_a_miss_bit_for_bit(
    branches: list[tuple[int, int, int]], limit: int
) -> None:
    """Prompts that branch off from others anywhere, in any order, also back and again, where little
    is kept and where all is."""
    # Closed in the end: the thread must be still while the next example is drawn.
    warm = Engine(NETWORK, settings=EngineSettings(prefix_limit_bytes=limit))
    cold = Engine(NETWORK, settings=EngineSettings(prefix_limit_bytes=0))
    known = [prompt(300)]
    for at, more, seed in branches:
        base = known[at % len(known)]
        tokens = (base[:at] + prompt(more, seed)) or [5]
        known.append(tokens)
        (events, end), (expected, _) = answer(warm, tokens), answer(cold, tokens)
        assert events == expected
        assert end.usage.hit_tokens <= len(tokens)
        assert (end.usage.miss_reason == "") == (end.usage.hit_tokens >= len(tokens) - 1)
    warm.close()
    cold.close()


def test_an_agents_growing_history(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn sends all again: only what is new is read, and at most one block of the rest."""
    for exact in (False, True):
        gate = Gate(network, monkeypatch)
        gate.release()
        engine = Engine(
            as_network(network), settings=EngineSettings(exact_splits=exact), stop_tokens=()
        )
        tokens, known = prompt(400), 0
        for turn in range(4):
            gate.lengths.clear()
            reply, end = collect(engine.submit(request(tokens, max_tokens=9, speculate=False)))
            read = sum(map(sum, gate.lengths)) - 8
            assert read == len(tokens) - end.usage.hit_tokens
            if turn:
                assert read <= len(tokens) - known + BLOCK_TOKENS
                assert end.usage.miss_reason.startswith("new from token")
            # A state after an answer is only as good as one of a prompt where splits do not matter.
            known = len(tokens) + (len(reply) - 1 if exact else 0)
            tokens = [*tokens, *reply, *prompt(30 + 40 * turn)]
        engine.close()


def test_the_end_of_a_prompt_may_change(network: Transformer) -> None:
    """A thought that a client leaves out replaces the last token of the prompt before."""
    for exact in (False, True):
        for length in (384, 385, 420):
            engine = Engine(as_network(network), settings=EngineSettings(exact_splits=exact))
            tokens = prompt(length)
            collect(engine.submit(request(tokens, max_tokens=2)))
            changed = [*tokens[:-1], 3, *prompt(40)]
            _, end = collect(engine.submit(request(changed, max_tokens=2)))
            assert len(changed) - end.usage.hit_tokens <= 41 + BLOCK_TOKENS
            assert end.usage.miss_reason == f"differs from kept prompts from token {length - 1} on"
            engine.close()


def test_where_prompts_part_is_learned(network: Transformer) -> None:
    """The third that shares a beginning finds it, though no prompt ended there."""
    engine = Engine(as_network(network))
    shared, hits = prompt(450), []
    for seed in range(3):
        _, end = collect(engine.submit(request([*shared, *prompt(200, seed)], max_tokens=1)))
        hits.append((end.usage.hit_tokens, end.usage.miss_reason))
    engine.close()
    assert hits == [
        (0, "no kept prompt begins like this"),
        (0, "known up to token 450, but its state is kept only at 0"),
        (384, "differs from kept prompts from token 450 on"),
    ]


def test_prompts_in_flight_are_read_once(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(network, monkeypatch)
    engine = Engine(as_network(network), stop_tokens=())
    shared = prompt(300)
    asked = [request([*shared, *prompt(20, seed)], max_tokens=2) for seed in range(3)]
    asked += [request([*shared, *prompt(20, 2)], seed=5, temperature=1.0, max_tokens=2)]
    streams = [engine.submit(each) for each in asked]
    gate.release()
    ends = [collect(stream)[1] for stream in streams]
    engine.close()
    assert [end.usage.hit_tokens for end in ends] == [0, 256, 256, 320]
    assert sum(map(sum, gate.lengths)) == 320 + 64 + 64 + 4


def test_a_leader_that_is_cancelled_is_not_waited_for(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(network, monkeypatch)
    engine = Engine(as_network(network))
    first, second = (engine.submit(request(600, max_tokens=1)) for _ in range(2))
    gate.let(1)
    first.cancel()
    gate.release()
    assert collect(first)[1].reason == "cancelled"
    assert collect(second)[1].reason == "length"
    engine.close()


class Book:
    """A cache beside the plainest one: a list of every prompt that was kept."""

    def __init__(self, limit_bytes: int) -> None:
        self.cache = PrefixCache(limit_bytes)
        self.states: dict[tuple[int, ...], Any] = {}

    def run(self, tokens: list[int]) -> Any:
        """The state after tokens, always in chunks that end at blocks."""
        state = growing_state(CONFIG)
        for start in range(0, len(tokens), BLOCK_TOKENS):
            chunk = tokens[start : start + BLOCK_TOKENS]
            streams = NETWORK.predict(chunk, (), [len(chunk)], [state]).streams[-1:]
        return state, streams

    def keep(self, tokens: list[int]) -> None:
        key = tuple(tokens)
        if key not in self.states:
            self.states[key] = self.run(tokens)
        state, streams = self.states[key]
        self.cache.keep(tokens, state, streams)

    def check(self) -> None:
        blocks, ends = [*self.cache._roots.values()], list[Any]()
        for block in blocks:
            blocks += block.children.values()
            ends += block.ends.values()
            assert block.parent is None or block.children or block.ends
        assert set(ends) == self.cache._ends and len(ends) == len(self.cache)
        total = sum(block.nbytes for block in blocks) + sum(end.tail.nbytes for end in ends)
        assert self.cache.nbytes == total <= self.cache.limit_bytes


@settings(max_examples=4)
@given(seed=st.integers(0, 999), limit=st.sampled_from([60_000, 400_000, 10**8]))
def test_the_tree_is_what_a_list_of_states_would_be(seed: int, limit: int) -> None:
    choose, book = random.Random(seed), Book(limit)
    kept: list[list[int]] = [prompt(200)]
    for _ in range(12):
        base = choose.choice(kept)
        tokens = base[: choose.choice((128, 200, 256, 300))] + prompt(choose.choice((1, 60, 128)))
        book.keep(tokens)
        kept.append(tokens)
        book.check()
        found = book.cache.find(choose.choice(kept))
    if limit == 10**8:
        for tokens in kept[1:]:
            found = book.cache.find(tokens)
            assert found.length == len(tokens) == found.matched
    for tokens in kept[1:]:
        found = book.cache.find([*tokens, 3])
        if found.tail is None:
            continue
        state = growing_state(CONFIG)
        put_together(state, found.blocks, found.tail)
        expected, streams = book.states[tuple(tokens[: found.length])]
        assert state.serialize() == expected.serialize()
        assert np.array_equal(found.tail.streams, streams)
    book.cache.clear()
    book.check()
    assert book.cache.nbytes == 0


def test_what_saves_little_or_is_old_goes_first() -> None:
    book = Book(10**8)
    long, short = prompt(512), prompt(16)
    book.keep(long)
    book.keep(short)
    book.cache.limit_bytes = book.cache.nbytes - 1
    book.keep(prompt(16, 1))
    assert book.cache.has(long) and not book.cache.has(short)
    for seed in range(2, 45):  # each saves little, but the long one is never asked for
        book.keep(prompt(16, seed))
    assert not book.cache.has(long)
    book.check()


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_ends_at_the_first_difference(one: list[int], other: list[int]) -> None:
    expected = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    assert common_prefix(one, other) == expected


def test_a_request_for_no_tokens_fills_the_cache(network: Transformer) -> None:
    """A request for no tokens leaves its prompt in the cache."""
    engine = Engine(as_network(network))
    collect(engine.submit(request(200, max_tokens=0)))
    _, end = collect(engine.submit(request(200, max_tokens=2)))
    engine.close()
    assert (end.usage.hit_tokens, end.usage.miss_reason) == (200, "")
