"""Native inference beside the composition of references it replaces.

Catches: a weight read in the wrong order or under its neighbour's scale, a tail that is left out, a
row that leaks into another, a result that depends on company, split or threads, a list of rows that
goes wrong where memory is shared, full or rewound.

Every layer alone agrees with the reference to the rounding of bfloat16 wherever both make the same
choices; how rows are computed must not change one bit.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.model.attention import SPARSE
from sounding.model.chunk import make_chunk
from sounding.model.layers import DEPLOYED, EXACT, Simulation
from sounding.model.state import SequenceState, growing_state, packed_state
from sounding.model.transformer import Transformer, run_blocks
from sounding.ops import cpu
from sounding.ops.cpu.inference import network as native
from sounding.ops.dispatch import Backend, use_backend
from sounding.ops.matmul import Weight
from sounding.ops.quant import LINEAR_INPUT_BLOCK, quantize_fp4, quantize_fp8, simulate_fp8
from sounding.weights.build import load_model
from sounding.weights.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

VECTORS = Path(__file__).parent.parent.parent / "vectors" / "tiny"
LENGTH = 300
TOKENS = torch.randint(512, (LENGTH,), generator=torch.Generator().manual_seed(3))
SIMULATIONS = {"exact": EXACT, "deployed": DEPLOYED}

_networks: dict[Simulation, Transformer] = {}
_whole: dict[Simulation, Tensor] = {}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def network(simulation: Simulation) -> Transformer:
    if simulation not in _networks:
        checkpoint = Checkpoint(VECTORS)
        _networks[simulation] = load_model(checkpoint, dtype=torch.bfloat16, simulation=simulation)
    return _networks[simulation]


def whole(simulation: Simulation) -> Tensor:
    """The streams of all tokens, computed as one chunk."""
    if simulation not in _whole:
        _whole[simulation] = network(simulation)(TOKENS).streams
    return _whole[simulation]


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
    described = native.describe_weight(weight)
    assert described is not None
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    expected = x.double() @ dense.double().T
    largest = x.double().abs() @ dense.double().abs().T
    assert ((native.linear(x, described) - expected).abs() <= 1e-6 * inputs**0.5 * largest).all()


@pytest.mark.parametrize("kind", ["fp8", "fp4", "bf16"])
def test_a_row_of_a_product_has_the_same_bits_in_any_company(kind: str) -> None:
    weight, _ = weights(kind, 200, 512)
    described = native.describe_weight(weight)
    assert described is not None
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    full = native.linear(x, described)
    for low, high in ((0, 1), (5, 7), (30, 63), (99, 100), (17, 34)):
        assert torch.equal(native.linear(x[low:high], described), full[low:high])


def test_inputs_are_rounded_as_the_reference_rounds_them() -> None:
    weight, dense = weights("fp8", 50, 300)
    described = native.describe_weight(weight, simulate=True)
    assert described is not None
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(2)) * 10.0 ** torch.arange(
        -12, 8
    ).view(20, 1)
    x = x.bfloat16()
    expected = simulate_fp8(x, LINEAR_INPUT_BLOCK).double() @ dense.double().T
    torch.testing.assert_close(native.linear(x, described).double(), expected, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    weight, dense = weights("fp8", 70, 128)
    described = native.describe_weight(weight)
    assert described is not None
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(3)).bfloat16()
    clean = native.linear(x, described)
    x[7, 3] = bad
    dirty = native.linear(x, described)
    expected = x[7].float() @ dense.T
    others = torch.arange(20) != 7
    assert torch.equal(dirty[others], clean[others])
    assert torch.equal(dirty[7].isfinite(), expected.isfinite())


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_a_code_that_is_no_number_makes_its_row_of_weights_none(tokens: int) -> None:
    weight, _ = weights("fp8", 70, 256)
    weight.values.view(torch.uint8)[9, 200] = 127
    weight.values.view(torch.uint8)[66, 3] = 255
    described = native.describe_weight(weight)
    assert described is not None
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(4)).bfloat16()
    dense = weight.dense(torch.bfloat16).float()
    torch.testing.assert_close(
        native.linear(x, described), x.float() @ dense.T, rtol=1e-4, atol=1e-3, equal_nan=True
    )
    assert native.linear(x, described).isnan().any(0).nonzero().flatten().tolist() == [9, 66]


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("kind", ["fp8", "fp4"])
@pytest.mark.parametrize("scale", [10, 100, 134, 135, 150, 240])
def test_any_scale_within_reach_is_the_reference(scale: int, kind: str, tokens: int) -> None:
    weight, _ = weights(kind, 136, 256)
    assert weight.scale is not None
    weight.scale.view(torch.uint8)[-1, 1] = scale
    described = native.describe_weight(weight)
    assert described is not None
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(5)).bfloat16()
    dense = weight.dense(torch.bfloat16).double()
    largest = x.double().abs() @ dense.abs().T
    error = (native.linear(x, described) - x.double() @ dense.T).abs()
    assert (error <= 2e-5 * largest).all()


def test_scales_out_of_reach_are_left_to_the_reference() -> None:
    weight, _ = weights("fp4", 32, 64)
    assert weight.scale is not None
    weight.scale.view(torch.uint8)[3, 1] = 255
    assert native.describe_weight(weight) is None


# --------------------------------------------------------------------------------------------------
# Layers


@pytest.mark.parametrize("name", SIMULATIONS)
def test_each_layer_is_the_reference(name: str) -> None:
    """Where both choose the same, and that is nearly everywhere; rounding of activations turns
    some of them to a neighbour."""
    model = network(SIMULATIONS[name])
    typical, worst = (0.006, 0.02) if name == "exact" else (0.06, 0.15)
    streams = model.embed(TOKENS, torch.bfloat16)[:, None].expand(-1, model.config.hc_mult, -1)
    for index, block in enumerate(model.blocks):
        results = []
        backends: tuple[Backend, ...] = ("auto", "reference")
        for backend in backends:
            state = growing_state(model.config)
            chunk = make_chunk(TOKENS, [LENGTH], [0])
            with use_backend(backend):
                results.append(run_blocks(streams, [block], chunk, [[state.layers[index]]], SPARSE))
        (mine, [my_report]), (reference, [report]) = results
        my_routing, routing = my_report.routing, report.routing
        error = (mine.float() - reference.float()).flatten(1).norm(dim=1)
        error /= reference.float().flatten(1).norm(dim=1)
        same = (my_routing.chosen == routing.chosen).all(1)
        assert same.float().mean() > 0.97
        assert error[same].median() < typical
        assert error[same].quantile(0.95) < worst
        torch.testing.assert_close(
            my_routing.scores[same], routing.scores[same], atol=0.1, rtol=0.1
        )
        streams = reference


def test_hidden_and_logits_are_the_reference() -> None:
    model = network(EXACT)
    streams = whole(EXACT)[-50:]
    mine = model.logits(model.hidden(streams))
    with use_backend("reference"):
        expected = model.logits(model.hidden(streams))
    assert mine.dtype == torch.float32
    assert (mine - expected).abs().max() <= 0.02 * expected.abs().max()
    assert torch.equal(model.logits(model.hidden(streams[3:5])), mine[3:5])


# --------------------------------------------------------------------------------------------------
# The same bits, however rows are computed


def new_state(simulation: Simulation, packed: bool) -> SequenceState:
    config = network(simulation).config
    if packed:
        return packed_state(config, max_tokens=LENGTH, rewind_tokens=6)
    return growing_state(config, rewind_tokens=6)


@pytest.mark.parametrize("storage", ["exact-growing", "deployed-growing", "deployed-packed"])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**20))
def test_any_split_and_company(storage: str, seed: int) -> None:
    """Two sequences in random pieces of one chunk, with forks, rewinds and restored states."""
    simulation = SIMULATIONS[storage.partition("-")[0]]
    model, expected = network(simulation), whole(simulation)
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    states = [new_state(simulation, storage.endswith("packed")) for _ in range(2)]
    seen = [0, 0]
    while min(state.length for state in states) < LENGTH:
        lengths = [min(LENGTH - state.length, draw((3, 20, 150)[draw(3)])) for state in states]
        starts = [state.length for state in states]
        chunk = torch.cat(
            [TOKENS[start : start + n] for start, n in zip(starts, lengths, strict=True)]
        )
        torch.set_num_threads(1 + draw(2))
        try:
            streams = model(chunk, lengths, states).streams
        finally:
            torch.set_num_threads(1)
        for start, own in zip(starts, streams.split(lengths), strict=True):
            assert torch.equal(own, expected[start : start + len(own)])
        seen = [max(pair) for pair in zip(seen, (s.length for s in states), strict=True)]
        other = draw(2)
        fate = draw(4)
        if fate == 0:
            twin = states[other].fork()
            model(TOKENS[:3], [3], [states[other]])  # goes its own way
            states[other] = twin
        elif fate == 1:
            states[other].rewind(max(0, seen[other] - 6, states[other].length - draw(7)))
        elif fate == 2:
            fresh = new_state(simulation, storage.endswith("packed"))
            fresh.restore(states[other].serialize())
            states[other] = fresh


def test_a_fork_and_its_origin_go_on_apart() -> None:
    """Whoever appends second finds the shared memory taken and must not write into it."""
    model = network(EXACT)
    state = growing_state(model.config)
    model(TOKENS[:200], states=[state])
    twin = state.fork()
    mine = model(TOKENS[200:], states=[state]).streams
    model(TOKENS[:50], states=[twin])
    again = growing_state(model.config)
    model(torch.cat((TOKENS[:200], TOKENS[:50])), states=[again])
    assert torch.equal(mine, whole(EXACT)[200:])
    for (name, rows), (_, others) in zip(again._named_rows(), twin._named_rows(), strict=True):
        assert torch.equal(rows.read(), others.read()), name


def test_the_reference_goes_on_where_native_code_stopped() -> None:
    model = network(EXACT)
    state = growing_state(model.config)
    model(TOKENS[:200], states=[state])
    with use_backend("reference"):
        model(TOKENS[200:210], states=[state])
    assert state.length == 210
    assert model(TOKENS[210:], states=[state]).streams.isfinite().all()


def test_drafts_run_natively_too() -> None:
    model = network(EXACT)
    state, other = growing_state(model.config), growing_state(model.config)
    following = TOKENS.roll(-1)
    mine = model.draft(whole(EXACT), following, states=[state]).streams
    pieces = [
        model.draft(part, tokens, states=[other]).streams
        for part, tokens in zip(whole(EXACT).split(77), following.split(77), strict=True)
    ]
    assert torch.equal(mine, torch.cat(pieces))
    with use_backend("reference"):
        expected = model.draft(whole(EXACT), following).streams
    error = (mine.float() - expected.float()).norm() / expected.float().norm()
    assert error < 0.05


def test_one_call_from_tokens_to_logits_is_its_parts() -> None:
    model = network(DEPLOYED)
    rows, lengths = [0, 4, 6, 39], [7, 33]
    states, others = ([growing_state(model.config) for _ in lengths] for _ in range(2))
    for low in (0, 40):  # the lists of the states have to grow for the first
        tokens = TOKENS[low : low + 40]
        streams, routing, logits = model.predict(tokens, rows, lengths, states)
        output = model(tokens, lengths, others)
        assert torch.equal(streams, output.streams)
        assert torch.equal(logits, model.logits(model.hidden(output.streams[rows])))
        assert all(
            torch.equal(mine.chosen, theirs.chosen)
            for mine, theirs in zip(routing, output.routing, strict=True)
        )
    assert [state.length for state in states] == [14, 66]
    assert model.predict(TOKENS[:3], [], [3], states[:1]).logits.shape == (0, 512)


@pytest.mark.parametrize(("tokens", "rows"), [([512], [0]), ([-1], [0]), ([3], [1])])
def test_tokens_and_rows_that_are_none_are_refused(tokens: list[int], rows: list[int]) -> None:
    with pytest.raises(IndexError):
        network(EXACT).predict(torch.tensor(tokens), rows)


def test_long_chunks_go_in_pieces() -> None:
    model = network(EXACT)
    tokens = torch.randint(512, (1100,), generator=torch.Generator().manual_seed(5))
    output = model(tokens)
    state = growing_state(model.config)
    model(tokens[:500], states=[state])
    assert torch.equal(model(tokens[500:], states=[state]).streams, output.streams[500:])
    assert output.routing[0].chosen.shape == (1100, model.config.num_experts_per_tok)
    state = growing_state(model.config)
    logits = model.predict(tokens, [1099], states=[state]).logits
    assert torch.equal(logits, model.logits(model.hidden(output.streams[-1:])))
