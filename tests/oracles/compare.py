"""How a tensor is held against an oracle's float64 result: the one table of tolerances.

An op may lose a few units in the last place for every doubling of the sum behind it, relative to
the largest value of the result; nothing in the tests widens that.
"""

import math

import numpy as np
import torch
from torch import Tensor

from tests.oracles import Array

ULPS = 16  # units in the last place allowed to a sum of one term
ABSOLUTE = {torch.float64: 1e-300, torch.float32: 1e-37, torch.bfloat16: 1e-37}


def array(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy(), dtype=np.float64)


def tensor(x: Array, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(x).to(dtype)


def assert_matches(
    actual: Tensor,
    expected: Array,
    *,
    terms: int = 1,
    precision: torch.dtype | None = None,
    scale: float | None = None,
) -> None:
    """`terms` is the length of the longest sum; `precision` where less than the dtype's was used;
    `scale` the largest value inside, where it is not the largest of the result."""
    assert tuple(actual.shape) == expected.shape
    if expected.size == 0:
        return
    precision = precision or actual.dtype
    largest = scale if scale is not None else float(np.abs(expected).max())
    allowed = ULPS * torch.finfo(precision).eps * (1 + math.log2(terms)) * largest
    error = np.abs(array(actual) - expected)
    assert np.isfinite(error).all(), "a result is not finite"
    worst = float(error.max())
    assert worst <= allowed + ABSOLUTE[precision], f"off by {worst:.3e}, allowed {allowed:.3e}"
