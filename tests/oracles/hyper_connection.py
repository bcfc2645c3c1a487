"""Hyper-connections of one token with its residual streams (docs/architecture.md 3)."""

import math
from dataclasses import dataclass

import numpy as np

from tests.oracles import Array


@dataclass(frozen=True)
class Coefficients:
    pre: Array  # [m]
    post: Array  # [m]
    mix: Array  # [m, m]: first index source stream, second destination


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def project(streams: Array, fn: Array, norm_eps: float) -> list[float]:
    """(v fn^T) * rsqrt(mean(v^2) + eps) with v the streams one after the other."""
    v = [float(value) for stream in streams for value in stream]
    rho = 1 / math.sqrt(sum(value * value for value in v) / len(v) + norm_eps)
    return [sum(v[i] * float(row[i]) for i in range(len(v))) * rho for row in fn]


def sinkhorn(logits: Array, eps: float, iterations: int) -> Array:
    """Softmax of the rows plus eps, then columns, rows, columns, ...: columns come last."""
    m = len(logits)
    c = np.zeros((m, m))
    for j in range(m):
        largest = max(logits[j])
        exponents = [math.exp(logits[j][k] - largest) for k in range(m)]
        for k in range(m):
            c[j, k] = exponents[k] / sum(exponents) + eps
    for iteration in range(iterations):
        if iteration > 0:
            for j in range(m):
                total = sum(c[j, k] for k in range(m))
                for k in range(m):
                    c[j, k] /= total + eps
        for k in range(m):
            total = sum(c[j, k] for j in range(m))
            for j in range(m):
                c[j, k] /= total + eps
    return c


def coefficients(
    streams: Array,
    fn: Array,
    base: Array,
    scale: Array,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> Coefficients:
    m = len(streams)
    predicted = project(streams, fn, norm_eps)
    pre, post, logits = np.zeros(m), np.zeros(m), np.zeros((m, m))
    for j in range(m):
        pre[j] = sigmoid(predicted[j] * scale[0] + base[j]) + eps
        post[j] = 2 * sigmoid(predicted[m + j] * scale[1] + base[m + j])
        for k in range(m):
            at = 2 * m + m * j + k
            logits[j, k] = predicted[at] * scale[2] + base[at]
    return Coefficients(pre, post, sinkhorn(logits, eps, iterations))


def read(streams: Array, pre: Array) -> Array:
    """y = sum_j pre_j X_j."""
    out = np.zeros(streams.shape[1])
    for j in range(len(streams)):
        for i in range(streams.shape[1]):
            out[i] += pre[j] * streams[j, i]
    return out


def write(streams: Array, update: Array, post: Array, mix: Array) -> Array:
    """X'_k = post_k u + sum_j C[j, k] X_j."""
    out = np.zeros(streams.shape)
    for k in range(len(streams)):
        for i in range(streams.shape[1]):
            out[k, i] = post[k] * update[i]
            for j in range(len(streams)):
                out[k, i] += mix[j, k] * streams[j, i]
    return out


def head(
    streams: Array,
    fn: Array,
    base: Array,
    scale: float,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> Array:
    """Collapse the streams: like read, with its own coefficients; no post, no Sinkhorn."""
    predicted = project(streams, fn, norm_eps)
    pre = np.array([sigmoid(p * scale + b) + eps for p, b in zip(predicted, base, strict=True)])
    return read(streams, pre)
