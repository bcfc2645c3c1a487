"""Pooling of groups against brute force over a whole sequence.

Catches: the two half-channels swapped, the group after instead of before, a first group that sees
a blank one with weight, one softmax for all channels, gate bias by token instead of by place.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.ops.pool import overlap, pool
from tests.oracles import compressor
from tests.oracles.compare import array, assert_matches

SHAPES = {
    "groups": st.integers(0, 4),
    "r": st.integers(1, 6),
    "d": st.integers(1, 4),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "spread": st.sampled_from([0.0, 1.0, 1000.0]),
    "seed": st.integers(0, 99),
}


def sequence(
    t: int, width: int, r: int, spread: float, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and gates of t tokens, and the gate bias of r places; eighths, so sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.randn(t, width, generator=generator, dtype=dtype) * spread
    bias = torch.randn(r, width, generator=generator, dtype=dtype)
    values = torch.randn(t, width, generator=generator, dtype=dtype)
    return values, (gates * 8).round() / 8, (bias * 8).round() / 8


@settings(max_examples=30)
@given(**SHAPES)
def test_pooling_disjoint_groups_equals_the_oracle(
    groups: int, r: int, d: int, dtype: torch.dtype, spread: float, seed: int
) -> None:
    a, z, ape = sequence(groups * r, d, r, spread, seed, dtype)
    actual = pool(a.unflatten(0, (groups, r)), z.unflatten(0, (groups, r)) + ape)
    expected = compressor.pool_disjoint(array(a), array(z), array(ape))
    assert_matches(actual, expected, terms=r, scale=4.0)


@settings(max_examples=30)
@given(**SHAPES)
def test_pooling_overlapping_groups_equals_the_oracle(
    groups: int, r: int, d: int, dtype: torch.dtype, spread: float, seed: int
) -> None:
    a, z, ape = sequence(groups * r, 2 * d, r, spread, seed, dtype)
    biased = z.unflatten(0, (groups, r)) + ape
    blank = a.new_zeros(1, r, 2 * d)
    values = overlap(torch.cat((blank, a.unflatten(0, (groups, r)))))
    gates = overlap(torch.cat((blank - torch.inf, biased)))
    expected = compressor.pool_overlapping(array(a), array(z), array(ape))
    assert_matches(pool(values, gates), expected, terms=2 * r, scale=4.0)


def test_closed_gates_drop_their_slots() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    gates = torch.tensor([[[0.0, -torch.inf], [0.0, 7.0], [-torch.inf, -torch.inf]]])
    assert pool(values, gates).tolist() == [[2.0, 4.0]]


def test_equal_gates_give_the_mean() -> None:
    values = torch.arange(12.0).reshape(2, 3, 2)
    assert torch.allclose(pool(values, torch.full((2, 3, 2), 1e30)), values.mean(1))


@pytest.mark.parametrize("closed", [False, True])
def test_gradient_of_pooling_is_exact(closed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def blend(rows: Tensor, gates: Tensor) -> Tensor:
        if closed:  # the blank group before the first
            gates = torch.cat((torch.full_like(gates[:1], -torch.inf), gates[1:]))
        return pool(overlap(rows), overlap(gates))

    assert torch.autograd.gradcheck(blend, (rows, gates))
