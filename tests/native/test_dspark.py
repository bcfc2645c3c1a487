"""The DSpark drafter on the C++ kernels beside the reference.

Catches: a causal mask in a block, a window that moves on within it or lacks its first token, taps
of other layers or in another order, drafted keys that stay in the state, experts of the network.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sounding.engine.drafting.acceptance import BlockAcceptance, Plan
from sounding.engine.drafting.cost_model import Prices
from sounding.engine.engine import Engine
from sounding.engine.settings import EngineSettings
from sounding.model.reference_network import DraftBlock, ReferenceNetwork
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.simulation import DEPLOYED, EXACT, Simulation
from tests.engine.running import collect, request
from tests.networks import DSPARK, NetworkMaker, kernel_network

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

LENGTHS = (1, 15, 16, 17, 40)  # around a window of 16
ANCHORS = [3, 8, 1, 60, 9]


@pytest.fixture(params=[EXACT, DEPLOYED], ids=["exact", "deployed"])
def pair(
    network_maker: NetworkMaker, request: pytest.FixtureRequest
) -> tuple[KernelNetwork, ReferenceNetwork]:
    simulation: Simulation = request.param
    model = network_maker(DSPARK, dtype=torch.bfloat16, simulation=simulation)
    return kernel_network(model), ReferenceNetwork(model)


def numbers(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def distance(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))


def distances(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of every row."""
    made: NDArray[np.float32] = np.linalg.norm(mine - theirs, axis=-1)
    return made / np.linalg.norm(theirs, axis=-1)


def of_reference(network: ReferenceNetwork, streams: NDArray[np.uint16]) -> DraftBlock:
    drafter = network.block_drafter
    assert drafter is not None
    states = [network.new_state() for _ in LENGTHS]
    drafter.read(streams, LENGTHS, states)
    return drafter.draft(ANCHORS, states)


def chunk() -> list[int]:
    return np.random.default_rng(2).integers(64, size=sum(LENGTHS)).tolist()


def test_taps_are_means_of_the_streams(network_maker: NetworkMaker) -> None:
    assert DSPARK.dspark is not None
    last_first = dataclasses.replace(DSPARK.dspark, target_layer_ids=(3, 0))
    config = dataclasses.replace(DSPARK, dspark=last_first)
    model = network_maker(config, dtype=torch.bfloat16)
    kernel, reference = kernel_network(model), ReferenceNetwork(model)
    made = kernel.predict(chunk(), [], LENGTHS, [kernel.new_state() for _ in LENGTHS])
    theirs = reference.predict(chunk(), [], LENGTHS, [reference.new_state() for _ in LENGTHS])
    assert made.streams.shape == theirs.streams.shape == (sum(LENGTHS), 6, 64)
    rows, expected = numbers(made.streams), numbers(theirs.streams)
    assert distance(rows[:, 4], rows[:, :4].mean(1)) < 0.003  # behind the last layer
    assert distance(rows[:, 5], expected[:, 5]) < 0.03  # behind the first
    long = kernel.predict([5] * 1100, [1099], [1100], [kernel.new_state()])  # in pieces
    assert np.array_equal(kernel.logits(long.streams[-1:]), long.logits)
    state = kernel.new_state()
    parts = [kernel.predict([5] * n, [], [n], [state]).streams for n in (600, 500)]
    assert np.array_equal(np.concatenate(parts), long.streams)


def test_blocks_are_those_of_the_reference(pair: tuple[KernelNetwork, ReferenceNetwork]) -> None:
    """Both read the same taps, so that nothing but the drafter differs; and by no more than the
    reference itself where taps change by a unit in the last place, which turns some choices."""
    kernel, reference = pair
    mine, theirs = kernel.block_drafter, reference.block_drafter
    assert mine is not None and theirs is not None
    streams = kernel.predict(chunk(), [], LENGTHS, [kernel.new_state() for _ in LENGTHS]).streams
    moved = streams ^ np.random.default_rng(0).integers(2, size=streams.shape, dtype=np.uint16)
    states = [kernel.new_state() for _ in LENGTHS]
    mine.read(streams, LENGTHS, states)
    made = mine.draft(ANCHORS, states)
    expected, changed = (of_reference(reference, taps) for taps in (streams, moved))
    assert made.logits.shape == (5, 4, 64)
    for found, right, near in (
        (numbers(made.hidden), numbers(expected.hidden), numbers(changed.hidden)),
        (made.logits, expected.logits, changed.logits),
    ):
        assert np.median(distances(found, right)) < 1.5 * np.median(distances(near, right))
    correction = mine.correct(expected.hidden[:, 2], ANCHORS)
    theirs_too = theirs.correct(expected.hidden[:, 2], ANCHORS)
    assert np.allclose(correction.bias, theirs_too.bias, rtol=1e-5, atol=1e-5)
    assert np.allclose(correction.confidence, theirs_too.confidence, rtol=1e-5, atol=1e-5)


def test_pieces_and_company_change_no_bit_and_blocks_leave_no_trace(
    pair: tuple[KernelNetwork, ReferenceNetwork],
) -> None:
    kernel, _ = pair
    drafter = kernel.block_drafter
    assert drafter is not None
    streams = kernel.predict(chunk(), [], LENGTHS, [kernel.new_state() for _ in LENGTHS]).streams
    states = [kernel.new_state(rewind_tokens=4) for _ in LENGTHS]
    drafter.read(streams, LENGTHS, states)
    before = [kept(each.blocks[stage].window.read()) for each in states for stage in range(3)]
    together = drafter.draft(ANCHORS, states)
    after = [kept(each.blocks[stage].window.read()) for each in states for stage in range(3)]
    assert before == after
    first = 0
    for i, length in enumerate(LENGTHS):
        alone = kernel.new_state()
        for low in range(first, first + length, 7):
            high = min(low + 7, first + length)
            drafter.read(streams[low:high], [high - low], [alone])
        found = drafter.draft(ANCHORS[i : i + 1], [alone])
        assert np.array_equal(found.hidden[0], together.hidden[i])
        assert np.array_equal(found.logits[0], together.logits[i])
        first += length


def kept(rows: NDArray[np.uint16]) -> bytes:
    return rows.tobytes()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_engine_gives_the_same_tokens(
    pair: tuple[KernelNetwork, ReferenceNetwork],
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
) -> None:
    kernel, _ = pair
    monkeypatch.setattr(BlockAcceptance, "plan", lambda self, most, prices: Plan(most, 9.0))
    monkeypatch.setattr("sounding.engine.drafting.selection.best_prefix", whole_block)
    asked = [request(n, temperature=temperature, seed=2, max_tokens=40) for n in (5, 30, 47)]
    answers = []
    for settings in (EngineSettings(draft_tokens=0), EngineSettings(exact_splits=True)):
        engine = Engine(kernel, settings=settings, stop_tokens=())
        streams = [engine.submit(each) for each in asked]
        answers.append([collect(stream) for stream in streams])
        engine.close()
    plain, drafted = answers
    assert [tokens for tokens, _ in plain] == [tokens for tokens, _ in drafted]
    assert sum(end.usage.drafted_tokens for _, end in drafted) > 100


def whole_block(survival: Sequence[float], prices: Prices) -> int:
    return len(survival)


def test_tokens_outside_the_vocabulary_are_refused(
    pair: tuple[KernelNetwork, ReferenceNetwork],
) -> None:
    drafter = pair[0].block_drafter
    assert drafter is not None
    state = pair[0].new_state()
    with pytest.raises(ValueError, match="64"):
        drafter.draft([64], [state])
    with pytest.raises(ValueError, match="-1"):
        drafter.correct(np.zeros((1, 64), dtype=np.uint16), [-1])
