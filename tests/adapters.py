"""Random adapters for tests, large enough to change what a network does."""

from collections.abc import Collection

import numpy as np

from sounding.config import ModelConfig
from sounding.weights.adapters import Adapter, Delta, adaptable
from sounding.weights.raw import RawTensor


def random_adapter(
    config: ModelConfig,
    *,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.03,
    only: Collection[str] | None = None,
    base: str = "",
) -> Adapter:
    """Deltas whose numbers are about `size`, in bfloat16; `only` of modules with these ends."""
    rng = np.random.default_rng(seed)
    deltas = {}
    for module, (*stack, outputs, inputs) in adaptable(config).items():
        low = rng.normal(0, inputs**-0.5, (*stack, rank, inputs))
        high = rng.normal(0, size * rank**-0.5 * inputs**0.5, (*stack, outputs, rank))
        if only is None or module.split(".", 2)[2] in only:
            deltas[module] = Delta(_bfloat16(low), _bfloat16(high))
    return Adapter(deltas, 0.5, base)


def _bfloat16(values: np.ndarray) -> RawTensor:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return RawTensor((bits >> 16).astype(np.uint16), "BF16")
