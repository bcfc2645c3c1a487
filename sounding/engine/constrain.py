"""Structured output: which tokens keep a text within a grammar."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


class Constraint:
    """One text in the making."""

    def mask(self, logits: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        raise NotImplementedError

    def push(self, token: int) -> bool:
        raise NotImplementedError

    def count_valid(self, tokens: Sequence[int]) -> int:
        raise NotImplementedError
