"""Measured costs of drafting and verifying, and how much of a block pays.

Costs are in steps of one sequence by itself. They decide how fast tokens come, never which tokens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# As measured on a CPU: a step by itself, each sequence in it, and, until a `CostModel` has
# measured it, each further row of a sequence.
_STEP, _SEQUENCE, _ROW = 0.8, 0.2, 0.1
# With experts on disk a further row reads new ones: of fifteen tokens' experts, measured with
# V4-Flash, each is used 2.3 times. Steps that verify correct it soon.
STREAMED_ROW = 0.45
_ROW_NAME = "row"  # no drafter's
_COST_WEIGHT = 0.15  # of the newest measurement in a cost
_FIRST_STEPS = 4  # without drafts, before the first draft
_COMPARE_STEPS = 64  # with drafts, before one without
_MOST_TIMES = 4  # that a measurement counts of the last mean: one slow step ends no drafting


class Prices(NamedTuple):
    """What a source's drafts cost a sequence now."""

    step: float
    """Its share of a step without drafts."""
    draft: float
    """Of making a draft, or a block of them."""
    row: float
    """Of verifying one more draft."""

    @property
    def plain_speed(self) -> float:
        """Tokens per time without drafts."""
        return 1 / self.step


def best_prefix(survival: Sequence[float], prices: Prices) -> int:
    """How many drafts of a block, which is made already, to verify: as many as maximise tokens per
    time, by the probability of each to be accepted if all before it were.

    The choice may look at all of the block: whether a draft is verified does not change which token
    is chosen at its place.
    """
    best, best_speed = 0, 0.0
    tokens, reached = 1.0, 1.0
    for count in range(len(survival) + 1):
        if count:
            reached *= survival[count - 1]
            tokens += reached
        speed = tokens / (prices.draft + prices.step + count * prices.row)
        if speed > best_speed:
            best, best_speed = count, speed
    return best


class CostModel:
    """Measured costs of drafts on this machine, to make and to verify: machines differ widely."""

    def __init__(self, assumed_costs: Mapping[str, float], row_cost: float = _ROW) -> None:
        """`assumed_costs` of making a draft, or a block of them, by drafter, and `row_cost` of
        verifying one, until they are timed; what is assumed to be free stays so."""
        self.draft_costs = dict(assumed_costs)
        self.row_cost = row_cost
        self._step_seconds = 0.0
        self._plain_steps = self._since_plain = 0
        self._measured: Counter[str] = Counter()
        """Measurements of each cost so far: the first ones weigh more."""

    def prices(self, drafter: str, running: int) -> Prices:
        """For each of `running` sequences that share a step."""
        step = _STEP / max(1, running) + _SEQUENCE
        return Prices(step, self.draft_costs[drafter], self.row_cost)

    @property
    def baseline_due(self) -> bool:
        """True if a step without drafts is due, to compare the others with."""
        return self._plain_steps < _FIRST_STEPS or self._since_plain >= _COMPARE_STEPS

    def record_step(self, seconds: float, sequences: int, rows: int) -> None:
        """Record a step that verified `rows` rows; those beyond one per sequence were drafts."""
        drafts, plain = rows - sequences, _STEP + sequences * _SEQUENCE
        if drafts and self._step_seconds:
            self._since_plain += 1
            rest = max(0.0, seconds / self._step_seconds - plain)
            self.row_cost = self._bounded_mean(_ROW_NAME, self.row_cost, rest / drafts)
        elif not drafts:
            self._since_plain = 0
            self._plain_steps += 1
            one = seconds / plain
            if 1 < self._plain_steps <= _FIRST_STEPS:
                self._step_seconds = min(self._step_seconds, one)  # caches were cold at first
            else:
                self._step_seconds = _mean(self._step_seconds, one)

    def record_drafting(self, drafter: str, seconds: float, drafts: int) -> None:
        """Record the time in which a drafter made `drafts` drafts, or so many blocks."""
        if self._step_seconds and self.draft_costs[drafter]:
            cost = seconds / drafts / self._step_seconds
            old = self.draft_costs[drafter]
            self.draft_costs[drafter] = self._bounded_mean(drafter, old, cost)

    def _bounded_mean(self, name: str, old: float, new: float) -> float:
        """A moving mean that no single measurement can raise far."""
        self._measured[name] += 1
        weight = max(_COST_WEIGHT, 1 / (1 + self._measured[name]))
        return _mean(old, min(new, _MOST_TIMES * old) if old else new, weight)


def _mean(old: float, new: float, weight: float = _COST_WEIGHT) -> float:
    """A moving mean, which begins at the first value."""
    return old + weight * (new - old) if old else new
