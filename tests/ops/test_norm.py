"""RMS norm against its definition.

Catches: eps outside the root, statistics in a low precision, a weight that is left out or applied
before rounding, a gradient that treats the statistics as constants.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.ops.norm import rms_norm
from tests.oracles import norm
from tests.oracles.compare import array, assert_matches


def rows_of(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    w = None if weight is None else array(weight)
    rows = [norm.rms_norm(array(row), w, eps) for row in flat]
    return torch.from_numpy(np.array(rows)).reshape(x.shape)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 3),
    width=st.integers(1, 40),
    heads=st.sampled_from([None, 1, 3]),
    exponent=st.integers(-12, 12),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_rms_norm_equals_the_oracle(
    rows: int,
    width: int,
    heads: int | None,
    exponent: int,
    weighted: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, width) if heads is None else (rows, heads, width)
    x = torch.randn(shape, generator=generator, dtype=dtype) * 10.0**exponent
    weight = torch.randn(width, generator=generator) if weighted else None
    assert_matches(
        rms_norm(x, weight, 1e-6), array(rows_of(x, weight, 1e-6)), terms=width, precision=dtype
    )


def test_eps_is_inside_the_root() -> None:
    """For x far below sqrt(eps), x / sqrt(eps) remains; with eps outside it would be sign(x)."""
    x = torch.full((1, 8), 1e-6, dtype=torch.float64)
    assert rms_norm(x, None, 1e-6)[0, 0].item() == pytest.approx(1e-3, rel=1e-5)


def test_zeros_stay_zeros() -> None:
    assert rms_norm(torch.zeros(2, 5), torch.ones(5), 1e-6).eq(0).all()


def test_bfloat16_is_computed_in_float32() -> None:
    """The sum of 4096 squares in bfloat16 would stop growing at 256."""
    x = torch.ones(1, 4096, dtype=torch.bfloat16) * 1.5
    weight = torch.full((4096,), 1.1)
    out = rms_norm(x, weight, 1e-6)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rms_norm(x.float(), weight, 1e-6).bfloat16())


def test_norm_of_no_rows_keeps_its_shape() -> None:
    assert rms_norm(torch.zeros(0, 5), torch.ones(5), 1e-6).shape == (0, 5)


def test_gradient_of_rms_norm_is_exact() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, None, 1e-2), (x * 0.01,))
