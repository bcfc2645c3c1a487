"""RMS norm of one vector (docs/architecture.md 2, 5.2)."""

import math

import numpy as np

from tests.oracles import Array


def rms_norm(x: Array, weight: Array | None = None, eps: float = 1e-6) -> Array:
    """x_i / sqrt(mean(x^2) + eps) * w_i; eps is inside the root."""
    mean_square = sum(float(v) ** 2 for v in x) / len(x)
    out = np.zeros(len(x))
    for i in range(len(x)):
        out[i] = x[i] / math.sqrt(mean_square + eps)
        if weight is not None:
            out[i] *= weight[i]
    return out
