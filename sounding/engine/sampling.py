"""From logits to one token: temperature, top-k, top-p, min-p, and a seed per request."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""Scores of every next token, [vocabulary]."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters. Raises ValueError for values out of range."""

    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample only among the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Sample only among this many likeliest tokens; 0 is no limit."""
    min_p: float = 0.0
    """Sample only among tokens at least this fraction as likely as the likeliest."""
    seed: int = 0
    """The same seed, prompt and model give the same tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature} must be a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.top_k < 2**63:
            raise ValueError(f"top_k = {self.top_k} must be a count of at least 1, or 0 for all")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p = {self.min_p} must be from 0 to 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed} must be an integer from 0 to 2^63 - 1")


def distribution(logits: Logits, params: SamplingParams) -> NDArray[np.float64]:
    """The probabilities that `sample` draws from: 0 for what the limits leave out.

    Raises ValueError for temperature 0, which draws nothing.
    """
    if params.temperature == 0:
        raise ValueError("temperature = 0 takes the likeliest token and has no distribution")
    probabilities = _softmax(logits.astype(np.float64) / params.temperature)
    _limit(probabilities, params)
    return probabilities


def sample(logits: Logits, params: SamplingParams, generator: np.random.Generator) -> int:
    """Choose a token; with temperature 0 the likeliest, ties to the lower id.

    Takes one number from the generator for every token sampled, so that how tokens are grouped into
    calls cannot change them. Each limit looks at the model's distribution at this temperature.
    """
    if params.temperature == 0:
        return int(logits.argmax())  # the first of equals
    probabilities = distribution(logits, params)
    reached = probabilities.cumsum()
    token = int(np.searchsorted(reached, generator.random() * reached[-1], side="right"))
    if token < len(reached):
        return token
    return int(probabilities.nonzero()[0][-1])  # the point was rounded up to the very end


def _limit(probabilities: NDArray[np.float64], params: SamplingParams) -> None:
    """Set to 0, in place, what the parameters leave out; never everything."""
    least = params.min_p * probabilities.max()
    if params.top_p < 1 or 0 < params.top_k < len(probabilities):
        order = (-probabilities).argsort(kind="stable")
        ordered = probabilities[order]
        # A token stays while the likelier ones before it have not reached top_p: never none.
        dropped = ordered.cumsum() - ordered >= params.top_p
        if params.top_k:
            dropped[params.top_k :] = True
        probabilities[order[dropped]] = 0
    probabilities[probabilities < least] = 0


def logprob_of(logits: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural logarithm of a token's probability under the logits as the model gave them, and the
    `top` likeliest tokens with theirs."""
    logprobs = log_softmax(logits)
    order = (-logprobs).argsort(kind="stable")[:top] if top else ()
    return float(logprobs[token]), [(int(other), float(logprobs[other])) for other in order]


def log_softmax(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, along the last dimension, in double precision."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def logsumexp(logits: Logits) -> float:
    """The natural logarithm of the sum of the exponentials."""
    largest = logits.max()
    return float(largest + np.log(np.exp(logits - largest).sum()))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max())
    made: NDArray[np.float64] = exponentials / exponentials.sum()
    return made
