"""Stored weights to numbers, one element at a time (docs/checkpoints.md 3.1, 3.2)."""

import math

import numpy as np

from tests.oracles import Array

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e4m3(byte: int) -> float:
    """A sign, 4 exponent bits with bias 7, 3 mantissa bits; all ones is NaN."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) / 8 * 2.0 ** (exponent - 7)


def e8m0(byte: int) -> float:
    """An exponent alone."""
    return math.nan if byte == 255 else math.ldexp(1.0, byte - 127)


def fp8_weight(weight: Array, scale: Array) -> Array:
    """Bytes [o, i] under scale bytes [ceil(o / 128), ceil(i / 128)]."""
    out = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            tile = int(scale[row // 128, column // 128])
            out[row, column] = e4m3(int(weight[row, column])) * e8m0(tile)
    return out


def fp4_weight(weight: Array, scale: Array) -> Array:
    """Bytes [o, i / 2], the low nibble first, under scale bytes [o, i / 32]."""
    out = np.zeros((weight.shape[0], 2 * weight.shape[1]))
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            byte = int(weight[row, column // 2])
            code = byte >> 4 if column % 2 else byte & 15
            value = E2M1[code & 7] * (-1 if code & 8 else 1)
            out[row, column] = value * e8m0(int(scale[row, column // 32]))
    return out
