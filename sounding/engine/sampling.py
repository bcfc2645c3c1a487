"""From logits to one token: temperature, top-p, and a seed per request."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Raises ValueError for values that mean nothing."""

    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample only among the likeliest tokens that together have this probability."""
    seed: int = 0
    """The same seed, prompt and model give the same tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature} must be a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed} must be an integer from 0 to 2^63 - 1")


def sample(logits: Float[Tensor, " v"], params: SamplingParams, generator: torch.Generator) -> int:
    """Choose a token; with temperature 0 the likeliest, ties to the lower id."""
    if params.temperature == 0:
        return int((logits == logits.max()).nonzero()[0])
    probabilities = (logits.double() / params.temperature).softmax(-1)
    if params.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token stays while the likelier ones before it have not reached top_p: never none.
        dropped = ordered.cumsum(-1) - ordered >= params.top_p
        probabilities[order[dropped]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))
