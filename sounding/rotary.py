"""How fast each pair of rotary channels turns: the one table that every network needs.

In NumPy, since both the C++ kernels and the PyTorch reference read it.
Source: docs/architecture.md 4.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sounding.config import RopeScaling


@lru_cache
def rope_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> NDArray[np.float32]:
    """Angle per position of each of the width / 2 channel pairs, float32 [pairs].

    Plain: theta^(-2i / width). YaRN blends that with itself / factor, by how many turns a pair
    makes over the original context; unlike stock YaRN, V4 scales neither cosine nor sine.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    # Powers in double precision, rounded once: NumPy's own float32 powers are off by one bit.
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    if scaling is not None:

        def pair_with_turns(turns: float) -> float:
            wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
            return width * math.log(wavelength) / (2 * math.log(theta))

        low = max(math.floor(pair_with_turns(scaling.beta_fast)), 0)
        high = min(math.ceil(pair_with_turns(scaling.beta_slow)), width - 1)
        pairs = np.arange(width // 2, dtype=np.float32)
        ramp = np.clip((pairs - np.float32(low)) / np.float32(max(high - low, 1e-3)), 0, 1)
        ramp = ramp.astype(np.float32)
        frequencies = frequencies * (1 - ramp) + frequencies / np.float32(scaling.factor) * ramp
    frequencies.setflags(write=False)
    return frequencies
