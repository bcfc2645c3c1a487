"""The two small number formats from their definitions, and the simulations built on them
(docs/architecture.md 9.1, 9.2; Hadamard: 7)."""

import math

import numpy as np

from tests.oracles import Array


def e4m3_values() -> list[float]:
    """The non-negative finite e4m3 numbers by code: 4 exponent bits (bias 7), 3 mantissa bits.

    Exponent 0 is subnormal; the code of all ones is NaN, and there is no infinity.
    """
    values = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        if exponent == 0:
            values.append(mantissa / 8 * 2.0**-6)
        else:
            values.append((1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return values


def e2m1_values() -> list[float]:
    """The non-negative e2m1 numbers by code."""
    return [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def round_to(x: float, values: list[float]) -> float:
    """The nearest of `values` (by magnitude, saturating); halfway goes to the even code."""
    magnitude = min(abs(x), values[-1])
    best = min(range(len(values)), key=lambda code: (abs(values[code] - magnitude), code & 1))
    return math.copysign(values[best], x)


def e4m3(x: float) -> float:
    return round_to(x, e4m3_values())


def e2m1(x: float) -> float:
    return round_to(x, e2m1_values())


def power_of_two_scale(amax: float, largest: float, floor: float) -> float:
    """2^ceil(log2(max(amax, floor) / largest)), found by search so that no logarithm rounds."""
    amax = max(amax, floor)
    exponent = -200
    while math.ldexp(largest, exponent) < amax:
        exponent += 1
    return math.ldexp(1.0, exponent)


def _simulate(x: Array, block: int, values: list[float], floor: float) -> tuple[Array, list[float]]:
    out = np.zeros(len(x))
    scales = []
    for start in range(0, len(x), block):
        members = range(start, min(start + block, len(x)))
        amax = max(abs(float(x[i])) for i in members)
        scale = power_of_two_scale(amax, values[-1], floor)
        for i in members:
            out[i] = round_to(float(x[i]) / scale, values) * scale
        scales.append(scale)
    return out, scales


def simulate_fp8(x: Array, block: int) -> tuple[Array, list[float]]:
    """Quantise to FP8 and back, block by block; with the scale of each block."""
    return _simulate(x, block, e4m3_values(), 1e-4)


def simulate_fp4(x: Array, block: int) -> tuple[Array, list[float]]:
    """Quantise to FP4 and back, block by block; with the scale of each block."""
    return _simulate(x, block, e2m1_values(), 6 * 2.0**-126)


def hadamard_matrix(n: int) -> Array:
    """Sylvester: H(1) = 1, H(2n) = [[H, H], [H, -H]]; scaled to be orthogonal."""

    def signs(n: int) -> list[list[int]]:
        if n == 1:
            return [[1]]
        half = signs(n // 2)
        return [row + row for row in half] + [row + [-v for v in row] for row in half]

    return np.array(signs(n), dtype=np.float64) * n**-0.5


def hadamard(x: Array) -> Array:
    """x H, one output channel at a time."""
    matrix = hadamard_matrix(len(x))
    out = np.zeros(len(x))
    for j in range(len(x)):
        out[j] = sum(x[i] * matrix[i, j] for i in range(len(x)))
    return out
