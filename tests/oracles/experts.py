"""Routing and experts of one token (docs/architecture.md 10)."""

import math

import numpy as np

from tests.oracles import Array


def scores(x: Array, gate: Array) -> list[float]:
    """sqrt(softplus(<x, gate_e>)) for every expert e."""
    out = []
    for row in gate:
        logit = sum(float(row[i]) * float(x[i]) for i in range(len(x)))
        softplus = max(logit, 0.0) + math.log1p(math.exp(-abs(logit)))
        out.append(math.sqrt(softplus))
    return out


def choose(scores: list[float], bias: Array, k: int) -> list[int]:
    """The k experts of largest score + bias, best first; equal: the lower index first."""
    return sorted(range(len(scores)), key=lambda e: (-(scores[e] + float(bias[e])), e))[:k]


def routing_weights(scores: list[float], chosen: list[int], route_scale: float) -> list[float]:
    """The unbiased scores of the chosen, made to sum to route_scale."""
    total = sum(scores[e] for e in chosen)
    return [scores[e] / total * route_scale for e in chosen]


def swiglu(x: Array, w1: Array, w2: Array, w3: Array, limit: float, weight: float = 1.0) -> Array:
    """w2 (silu(min(w1 x, limit)) * clamp(w3 x, +-limit) * weight)."""
    hidden = []
    for row1, row3 in zip(w1, w3, strict=True):
        v = sum(float(row1[i]) * float(x[i]) for i in range(len(x)))
        u = sum(float(row3[i]) * float(x[i]) for i in range(len(x)))
        u = min(max(u, -limit), limit)
        v = min(v, limit)
        silu = v / (1 + math.exp(-v)) if v > -700 else 0.0
        hidden.append(silu * u * weight)
    out = np.zeros(len(w2))
    for o, row2 in enumerate(w2):
        out[o] = sum(float(row2[i]) * hidden[i] for i in range(len(hidden)))
    return out


def combine(
    x: Array,
    w1: Array,
    w2: Array,
    w3: Array,
    chosen: list[int],
    weights: list[float],
    limit: float,
) -> Array:
    """The sum of the chosen experts; w1, w3 [e, i, c], w2 [e, c, i]."""
    out = np.zeros(len(x))
    for e, weight in zip(chosen, weights, strict=True):
        out += swiglu(x, w1[e], w2[e], w3[e], limit, weight)
    return out
