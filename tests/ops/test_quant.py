"""Low-precision formats and their simulation against the formats' definitions.

Catches: a cast that does not round, ties away from even, a logarithm that puts an exact power of
two one too high, scales shared by the wrong channels, overflow to NaN instead of saturation, a
Hadamard matrix in another order, gradients that vanish where values are rounded.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.ops import quant as ops
from tests.oracles import quant as oracle
from tests.oracles.compare import array, assert_matches

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_nan=False, allow_subnormal=False)
# Values that lie on or beside the grids and their midpoints far more often than chance would.
NEAR = st.builds(
    lambda value, shift, sign: sign * value * 2.0**shift,
    st.sampled_from([*oracle.e2m1_values(), 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 448, 464, 1.0625,
                     1.1875, 17, 19, 2.0**-9, 2.0**-10, 3 * 2.0**-10]),
    st.integers(-20, 20),
    st.sampled_from([-1.0, 1.0]),
)  # fmt: skip
ROWS = st.lists(st.one_of(FLOATS, NEAR), min_size=1, max_size=40)


@settings(max_examples=150)
@given(row=ROWS, block=st.sampled_from([1, 8, 64, 128]))
@example(row=[0.0] * 9, block=8)
@example(row=[448.0, 447.9, 1e-5, -1e-9, 464.0], block=8)
def test_fp8_simulation_equals_the_oracle_bit_for_bit(row: list[float], block: int) -> None:
    """Bit for bit, also where the last block is short."""
    expected, scales = oracle.simulate_fp8(np.array(row), block)
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([row, row], dtype=dtype)
        actual = ops.simulate_fp8(x, block)
        assert np.array_equal(array(actual), np.stack((expected, expected)))
        values, scale = ops.fp8_blocks(x, block)
        assert scale[0].tolist() == scales
        assert torch.equal(values, values.to(torch.float8_e4m3fn).to(dtype))


@settings(max_examples=150)
@given(row=st.lists(st.one_of(FLOATS, NEAR), min_size=32, max_size=32), blocks=st.integers(1, 2))
def test_fp4_simulation_equals_the_oracle_bit_for_bit(row: list[float], blocks: int) -> None:
    row = row * blocks
    row[-1] *= 64  # another scale for the last block
    expected, scales = oracle.simulate_fp4(np.array(row), 32)
    x = torch.tensor([row], dtype=torch.float32)
    assert np.array_equal(array(ops.simulate_fp4(x)[0]), expected)
    values, scale = ops.fp4_blocks(x)
    assert scale[0].tolist() == scales
    assert np.array_equal(array((values * scale[..., None]).flatten()), expected)


@pytest.mark.parametrize("top", [ops.FP8_MAX, ops.FP4_MAX])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_beside_powers_of_two(top: float, dtype: torch.dtype) -> None:
    """amax = top * 2^n needs exactly 2^n, the next float above it needs 2^(n+1)."""
    exact = top * 2.0 ** torch.arange(-30, 60).to(dtype)
    above = exact.nextafter(torch.tensor(torch.inf, dtype=dtype))
    below = exact.nextafter(torch.tensor(0.0, dtype=dtype))
    for amax in (exact, above, below):
        expected = [oracle.power_of_two_scale(float(a), top, 1e-30) for a in amax]
        assert ops.power_of_two_scale(amax, top, 1e-30).tolist() == expected


def test_scales_of_zeros_are_the_smallest_ones() -> None:
    zeros = torch.zeros(1, 32)
    assert ops.fp8_blocks(zeros, 32)[1].item() == 2.0 ** math.ceil(math.log2(1e-4 / 448))
    assert ops.fp4_blocks(zeros)[1].item() == 2.0**-126
    assert ops.simulate_fp4(zeros).eq(0).all() and ops.simulate_fp8(zeros, 32).eq(0).all()


def test_every_fp4_value_and_midpoint() -> None:
    values = oracle.e2m1_values()
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    points = [*values, *middles, 7.0, 100.0]
    points += [math.nextafter(m, 0) for m in middles] + [math.nextafter(m, 9) for m in middles]
    points += [-point for point in points]
    expected = [oracle.e2m1(point) for point in points]
    assert ops.round_fp4(torch.tensor(points, dtype=torch.float64)).tolist() == expected


def test_quantization_gives_the_documented_check_values() -> None:
    """docs/architecture.md 15."""
    eight = torch.linspace(-3, 3, 64)
    assert ops.fp8_blocks(eight, 64)[1].item() == 2.0**-7
    assert ops.simulate_fp8(eight, 64)[:6].tolist() == [-3, -3, -2.75, -2.75, -2.5, -2.5]
    four = torch.linspace(-3, 3, 32)
    assert ops.fp4_blocks(four)[1].item() == 0.5
    assert ops.simulate_fp4(four)[:8].tolist() == [-3, -3, -3, -2, -2, -2, -2, -1.5]


@settings(max_examples=30)
@given(
    log_width=st.integers(0, 7),
    rows=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_hadamard_equals_the_oracle(
    log_width: int, rows: int, dtype: torch.dtype, seed: int
) -> None:
    width = 2**log_width
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    expected = np.array([oracle.hadamard(array(row)) for row in x]).reshape(rows, width)
    assert_matches(ops.hadamard(x), expected, terms=width, scale=4.0)


def test_hadamard_rows_are_in_sylvesters_order() -> None:
    """Sylvester's: row 1 starts + - + -, row 2 starts + + - -; another order mixes rows up."""
    matrix = ops.hadamard(torch.eye(128, dtype=torch.float64))
    assert matrix[1, :4].sign().tolist() == [1, -1, 1, -1]
    assert matrix[2, :4].sign().tolist() == [1, 1, -1, -1]
    assert_matches(matrix, oracle.hadamard_matrix(128))


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_gradients_pass_straight_through(kind: str) -> None:
    x = torch.randn(3, 64, requires_grad=True)
    upstream = torch.randn(3, 64)
    out = ops.simulate_fp8(x, 48) if kind == "fp8" else ops.simulate_fp4(x)
    assert not torch.equal(out, x)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    assert torch.equal(gradient, upstream)


def test_gradient_of_hadamard_is_exact() -> None:
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.hadamard, (x,))


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_rounding_twice_changes_nothing(kind: str) -> None:
    """A stored entry that is rounded again, e.g. by its storage, stays what it was."""

    def run(x: Tensor) -> Tensor:
        return ops.simulate_fp8(x, 64) if kind == "fp8" else ops.simulate_fp4(x)

    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))
    x = x * torch.logspace(-9, 9, 400)[:, None]
    assert torch.equal(run(run(x)), run(x))


def test_bfloat16_is_rounded_from_float32() -> None:
    x = torch.randn(2, 64).bfloat16()
    assert torch.equal(ops.simulate_fp8(x, 64), ops.simulate_fp8(x.float(), 64).bfloat16())
    assert torch.equal(ops.simulate_fp4(x), ops.simulate_fp4(x.float()).bfloat16())


def test_every_fp4_code_survives_packing() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    values = ops.unpack_fp4(codes)
    assert torch.equal(ops.pack_fp4(values), codes)
    table = [*oracle.e2m1_values(), *(-v for v in oracle.e2m1_values())]
    for byte in range(256):
        assert values[2 * byte].item() == table[byte & 15]
        assert values[2 * byte + 1].item() == table[byte >> 4]


def test_scales_survive_storage() -> None:
    scales = 2.0 ** torch.arange(-126, 128).float()
    stored = ops.encode_scale(scales)
    assert stored.view(torch.uint8).tolist() == list(range(1, 255))
    assert torch.equal(ops.decode_scale(stored), scales)


def test_simulation_and_hadamard_of_no_rows_keep_their_shapes() -> None:
    assert ops.simulate_fp8(torch.zeros(0, 70), 64).shape == (0, 70)
    assert ops.simulate_fp4(torch.zeros(0, 64)).shape == (0, 64)
    assert ops.hadamard(torch.zeros(0, 64)).shape == (0, 64)
