"""Choose among candidates for a gap, and say how sure the choice is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sounding.completion.python_source import Judged

_UNREAD = 1.5  # nats that a name costs which nothing reads
_MOST_MARGIN, _LEAST_LOGPROB = 20.0, -20.0

# Logistic formula of `confidence`, over the features of `_features`, in their order. Fitted by
# `scripts/fit-confidence CORPUS --lines 320`.
_COEFFICIENTS = (0.0020, 0.8306, -0.0116, 4.7802, -0.0522, 2.4947, -0.6598)
_INTERCEPT = -0.1192


_UNJUDGED = Judged("")


@dataclass
class Candidate:
    """A text for a gap."""

    text: str
    tokens: int = 0
    """Generated for it."""
    written: int = 0
    """How often the network wrote it."""
    likeliest: bool = False
    """True if it is the network's likeliest text, or the one that was asked for."""
    copied: bool = False
    """True if it is a copy of another line."""
    logprob: float = -math.inf
    """Natural logarithm of its probability where it was written first."""
    judged: Judged = _UNJUDGED
    score: float | None = None
    """Log probability of it and of what follows, in the order of the file; None if not scored."""
    num_tokens: int = 0
    """Tokens of the text itself that were scored."""

    @property
    def order(self) -> tuple[bool, bool, int, float]:
        """Sorts the best first."""
        cost = _UNREAD * max(0, self.judged.unread)
        fault = bool(self.judged.fault)
        return not self.text.strip(), fault, self.judged.missing, cost - self.value

    @property
    def value(self) -> float:
        """Its log probability, with what follows where that was scored."""
        return self.logprob if self.score is None else self.score


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, the best first."""
    return sorted(candidates, key=lambda one: one.order)


def confidence(best: Candidate, evidence: Sequence[float]) -> float:
    """Probability from 0 to 1 that a candidate with these `features` is exactly what belongs there.

    0 where it cannot be correct.
    """
    if best.judged.fault or not best.text.strip():
        return 0.0
    value = _INTERCEPT + math.fsum(
        weight * feature for weight, feature in zip(_COEFFICIENTS, evidence, strict=True)
    )
    return 1 / (1 + math.exp(-value))


def features(best: Candidate, others: Sequence[Candidate]) -> tuple[float, ...]:
    """What the confidence in a candidate is estimated from, beside the others.

    Its log probability as the answer to the gap, and per token in the order of the file; the
    distance to the next best; the share of the network's lines that are this one, and if its
    likeliest is; if it is a copy; its length.
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
