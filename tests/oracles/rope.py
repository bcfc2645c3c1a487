"""Rotary embedding of one head (docs/architecture.md 4)."""

import math
from dataclasses import dataclass

import numpy as np

from tests.oracles import Array


@dataclass(frozen=True)
class Yarn:
    factor: float
    original_tokens: int
    beta_fast: float
    beta_slow: float


def frequencies(base: float, width: int, yarn: Yarn | None = None) -> list[float]:
    """theta_i = base^(-2i/width); YaRN divides the slow ones by its factor, with a ramp between."""
    thetas = [base ** (-2 * i / width) for i in range(width // 2)]
    if yarn is None:
        return thetas

    def channel(rotations: float) -> float:
        turns = yarn.original_tokens / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(base))

    low = max(math.floor(channel(yarn.beta_fast)), 0)
    high = min(math.ceil(channel(yarn.beta_slow)), width - 1)
    out = []
    for i, theta in enumerate(thetas):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append(theta * (1 - ramp) + theta / yarn.factor * ramp)
    return out


def rotate(x: Array, position: int, thetas: list[float], inverse: bool = False) -> Array:
    """Turn channels (2i, 2i+1) of the LAST 2*len(thetas) channels by position * theta_i."""
    out = np.array(x, dtype=np.float64)
    first = len(x) - 2 * len(thetas)
    for i, theta in enumerate(thetas):
        angle = -position * theta if inverse else position * theta
        number = complex(x[first + 2 * i], x[first + 2 * i + 1])
        number *= complex(math.cos(angle), math.sin(angle))
        out[first + 2 * i] = number.real
        out[first + 2 * i + 1] = number.imag
    return out
