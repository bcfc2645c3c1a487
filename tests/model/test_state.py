"""What a sequence remembers: lists of rows, their packed formats, and the state made of them.

Catches: a ring that loses or repeats a row when it wraps, a rewind into what is gone, forks that
share what they must not, bytes in another order than deployed, saved state taken over by a model
it does not belong to.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.config import ModelConfig
from sounding.model.compressor import simulate_index, simulate_kv
from sounding.model.rows import (
    GrowingRows,
    PackedRows,
    TensorRows,
    float_codec,
    index_codec,
    kv_codec,
)
from sounding.model.state import TensorState, growing_state, packed_state
from sounding.model.transformer import Transformer
from sounding.presets import flash, nano, pro, tiny
from sounding.simulation import Simulation
from sounding.state.rows import Retention
from tests.networks import make_network
from tests.oracles import quant as oracle
from tests.oracles.compare import array

# --------------------------------------------------------------------------------------------------
# Rows against a plain list

CAPACITY = 12  # of a packed list that keeps everything


class Model:
    """A list that remembers everything, and since when its rows would have been dropped."""

    def __init__(self, retention: Retention) -> None:
        self.rows: list[float] = []
        self.retention = retention
        self.lost = 0  # rows before this one are gone

    def append(self, rows: list[float]) -> list[float]:
        visible = self.rows[self.lost :] + rows
        self.rows = self.rows + rows
        if self.retention.kept is not None:
            self.lost = max(self.lost, len(self.rows) - self.retention.kept)
        return visible

    def may_truncate(self, length: int) -> bool:
        """Readers at `length` need that many rows before it; are they all there?"""
        return self.lost <= max(0, length - self.retention.needed)

    def truncate(self, length: int) -> None:
        self.rows = self.rows[:length]

    def fork(self) -> "Model":
        twin = Model(self.retention)
        twin.rows, twin.lost = list(self.rows), self.lost
        return twin


def growing(retention: Retention) -> TensorRows:
    return GrowingRows(1, retention)


def packed(retention: Retention) -> TensorRows:
    return PackedRows(float_codec(1), retention, CAPACITY)


def decoded(rows: TensorRows) -> list[float]:
    stored = rows.read()
    return (stored.view(np.float32) if stored.dtype == np.uint8 else stored).flatten().tolist()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 3), st.integers(0, 9)),
        st.tuples(st.just("truncate"), st.integers(0, 3), st.integers(0, 7)),
        st.tuples(st.just("fork"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("save"), st.integers(0, 3), st.just(0)),
    ),
    max_size=20,
)


@pytest.mark.parametrize("make", [growing, packed])
@settings(max_examples=150)
@given(kept=st.one_of(st.none(), st.integers(1, 6)), spare=st.integers(0, 5), operations=OPERATIONS)
def test_rows_are_a_list(
    make: Callable[[Retention], TensorRows],
    kept: int | None,
    spare: int,
    operations: list[tuple[str, int, int]],
) -> None:
    """Append, truncate, fork and save in any order, on several branches at once."""
    retention = Retention(kept, 0 if kept is None else max(0, kept - spare))
    branches = [(make(retention), Model(retention))]
    fresh = 0.0
    for kind, which, amount in operations:
        rows, model = branches[which % len(branches)]
        if kind == "append":
            new = [fresh + step for step in range(amount)]
            fresh += amount
            tensor = torch.tensor(new).reshape(-1, 1)
            if make is packed and kept is None and len(model.rows) + amount > CAPACITY:
                with pytest.raises(ValueError, match="larger `max_tokens`"):
                    rows.append(tensor)
            else:
                assert rows.append(tensor).flatten().tolist() == model.append(new)
        elif kind == "truncate":
            length = len(model.rows) - min(amount, len(model.rows))
            if model.may_truncate(length):
                rows.truncate(length)
                model.truncate(length)
            else:
                with pytest.raises(ValueError, match="cannot rewind"):
                    rows.truncate(length)
        elif kind == "fork":
            branches.append((rows.fork(), model.fork()))
        else:
            restored = make(retention)
            restored.restore(rows.read().copy(), rows.length)
            branches[which % len(branches)] = (restored, model)
        for rows, model in branches:
            assert rows.length == len(model.rows)
            assert decoded(rows) == model.rows[model.lost :]


def test_gradients_flow_through_growing_rows() -> None:
    """Of what was kept from earlier chunks too."""
    rows = GrowingRows(1, Retention(2))
    first, second = torch.ones(3, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    rows.append(first)
    rows.append(second).sum().backward()
    assert first.grad is not None and first.grad.flatten().tolist() == [0, 1, 1]
    assert second.grad is not None and second.grad.item() == 1


def test_a_growing_row_frees_what_it_dropped() -> None:
    rows = GrowingRows(4, Retention(2))
    rows.append(torch.zeros(1000, 4))
    assert rows._rows.untyped_storage().nbytes() == 2 * 4 * 4


def test_packed_rows_never_move() -> None:
    """Serving preallocates: appending must not make another buffer."""
    rows = PackedRows(float_codec(2), Retention(5), 0)
    before = rows.nbytes
    rows.append(torch.zeros(37, 2))
    assert rows.nbytes == before == 5 * 8


# --------------------------------------------------------------------------------------------------
# The deployed formats


def test_published_entry_sizes() -> None:
    """docs/architecture.md 8.1."""
    assert kv_codec(512, 64).row_bytes == 584
    assert index_codec(128).row_bytes == 68


def entries(width: int) -> Tensor:
    x = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    return torch.cat((x * torch.logspace(-8, 4, 40)[:, None], torch.zeros(1, width)))


@pytest.mark.parametrize(("width", "rotary"), [(512, 64), (128, 64), (192, 64), (100, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_entry_is_what_the_simulation_makes_of_it(
    width: int, rotary: int, dtype: torch.dtype
) -> None:
    codec = kv_codec(width, rotary)
    x = entries(width)
    stored = codec.encode(x.to(dtype))
    assert stored.shape == (41, codec.row_bytes) and stored.dtype == torch.uint8
    expected = simulate_kv(x, rotary)
    expected[:, -rotary:] = expected[:, -rotary:].bfloat16().float()
    assert torch.equal(codec.decode(stored, dtype), expected.to(dtype))
    # A network that simulates the format has rounded already; storing loses nothing more.
    again = codec.encode(simulate_kv(x, rotary).to(dtype))
    assert torch.equal(codec.decode(again, dtype), expected.to(dtype))


def test_the_bytes_of_an_entry() -> None:
    """448 e4m3 bytes, 64 little-endian bf16, 7 exponents biased by 127, a zero."""
    x = entries(512)
    values = oracle.e4m3_values()
    for row, numbers in zip(kv_codec(512, 64).encode(x), x, strict=True):
        simulated, scales = oracle.simulate_fp8(array(numbers[:448]), 64)
        assert row[576:].tolist() == [int(np.log2(scale)) + 127 for scale in scales] + [0]
        for channel, byte in enumerate(row[:448].tolist()):
            sign = -1 if byte & 0x80 else 1
            assert sign * values[byte & 0x7F] * scales[channel // 64] == simulated[channel]
        for channel in range(64):
            low, high = row[448 + 2 * channel : 450 + 2 * channel].tolist()
            bits = torch.tensor([low | high << 8], dtype=torch.uint16).view(torch.bfloat16)
            assert bits.item() == numbers[448 + channel].bfloat16().item()


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_index_entry_is_what_the_simulation_makes_of_it(width: int, dtype: torch.dtype) -> None:
    codec = index_codec(width)
    x = simulate_index(entries(width))
    stored = codec.encode(x.to(dtype))
    assert stored.shape == (41, codec.row_bytes) and stored.dtype == torch.uint8
    assert torch.equal(codec.decode(stored, dtype), x.to(dtype))


def test_the_bytes_of_an_index_entry() -> None:
    """Two e2m1 codes per byte, the even channel low; then an exponent per 32 channels."""
    x = entries(128)[:-1]  # a row of zeros has the scale 2^-126, whose log2 is exact too
    values = oracle.e2m1_values()
    for row, numbers in zip(index_codec(128).encode(x), x, strict=True):
        simulated, scales = oracle.simulate_fp4(array(numbers), 32)
        assert row[64:].tolist() == [int(np.log2(scale)) + 127 for scale in scales]
        for channel in range(128):
            code = int(row[channel // 2]) >> 4 * (channel % 2) & 15
            sign = -1 if code & 8 else 1
            assert sign * values[code & 7] * scales[channel // 32] == simulated[channel]


# --------------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize(("preset", "bytes_per_token"), [(flash, 3514.25), (pro, 5031.4375)])
def test_published_bytes_per_token(
    preset: Callable[[], ModelConfig], bytes_per_token: float
) -> None:
    """docs/architecture.md 8.1: measured on the memory a state takes."""
    small, large = (packed_state(preset(), max_tokens=n).nbytes for n in (1024, 2048))
    assert (large - small) / 1024 == bytes_per_token


@pytest.mark.parametrize("preset", [tiny, nano, flash])
def test_constant_bytes_are_windows_and_unfinished_groups(
    preset: Callable[[], ModelConfig],
) -> None:
    """A window per layer and MTP block, and the projections of unfinished groups in float32."""
    config = preset()
    plain = config.head_dim - config.qk_rope_head_dim
    entry = plain + 2 * config.qk_rope_head_dim + 8 * -(-plain // 64 // 8)
    expected = config.sliding_window * entry * (config.num_hidden_layers + config.num_mtp_layers)
    for ratio in config.ratios:
        if ratio == 128:
            expected += 128 * 2 * config.head_dim * 4
        if ratio == 4:
            expected += 8 * 4 * (config.head_dim + config.index_head_dim) * 4
    assert packed_state(config, max_tokens=0).nbytes == expected


def run(state: TensorState, count: int, network: Transformer) -> Tensor:
    tokens = (torch.arange(state.length, state.length + count) * 37 + 11) % 512
    return network(tokens, None, [state]).streams


@pytest.fixture(scope="module")
def network() -> Transformer:
    return make_network(tiny(), simulation=Simulation(kv=True, indexer=True))


def test_a_growing_state_holds_what_it_must(network: Transformer) -> None:
    """float32 rows: at most a window and two groups, and an entry per finished group."""
    state = growing_state(tiny())
    run(state, 261, network)
    hca, csa = 128 * 256 + 2 * 128, 8 * 512 + 65 * 128 + 8 * 512 + 65 * 128
    assert state.nbytes == 4 * (5 * 128 * 128 + 2 * hca + 2 * csa)


# --------------------------------------------------------------------------------------------------
# Refusals

STATES: dict[str, Callable[..., TensorState]] = {
    "growing": growing_state,
    "packed": lambda config, **how: packed_state(config, max_tokens=400, **how),
}
STORAGE = pytest.mark.parametrize("storage", STATES)


def contents(state: TensorState) -> dict[str, Any]:
    return {
        f"{layer}.{name}": (rows.length, rows.read().tolist())
        for layer, part in enumerate([*state.layers, *state.drafts, *state.blocks])
        for name, rows in part.named_rows()
    }


def test_more_tokens_than_made_for(network: Transformer) -> None:
    state = packed_state(tiny(), max_tokens=40)
    run(state, 40, network)
    with pytest.raises(ValueError, match=r"room for 10 .* holds 10; 1 more .* larger `max_tokens`"):
        run(state, 4, network)


@STORAGE
@pytest.mark.parametrize("spare", [0, 6])
@pytest.mark.parametrize("length", [20, 200])
def test_rewinding_too_far(storage: str, spare: int, length: int, network: Transformer) -> None:
    """The promise is `rewind_tokens`; what is further back than kept is refused, saying so."""
    state = STATES[storage](tiny(), rewind_tokens=spare)
    run(state, length, network)
    state.rewind(length - spare)
    assert state.length == length - spare
    with pytest.raises(ValueError, match=r"cannot rewind to .* more `rewind_tokens`, or fork"):
        state.rewind(length - spare - 10)


@STORAGE
def test_a_refused_rewind_changes_nothing(storage: str, network: Transformer) -> None:
    """Short lists would allow what long ones refuse: none may have gone back then."""
    state = STATES[storage](tiny())
    run(state, 20, network)
    before = contents(state)
    with pytest.raises(ValueError, match="cannot rewind"):
        state.rewind(2)
    assert contents(state) == before


@STORAGE
@pytest.mark.parametrize("length", [-1, 21])
def test_rewinding_to_where_it_never_was(storage: str, length: int, network: Transformer) -> None:
    state = STATES[storage](tiny())
    run(state, 20, network)
    with pytest.raises(ValueError, match=f"cannot rewind to {length}: the state holds 20 tokens"):
        state.rewind(length)


@STORAGE
def test_rewinding_what_nothing_was_dropped_from(storage: str, network: Transformer) -> None:
    """Six tokens fit every list, so all of them can go."""
    state = STATES[storage](tiny())
    run(state, 6, network)
    state.rewind(0)
    assert torch.allclose(
        run(state, 9, network), run(STATES[storage](tiny()), 9, network), atol=1e-5
    )


@functools.cache
def saved(storage: str, network: Transformer, rewind_tokens: int = 0) -> bytes:
    state = STATES[storage](tiny(), rewind_tokens=rewind_tokens)
    run(state, 139, network)
    return state.serialize()


@STORAGE
def test_saved_bytes_are_stable(storage: str, network: Transformer) -> None:
    data = saved(storage, network)
    state = STATES[storage](tiny())
    state.restore(data)
    assert state.length == 139
    assert state.serialize() == data


def tampered(data: bytes, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> bytes:
    """The saved state with other lengths or tensors in it."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    lengths = json.loads(header["__metadata__"]["lengths"])
    tensors = safetensors.torch.load(data)
    change(lengths, tensors)
    return safetensors.torch.save(tensors, {"lengths": json.dumps(lengths)})


def shorten(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    lengths["layers.2.window"] = 5


def lengthen(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    lengths["layers.2.window"] = 140


def negate(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    lengths["layers.2.window"] = -3


def spell(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    lengths["layers.2.window"] = "many"


def drop_a_list(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors["layers.2.window"], lengths["layers.2.window"]


def drop_an_entry(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["layers.2.compressor.entries"] = tensors["layers.2.compressor.entries"][:-1].clone()


def narrow(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["layers.4.window"] = tensors["layers.4.window"][:, :-1].clone()


def retype(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["layers.4.window"] = tensors["layers.4.window"].to(torch.int32)


def squeeze(lengths: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["layers.4.window"] = tensors["layers.4.window"].float().to(torch.float8_e4m3fn)


@STORAGE
@pytest.mark.parametrize(
    "change",
    [shorten, lengthen, negate, spell, drop_a_list, drop_an_entry, narrow, retype, squeeze],
)
def test_damaged_state_is_refused(
    storage: str,
    change: Callable[[dict[str, Any], dict[str, Tensor]], None],
    network: Transformer,
) -> None:
    data = tampered(saved(storage, network), change)
    state = STATES[storage](tiny())
    run(state, 5, network)
    before = contents(state)
    with pytest.raises(ValueError, match="saved state"):
        state.restore(data)
    assert contents(state) == before


@STORAGE
@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_truncated_state_is_refused(storage: str, cut: int, network: Transformer) -> None:
    with pytest.raises(ValueError, match="the saved state cannot be read"):
        STATES[storage](tiny()).restore(saved(storage, network)[:cut])


def test_other_tensors_are_refused() -> None:
    """A file of the right format that is no state at all."""
    data = safetensors.torch.save({"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="the saved state cannot be read"):
        growing_state(tiny()).restore(data)


@STORAGE
@pytest.mark.parametrize(
    "other",
    [
        nano(),
        dataclasses.replace(tiny(), head_dim=192),
        dataclasses.replace(tiny(), index_head_dim=64),
        dataclasses.replace(tiny(), compress_ratios=(0, 128, 4, 4, 4, 0)),
        dataclasses.replace(tiny(), num_nextn_predict_layers=0),
    ],
)
def test_state_of_another_model_is_refused(
    storage: str, other: ModelConfig, network: Transformer
) -> None:
    with pytest.raises(ValueError, match="saved state"):
        STATES[storage](other).restore(saved(storage, network))


@pytest.mark.parametrize("storage", STATES)
def test_state_of_the_other_storage_is_refused(storage: str, network: Transformer) -> None:
    (other,) = STATES.keys() - {storage}
    with pytest.raises(ValueError, match="saved state"):
        STATES[other](tiny()).restore(saved(storage, network))


def test_state_that_does_not_fit_is_refused(network: Transformer) -> None:
    """More entries than this state has room for, or more rows kept for rewinding."""
    small = packed_state(tiny(), max_tokens=100)
    with pytest.raises(ValueError, match="saved state"):
        small.restore(saved("packed", network))
    spare = saved("packed", network, rewind_tokens=9)
    with pytest.raises(ValueError, match="saved state"):
        packed_state(tiny(), max_tokens=400).restore(spare)
