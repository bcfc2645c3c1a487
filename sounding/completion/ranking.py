"""Rank candidates for a gap, and estimate the confidence in the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sounding.completion.python_source import Judged

_UNREAD = 1.5  # cost in nats of a name that nothing reads
_MOST_MARGIN, _LEAST_LOGPROB = 20.0, -20.0

# Logistic formula of `confidence` over the features of `features`, in their order. Fitted by
# `scripts/fit-confidence CORPUS --lines 320`.
_COEFFICIENTS = (0.0020, 0.8306, -0.0116, 4.7802, -0.0522, 2.4947, -0.6598)
_INTERCEPT = -0.1192


_UNJUDGED = Judged("")


@dataclass
class Candidate:
    """A candidate text for a gap."""

    text: str
    tokens: int = 0
    """Number of tokens generated for it."""
    written: int = 0
    """How often the network wrote it."""
    likeliest: bool = False
    """True if it is the network's likeliest text, or the requested sample."""
    copied: bool = False
    """True if it is a copy of another line of the file."""
    logprob: float = -math.inf
    """Natural logarithm of its probability when generated; the highest if generated repeatedly."""
    judged: Judged = _UNJUDGED
    score: float | None = None
    """Log probability of it and the text after it, in file order; None if not scored."""
    num_tokens: int = 0
    """Number of scored tokens of the text itself."""

    @property
    def order(self) -> tuple[bool, bool, int, float]:
        """Sort key; the best candidate comes first."""
        cost = _UNREAD * max(0, self.judged.unread)
        fault = bool(self.judged.fault)
        return not self.text.strip(), fault, self.judged.missing, cost - self.value

    @property
    def value(self) -> float:
        """Its log probability, including the text after it if scored."""
        return self.logprob if self.score is None else self.score


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, best first."""
    return sorted(candidates, key=lambda one: one.order)


def confidence(best: Candidate, evidence: Sequence[float]) -> float:
    """Probability from 0 to 1 that a candidate with these `features` is exactly right.

    0 if it cannot be correct.
    """
    if best.judged.fault or not best.text.strip():
        return 0.0
    value = _INTERCEPT + math.fsum(
        weight * feature for weight, feature in zip(_COEFFICIENTS, evidence, strict=True)
    )
    return 1 / (1 + math.exp(-value))


def features(best: Candidate, others: Sequence[Candidate]) -> tuple[float, ...]:
    """Features of a candidate among the others, for its confidence.

    Its log probability as the answer to the gap, and per token in file order; the margin to the
    next best; the share of the network's lines that equal it; whether it is the network's likeliest
    line; whether it is a copy; its length.
    """
    rivals = [one.value for one in others if not one.judged.fault]
    second = max(rivals, default=-math.inf)
    margin = _MOST_MARGIN if second == -math.inf else best.value - second
    margin = min(_MOST_MARGIN, max(-_MOST_MARGIN, margin))
    share = best.written / max(1, best.written + sum(one.written for one in others))
    return (
        max(best.logprob, _LEAST_LOGPROB),
        0.0 if best.score is None else best.score / max(1, best.num_tokens),
        margin,
        share,
        float(best.likeliest),
        float(best.copied),
        math.log1p(len(best.text.strip())),
    )
