"""Experts read from disk when a step needs them, beside the same network in memory.

Catches: a result that depends on what was in memory, on the order of arrival, on the budget, the
policy or the layout of the files; a slot that is written while it is read; a step that waits for a
slot that nobody gives back; a failed read that leaves a wrong byte, or a store that stays broken.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.native.expert_policy import ExpertPolicy, LeastRecentlyUsed, MostFrequentlyUsed
from sounding.native.expert_store import ExpertStore, StepCancelled, share_slots
from sounding.native.network import KernelNetwork, Streams
from sounding.native.state import KernelState
from sounding.ops import cpu
from sounding.simulation import DEPLOYED
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.expert_files import ExpertFiles, ExpertReadError, ReadCall
from sounding.weights.resident import StreamedTensors

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

VECTORS = Path(__file__).parents[1] / "vectors" / "tiny"
LENGTH = 150
TOKENS = np.random.default_rng(3).integers(512, size=LENGTH).tolist()
NAMES = [*(f"layers.{n}" for n in range(5)), "mtp.0"]


class Arbitrary:
    """A policy that keeps any experts."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def use(self, layer: int, experts: Sequence[int]) -> None:
        pass

    def keep(self, layer: int, experts: Collection[int], count: int) -> set[int]:
        count = min(int(self._generator.integers(count + 1)), len(experts))
        return set(self._generator.choice(sorted(experts), count, replace=False).tolist())


@cache
def in_memory() -> KernelNetwork:
    checkpoint = Checkpoint(VECTORS)
    return KernelNetwork(checkpoint.config, checkpoint.read_all(), DEPLOYED)


@cache
def whole() -> Streams:
    """The streams of all tokens, with everything in memory."""
    return run(in_memory(), TOKENS)


def run(network: KernelNetwork, tokens: Sequence[int], state: KernelState | None = None) -> Streams:
    state = state or network.new_state()
    return network.predict(tokens, (), [len(tokens)], [state]).streams


def streamed(
    *,
    slots: int = 8,
    quotas: Sequence[int] | None = None,
    policy: ExpertPolicy | None = None,
    read: ReadCall = os.preadv,
    readers: int = 2,
    stall_seconds: float = 30.0,
    folder: Path = VECTORS,
) -> KernelNetwork:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    files = ExpertFiles(checkpoint, NAMES, [config.n_routed_experts] * len(NAMES), read=read)
    store = ExpertStore(
        files,
        slots=slots,
        quotas=quotas,
        policy=policy,
        readers=readers,
        stall_seconds=stall_seconds,
    )
    resident = {name: checkpoint.read_raw(name) for name in checkpoint.names(routed_experts=False)}
    tensors = StreamedTensors(checkpoint, resident)
    return KernelNetwork(config, tensors, DEPLOYED, store=store)


@pytest.fixture
def make() -> Iterator[Callable[..., KernelNetwork]]:
    made: list[KernelNetwork] = []

    def build(**how: object) -> KernelNetwork:
        made.append(streamed(**how))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for network in made:
        assert network.store is not None
        network.store.close()


# --------------------------------------------------------------------------------------------------
# The same bits


def policies(seed: int) -> ExpertPolicy:
    return (LeastRecentlyUsed(), MostFrequentlyUsed(), Arbitrary(seed))[seed % 3]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20))
def test_any_budget_policy_split_company_and_draft_gives_the_bits_of_memory(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def draw(high: int) -> int:
        return int(generator.integers(high))

    def slow_read(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        time.sleep(0.002 * float(generator.random()))
        return os.preadv(file, buffers, offset)

    slots = 1 + draw((2, 12, 60)[draw(3)])
    network = streamed(
        slots=slots,
        policy=policies(seed),
        readers=1 + draw(4),
        read=slow_read if draw(2) else os.preadv,
    )
    assert network.store is not None
    try:
        states = [network.new_state(rewind_tokens=6) for _ in range(2)]
        while min(state.length for state in states) < LENGTH:
            lengths = [min(LENGTH - s.length, draw((3, 20, 80)[draw(3)])) for s in states]
            starts = [state.length for state in states]
            chunk = [t for s, n in zip(starts, lengths, strict=True) for t in TOKENS[s : s + n]]
            streams = network.predict(chunk, (), lengths, states).streams
            for start, own in zip(starts, np.split(streams, lengths[:1]), strict=True):
                assert np.array_equal(own, whole()[start : start + len(own)])
            other = states[draw(2)]
            if draw(2) and other.length > 3:
                state = other.fork()
                run(network, TOKENS[-4:], state)  # drafts, which are taken back
                state.rewind(other.length)
        following = [*TOKENS[1:9], 0]
        drafts, expected = (
            each.draft(whole()[:9], following, [9], [each.new_state()])
            for each in (network, in_memory())
        )
        assert np.array_equal(drafts, expected)
    finally:
        network.store.close()


def test_logits_are_those_of_memory(make: Callable[..., KernelNetwork]) -> None:
    network = make(slots=5)
    rows = list(range(0, LENGTH, 7))
    mine, expected = (
        each.predict(TOKENS, rows, [LENGTH], [each.new_state()]) for each in (network, in_memory())
    )
    assert np.array_equal(mine.logits, expected.logits)
    assert np.array_equal(mine.chosen, expected.chosen)
    assert network.fingerprint() == in_memory().fingerprint()
    assert network.nbytes == in_memory().nbytes
    assert network.parameter_sizes() == in_memory().parameter_sizes()
