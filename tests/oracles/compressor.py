"""Pooling of tokens into entries over one whole sequence (docs/architecture.md 6.1, 6.2)."""

import math

import numpy as np

from tests.oracles import Array


def weighted(values: list[float], gates: list[float]) -> float:
    """sum of softmax(gates) * values; a gate of -inf drops its value."""
    largest = max(gates)
    weights = [math.exp(gate - largest) for gate in gates]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def pool_disjoint(a: Array, z: Array, ape: Array) -> Array:
    """HCA: a, z [t, D], ape [r, D]; entry i blends tokens i*r .. i*r + r - 1 per channel."""
    r, width = ape.shape
    entries = np.zeros((len(a) // r, width))
    for i in range(len(entries)):
        for c in range(width):
            tokens = range(i * r, i * r + r)
            values = [float(a[t, c]) for t in tokens]
            gates = [float(z[t, c] + ape[t - i * r, c]) for t in tokens]
            entries[i, c] = weighted(values, gates)
    return entries


def pool_overlapping(a: Array, z: Array, ape: Array) -> Array:
    """CSA: a, z [t, 2D], ape [r, 2D]; entry i also blends the first halves of the block before."""
    r, width = ape.shape[0], ape.shape[1] // 2
    entries = np.zeros((len(a) // r, width))
    for i in range(len(entries)):
        for c in range(width):
            values, gates = [], []
            for slot in range(r):  # the first half of what the previous block's tokens made
                t = r * (i - 1) + slot
                values.append(float(a[t, c]) if i > 0 else 0.0)
                gates.append(float(z[t, c] + ape[slot, c]) if i > 0 else -math.inf)
            for slot in range(r):  # the second half of this block's own
                t = r * i + slot
                values.append(float(a[t, width + c]))
                gates.append(float(z[t, width + c] + ape[slot, width + c]))
            entries[i, c] = weighted(values, gates)
    return entries
