"""The rule for token ids that every network holds its input to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def require_tokens(tokens: Sequence[int] | NDArray[Any], vocab_size: int) -> None:
    """Raise ValueError for an id outside the vocabulary, which would index past the embedding."""
    ids = np.asarray(tokens, dtype=np.int64)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise ValueError(
            f"token id {int(outside[0])} is outside the model's vocabulary of {vocab_size}: "
            "were these tokens made with its own tokenizer?"
        )
