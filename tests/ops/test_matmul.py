"""Linears whose weight may be plain, FP8 or FP4.

Catches: a scale for the wrong tile, nibbles in the wrong order, an input rounded where it must not
be, groups of rows mixed up, a gradient that does not pass the rounding.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from sounding.ops.matmul import Weight, grouped_linear, linear
from sounding.ops.quant import quantize_fp4, quantize_fp8
from tests.oracles import quant as oracle
from tests.oracles.compare import array, assert_matches


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fp8_matrix(weight: Weight) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Every number of a packed FP8 matrix from its byte and the exponent of its tile's scale."""
    assert weight.scale is not None
    codes, exponents = weight.values.view(torch.uint8), weight.scale.view(torch.uint8)
    values = oracle.e4m3_values()
    out = np.zeros(tuple(codes.shape))
    for o in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            code = int(codes[o, i])
            sign = -1.0 if code & 0x80 else 1.0
            scale = 2.0 ** (int(exponents[o // 128, i // 128]) - 127)
            out[o, i] = sign * values[code & 0x7F] * scale
    return out


def fp4_matrix(weight: Weight) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Every number of a packed FP4 matrix: the even input in the low nibble, bit 3 the sign."""
    assert weight.scale is not None
    codes, exponents = weight.values.view(torch.uint8), weight.scale.view(torch.uint8)
    values = oracle.e2m1_values()
    out = np.zeros((codes.shape[0], 2 * codes.shape[1]))
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            nibble = int(codes[o, i // 2]) >> (4 * (i % 2)) & 15
            sign = -1.0 if nibble & 8 else 1.0
            out[o, i] = sign * values[nibble & 7] * 2.0 ** (int(exponents[o, i // 32]) - 127)
    return out


@pytest.mark.parametrize(("outputs", "inputs"), [(130, 200), (1, 1), (128, 128), (5, 129)])
def test_fp8_weights_unpack_exactly_tile_by_tile(outputs: int, inputs: int) -> None:
    dense = random(0, outputs, inputs)
    dense[:, inputs // 2 :] *= 1000  # scales differ from tile to tile
    weight = Weight(*quantize_fp8(dense))
    stored = fp8_matrix(weight)
    assert np.array_equal(array(weight.dense(torch.float64)), stored)
    for p in range(0, outputs, 128):
        for q in range(0, inputs, 128):
            tile = (slice(p, p + 128), slice(q, q + 128))
            expected, scales = oracle.simulate_fp8(array(dense[tile]).flatten(), 1 << 14)
            assert len(scales) == 1
            assert np.array_equal(stored[tile].flatten(), expected)


def test_fp4_weights_unpack_exactly_block_by_block() -> None:
    dense = random(1, 5, 96) * torch.tensor([1.0, 1e-3, 1e3]).repeat_interleave(32)
    weight = Weight(*quantize_fp4(dense))
    stored = fp4_matrix(weight)
    assert np.array_equal(array(weight.dense(torch.float64)), stored)
    for row in range(5):
        assert np.array_equal(stored[row], oracle.simulate_fp4(array(dense[row]), 32)[0])


@pytest.mark.parametrize("simulate", [False, True])
@pytest.mark.parametrize("kind", ["plain", "fp8", "fp4"])
def test_linear_equals_scalar_sums_for_every_weight_format(kind: str, simulate: bool) -> None:
    x, dense = random(2, 3, 160) * 5, random(3, 7, 160)
    packed = {"plain": lambda w: (w,), "fp8": quantize_fp8, "fp4": quantize_fp4}[kind](dense)
    weight = Weight(*packed)
    matrix = {"plain": lambda w: array(w.values), "fp8": fp8_matrix, "fp4": fp4_matrix}[kind](
        weight
    )
    rows = [oracle.simulate_fp8(array(row), 128)[0] if simulate else array(row) for row in x]
    expected = np.array([[sum(a * b) for b in matrix] for a in rows])
    actual = linear(x, weight, simulate=simulate)
    assert_matches(actual, expected, terms=160, scale=float(np.abs(expected).max()) * 4)


def test_each_group_meets_its_own_rows_of_the_weight() -> None:
    """Group a of the input meets rows a * o .. a * o + o - 1 of the weight, and nothing else."""
    x, weight = random(4, 2, 3, 4).double(), random(5, 15, 4).double()
    actual = grouped_linear(x, Weight(weight), 3)
    expected = np.zeros((2, 3, 5))
    for t in range(2):
        for group in range(3):
            for o in range(5):
                row = array(weight[group * 5 + o])
                expected[t, group, o] = sum(array(x[t, group]) * row)
    assert_matches(actual, expected, terms=4)


def test_unstacked_weights_equal_the_slices_of_their_stack() -> None:
    dense = random(6, 3, 4, 64)
    for pack in (lambda w: (w,), quantize_fp8, quantize_fp4):
        stack = Weight(*pack(dense))
        for index, one in enumerate(stack.unstack()):
            assert torch.equal(one.dense(torch.float32), stack.dense(torch.float32)[index])


def test_gradients_pass_the_rounding() -> None:
    """Straight through: the input's gradient is that of the plain product with stored weights."""
    x = random(7, 3, 64).requires_grad_()
    dense = random(8, 5, 64)
    for pack in (lambda w: (w,), quantize_fp8, quantize_fp4):
        weight = Weight(*pack(dense))
        upstream = random(9, 3, 5)
        (gradient,) = torch.autograd.grad(linear(x, weight, simulate=True), x, upstream)
        assert torch.allclose(gradient, upstream @ weight.dense(torch.float32))


def test_gradient_of_a_simulated_linear_for_its_weight() -> None:
    """The weight's gradient sees the rounded input, because that is what was multiplied."""
    x, dense = random(10, 3, 64) * 3, random(11, 5, 64).requires_grad_()
    upstream = random(12, 3, 5)
    (gradient,) = torch.autograd.grad(linear(x, Weight(dense), simulate=True), dense, upstream)
    rounded = torch.from_numpy(np.array([oracle.simulate_fp8(array(r), 128)[0] for r in x]))
    assert torch.allclose(gradient, upstream.T @ rounded.float(), atol=1e-5)


def test_products_of_no_rows_keep_their_shapes() -> None:
    assert linear(torch.zeros(0, 64), Weight(torch.zeros(5, 64)), simulate=True).shape == (0, 5)
    assert grouped_linear(torch.zeros(0, 2, 4), Weight(torch.zeros(6, 4)), 2).shape == (0, 2, 3)
