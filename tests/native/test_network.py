"""The network on the C++ kernels beside the PyTorch reference.

Catches: a weight read in the wrong order or under its neighbour's scale, a tail that is left out, a
row that leaks into another, a result that depends on company, split or threads, a list of rows that
goes wrong where memory is shared, full or rewound.

Every layer alone agrees with the reference to the rounding of bfloat16 wherever both make the same
choices; how rows are computed must not change one bit.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.model.chunk import make_chunk
from sounding.model.from_checkpoint import load_model
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.state import growing_state as reference_state
from sounding.model.transformer import Transformer
from sounding.native.describe import NotServed, describe_weight, pointers
from sounding.native.kernels import multiply, num_threads, set_num_threads
from sounding.native.network import KernelNetwork, Prediction, Streams
from sounding.native.state import KernelState
from sounding.native.structs import NativeWeight
from sounding.ops import cpu
from sounding.ops.matmul import Weight
from sounding.ops.quant import LINEAR_INPUT_BLOCK, quantize_fp4, quantize_fp8, simulate_fp8
from sounding.simulation import DEPLOYED, EXACT, Simulation
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.tensors import from_torch

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

VECTORS = Path(__file__).parents[1] / "vectors" / "tiny"
LENGTH = 300
TOKENS = np.random.default_rng(3).integers(512, size=LENGTH).tolist()
SIMULATIONS = {"exact": EXACT, "deployed": DEPLOYED}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@cache
def network(simulation: Simulation) -> KernelNetwork:
    checkpoint = Checkpoint(VECTORS)
    return KernelNetwork(checkpoint.config, checkpoint.read_all(), simulation)


@cache
def reference(simulation: Simulation) -> Transformer:
    return load_model(Checkpoint(VECTORS), dtype=torch.bfloat16, simulation=simulation)


@cache
def whole(simulation: Simulation) -> Streams:
    """The streams of all tokens, computed as one chunk."""
    return run(simulation, TOKENS, network(simulation).new_state())


def run(simulation: Simulation, tokens: Sequence[int], state: KernelState) -> Streams:
    """Append tokens to one sequence; their streams."""
    return network(simulation).predict(tokens, (), [len(tokens)], [state]).streams


def numbers(streams: Streams) -> Tensor:
    """Streams as numbers."""
    return torch.from_numpy(streams).view(torch.bfloat16).float()


# --------------------------------------------------------------------------------------------------
# Products


def weights(kind: str, outputs: int, inputs: int) -> tuple[Weight, Tensor]:
    """A weight as stored, and the numbers it stands for."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    wide = torch.randn(outputs, inputs, generator=generator)
    wide *= 2.0 ** torch.randint(-6, 7, (outputs, 1), generator=generator)
    if kind == "fp8":
        weight = Weight(*quantize_fp8(wide))
    elif kind == "fp4":
        weight = Weight(*quantize_fp4(wide))
    else:
        weight = Weight(wide.to(torch.bfloat16 if kind == "bf16" else torch.float32))
    return weight, weight.dense(torch.bfloat16).float()


def describe(weight: Weight, *, simulate: bool = False) -> NativeWeight:
    scale = None if weight.scale is None else from_torch(weight.scale)
    return describe_weight("w", from_torch(weight.values), scale, simulate=simulate)


def product(x: Tensor, weight: NativeWeight) -> Tensor:
    return torch.from_numpy(multiply(x.contiguous().view(torch.uint16).numpy(), weight))


@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 40, 65])
@pytest.mark.parametrize(
    ("kind", "outputs", "inputs"),
    [
        ("fp8", 1, 1), ("fp8", 64, 128), ("fp8", 130, 200), ("fp8", 257, 384), ("fp8", 20, 33),
        ("fp4", 64, 64), ("fp4", 7, 32), ("fp4", 100, 224), ("fp4", 33, 512),
        ("bf16", 64, 96), ("bf16", 130, 70), ("bf16", 3, 1000), ("f32", 70, 45),
    ],
)  # fmt: skip
def test_a_product_is_the_reference(kind: str, outputs: int, inputs: int, tokens: int) -> None:
    weight, dense = weights(kind, outputs, inputs)
    described = describe(weight)
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    expected = x.double() @ dense.double().T
    largest = x.double().abs() @ dense.double().abs().T
    assert ((product(x, described) - expected).abs() <= 1e-6 * inputs**0.5 * largest).all()


@pytest.mark.parametrize("kind", ["fp8", "fp4", "bf16"])
def test_a_row_of_a_product_has_the_same_bits_in_any_company(kind: str) -> None:
    weight, _ = weights(kind, 200, 512)
    described = describe(weight)
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    full = product(x, described)
    for low, high in ((0, 1), (5, 7), (30, 63), (99, 100), (17, 34)):
        assert torch.equal(product(x[low:high], described), full[low:high])


def test_inputs_are_rounded_as_the_reference_rounds_them() -> None:
    weight, dense = weights("fp8", 50, 300)
    described = describe(weight, simulate=True)
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(2)) * 10.0 ** torch.arange(
        -12, 8
    ).view(20, 1)
    x = x.bfloat16()
    expected = simulate_fp8(x, LINEAR_INPUT_BLOCK).double() @ dense.double().T
    torch.testing.assert_close(product(x, described).double(), expected, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    weight, dense = weights("fp8", 70, 128)
    described = describe(weight)
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(3)).bfloat16()
    clean = product(x, described)
    x[7, 3] = bad
    dirty = product(x, described)
    expected = x[7].float() @ dense.T
    others = torch.arange(20) != 7
    assert torch.equal(dirty[others], clean[others])
    assert torch.equal(dirty[7].isfinite(), expected.isfinite())


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_a_code_that_is_no_number_makes_its_row_of_weights_none(tokens: int) -> None:
    weight, _ = weights("fp8", 70, 256)
    weight.values.view(torch.uint8)[9, 200] = 127
    weight.values.view(torch.uint8)[66, 3] = 255
    described = describe(weight)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(4)).bfloat16()
    dense = weight.dense(torch.bfloat16).float()
    torch.testing.assert_close(
        product(x, described), x.float() @ dense.T, rtol=1e-4, atol=1e-3, equal_nan=True
    )
    assert product(x, described).isnan().any(0).nonzero().flatten().tolist() == [9, 66]


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("kind", ["fp8", "fp4"])
@pytest.mark.parametrize("scale", [10, 100, 134, 135, 150, 240])
def test_any_scale_within_reach_is_the_reference(scale: int, kind: str, tokens: int) -> None:
    weight, _ = weights(kind, 136, 256)
    assert weight.scale is not None
    weight.scale.view(torch.uint8)[-1, 1] = scale
    described = describe(weight)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(5)).bfloat16()
    dense = weight.dense(torch.bfloat16).double()
    largest = x.double().abs() @ dense.abs().T
    error = (product(x, described) - x.double() @ dense.T).abs()
    assert (error <= 2e-5 * largest).all()


def test_scales_out_of_reach_are_left_to_the_reference() -> None:
    weight, _ = weights("fp4", 32, 64)
    assert weight.scale is not None
    weight.scale.view(torch.uint8)[3, 1] = 255
    with pytest.raises(NotServed, match="the scales of w are F8_E8M0 from code"):
        describe(weight)


# --------------------------------------------------------------------------------------------------
# Layers


def run_layer(simulation: Simulation, index: int, streams: Streams) -> Prediction:
    """One layer of the network alone, over all tokens at once."""
    model, count = network(simulation), len(streams)
    config = model.config
    made = Prediction(
        streams.copy(),
        np.empty((1, count, config.num_experts_per_tok), dtype=np.int64),
        np.empty((1, count, config.n_routed_experts), dtype=np.float32),
        np.empty((0, config.vocab_size), dtype=np.float32),
    )
    layer = pointers([model._description.layers[index]])
    tokens = np.array(TOKENS, dtype=np.int64)
    state = model.new_state().layers[index]
    model._run(layer, None, tokens, (), [count], [[state]], made)
    return made


@pytest.mark.parametrize("name", SIMULATIONS)
def test_each_layer_is_the_reference(name: str) -> None:
    """Where both choose the same, and that is nearly everywhere; rounding of activations turns
    some of them to a neighbour."""
    simulation = SIMULATIONS[name]
    model = reference(simulation)
    typical, worst = (0.006, 0.02) if name == "exact" else (0.06, 0.15)
    chunk = make_chunk(torch.tensor(TOKENS), [LENGTH], [0])
    streams = model.embed(chunk.tokens, torch.bfloat16)[:, None].expand(
        -1, model.config.hc_mult, -1
    )
    streams = streams.contiguous()
    for index, block in enumerate(model.blocks):
        mine = run_layer(simulation, index, streams.view(torch.uint16).numpy())
        state = reference_state(model.config).layers[index]
        expected, report = block(streams, chunk, [state])
        error = (numbers(mine.streams) - expected.float()).flatten(1).norm(dim=1)
        error /= expected.float().flatten(1).norm(dim=1)
        same = (torch.from_numpy(mine.chosen[0]) == report.routing.chosen).all(1)
        assert same.float().mean() > 0.97
        assert error[same].median() < typical
        assert error[same].quantile(0.95) < worst
        scores = torch.from_numpy(mine.scores[0])[same]
        torch.testing.assert_close(scores, report.routing.scores[same], atol=0.1, rtol=0.1)
        streams = expected


def test_logits_are_the_reference() -> None:
    streams = whole(EXACT)[-50:]
    mine = network(EXACT).logits(streams)
    expected = ReferenceNetwork(reference(EXACT)).logits(streams)
    assert mine.dtype == np.float32
    assert np.abs(mine - expected).max() <= 0.02 * np.abs(expected).max()
    assert np.array_equal(network(EXACT).logits(streams[3:5]), mine[3:5])


# --------------------------------------------------------------------------------------------------
# The same bits, however rows are computed


def new_state(simulation: Simulation, packed: bool) -> KernelState:
    return network(simulation).new_state(rewind_tokens=6, packed_tokens=LENGTH if packed else None)


@pytest.mark.parametrize("storage", ["exact-growing", "deployed-growing", "deployed-packed"])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**20))
def test_any_split_and_company(storage: str, seed: int) -> None:
    """Two sequences in random pieces of one chunk, with forks, rewinds and restored states."""
    simulation = SIMULATIONS[storage.partition("-")[0]]
    packed = storage.endswith("packed")
    model, expected = network(simulation), whole(simulation)
    generator = np.random.default_rng(seed)
    threads = num_threads()

    def draw(high: int) -> int:
        return int(generator.integers(high))

    states = [new_state(simulation, packed) for _ in range(2)]
    seen = [0, 0]
    while min(state.length for state in states) < LENGTH:
        lengths = [min(LENGTH - state.length, draw((3, 20, 150)[draw(3)])) for state in states]
        starts = [state.length for state in states]
        chunk = [
            token
            for start, n in zip(starts, lengths, strict=True)
            for token in TOKENS[start : start + n]
        ]
        set_num_threads(1 + draw(2))
        try:
            streams = model.predict(chunk, (), lengths, states).streams
        finally:
            set_num_threads(threads)
        for start, own in zip(starts, np.split(streams, lengths[:1]), strict=True):
            assert np.array_equal(own, expected[start : start + len(own)])
        seen = [max(pair) for pair in zip(seen, (s.length for s in states), strict=True)]
        other = draw(2)
        fate = draw(4)
        if fate == 0:
            twin = states[other].fork()
            run(simulation, TOKENS[:3], states[other])  # goes its own way
            states[other] = twin
        elif fate == 1:
            states[other].rewind(max(0, seen[other] - 6, states[other].length - draw(7)))
        elif fate == 2:
            fresh = new_state(simulation, packed)
            fresh.restore(states[other].serialize())
            states[other] = fresh


def test_a_fork_and_its_origin_go_on_apart() -> None:
    """Whichever appends second finds the shared memory taken and must not write into it."""
    state = network(EXACT).new_state()
    run(EXACT, TOKENS[:200], state)
    twin = state.fork()
    mine = run(EXACT, TOKENS[200:], state)
    run(EXACT, TOKENS[:50], twin)
    again = network(EXACT).new_state()
    run(EXACT, [*TOKENS[:200], *TOKENS[:50]], again)
    assert np.array_equal(mine, whole(EXACT)[200:])
    for (name, rows), (_, others) in zip(again._named_rows(), twin._named_rows(), strict=True):
        assert np.array_equal(rows.read(), others.read()), name


def test_a_full_packed_state_refuses_more_tokens_and_stays_as_it_was() -> None:
    state = network(DEPLOYED).new_state(packed_tokens=64)
    run(DEPLOYED, TOKENS[:64], state)
    with pytest.raises(ValueError, match="make it with a larger `max_tokens`"):
        run(DEPLOYED, TOKENS[64:200], state)
    assert state.length == 64


def test_drafts_are_the_reference_and_exact_in_pieces() -> None:
    model = network(EXACT)
    state, other = model.new_state(), model.new_state()
    following = [*TOKENS[1:], TOKENS[0]]
    mine = model.draft(whole(EXACT), following, [LENGTH], [state])
    pieces = [
        model.draft(whole(EXACT)[low : low + 77], following[low : low + 77], [size], [other])
        for low in range(0, LENGTH, 77)
        for size in [len(following[low : low + 77])]
    ]
    assert np.array_equal(mine, np.concatenate(pieces))
    peer = ReferenceNetwork(reference(EXACT))
    expected = numbers(peer.draft(whole(EXACT), following, [LENGTH], [peer.new_state()]))
    assert (numbers(mine) - expected).norm() / expected.norm() < 0.05
    logits, theirs = model.draft_logits(mine), peer.draft_logits(mine)
    assert np.abs(logits - theirs).max() <= 0.02 * np.abs(theirs).max()


def test_one_call_from_tokens_to_logits_is_its_parts() -> None:
    model = network(DEPLOYED)
    rows, lengths = [0, 4, 6, 39], [7, 33]
    states, others = ([model.new_state() for _ in lengths] for _ in range(2))
    for low in (0, 40):  # the lists of the states have to grow for the first
        tokens = TOKENS[low : low + 40]
        made = model.predict(tokens, rows, lengths, states)
        apart = model.predict(tokens, (), lengths, others)
        assert np.array_equal(made.streams, apart.streams)
        assert np.array_equal(made.logits, model.logits(apart.streams[rows]))
        assert np.array_equal(made.chosen, apart.chosen)
    assert [state.length for state in states] == [14, 66]
    assert model.predict(TOKENS[:3], [], [3], states[:1]).logits.shape == (0, 512)


@pytest.mark.parametrize(("tokens", "rows"), [([512], [0]), ([-1], [0]), ([3], [1]), ([3], [-1])])
def test_tokens_and_rows_that_are_none_are_refused(tokens: list[int], rows: list[int]) -> None:
    state = network(EXACT).new_state()
    with pytest.raises(ValueError, match=r"token id|row"):
        network(EXACT).predict(tokens, rows, [1], [state])
    assert state.length == 0


def test_long_chunks_go_in_pieces() -> None:
    model = network(EXACT)
    tokens = np.random.default_rng(5).integers(512, size=1100).tolist()
    output = model.predict(tokens, (), [1100], [model.new_state()])
    state = model.new_state()
    run(EXACT, tokens[:500], state)
    assert np.array_equal(run(EXACT, tokens[500:], state), output.streams[500:])
    assert output.chosen[0].shape == (1100, model.config.num_experts_per_tok)
    pieces = model.predict(tokens, [5, 1099], [1100], [model.new_state()])
    assert np.array_equal(pieces.logits, model.logits(output.streams[[5, 1099]]))
    two = [model.new_state() for _ in range(2)]
    both = model.predict([*tokens, *TOKENS], [1099, 1399], [1100, LENGTH], two)
    assert np.array_equal(both.streams[:1100], output.streams)
    assert np.array_equal(both.streams[1100:], whole(EXACT))
    assert np.array_equal(both.logits[0], pieces.logits[1])
