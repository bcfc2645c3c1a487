"""What the drafts of a source bring in a sequence, and when a source that was not chosen is tried.

Speeds are in tokens per step of one sequence by itself, in which costs are given as well. They
decide how fast tokens come, never which tokens.
"""

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple

from sounding.engine.drafting.cost_model import Prices

_FIRST_RATE = 0.7  # acceptance rate before the first verify
_FIRST_BLOCK = (4.0, 2.5)  # drafts verified and accepted of a block, before the first
_FIRST_AGE, _INHERITED_AGE = 2, 8  # observations that a first estimate, and another's, count for
_LEAST_WEIGHT = 0.04  # of the newest outcome in an estimate
_FIRST_INTERVAL, _LONGEST_INTERVAL = 16, 512  # rounds between two trials
_TRIAL_ROUNDS = 3


class Plan(NamedTuple):
    """How many drafts of a source to make, and the speed that is expected of them."""

    drafts: int
    speed: float


class Acceptance(ABC):
    """The outcomes of one source in one sequence.

    A source that promises less than another is tried again after some rounds, twice as many each
    time: text changes, and a few unlucky drafts must not end a good source.
    """

    def __init__(self) -> None:
        self._age = _FIRST_AGE
        self.interval = _FIRST_INTERVAL
        """Rounds from one trial to the next."""
        self._waited = self._trial = 0

    def inherited(self) -> "Acceptance":
        """The first estimate of another sequence."""
        made = copy.copy(self)
        made._age = min(self._age, _INHERITED_AGE)
        made._trial = 0
        return made

    def share_schedule(self, other: "Acceptance") -> None:
        """Wait as long for the next trial as another one, in whose sequence there was a round."""
        self.interval, self._waited = other.interval, other._waited

    @abstractmethod
    def plan(self, most: int, prices: Prices) -> Plan:
        """The number of up to `most` drafts that brings tokens the fastest; 0 if none does."""

    def observe(self, drafted: int, accepted: int) -> None:
        """Record verified drafts; of a block none may have been worth verifying."""
        self._age += 1
        self._update(drafted, accepted)

    @property
    def is_due(self) -> bool:
        """True if it is to be tried, whatever it promises."""
        return self._trial > 0 or self._waited >= self.interval

    def take_part(self) -> None:
        """Count a round of drafts, chosen or in a trial."""
        if self._trial:
            self._trial -= 1
        elif self.is_due:
            self.interval = min(2 * self.interval, _LONGEST_INTERVAL)
            self._trial = _TRIAL_ROUNDS - 1
            self._age = min(self._age, _INHERITED_AGE)
        else:
            self.interval = _FIRST_INTERVAL
        self._waited = 0

    def pass_over(self) -> None:
        """Count a round for which another source, or none, promised more."""
        self._waited += 1

    @abstractmethod
    def _update(self, drafted: int, accepted: int) -> None: ...

    def _mean(self, old: float, new: float) -> float:
        return old + max(_LEAST_WEIGHT, 1 / self._age) * (new - old)


class AcceptanceRate(Acceptance):
    """Recent acceptance rate of drafts that are made one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = _FIRST_RATE

    def plan(self, most: int, prices: Prices) -> Plan:
        best = Plan(0, prices.plain_speed)
        tokens = 1.0
        for count in range(1, most + 1):
            tokens += self.rate**count
            speed = tokens / (prices.step + count * (prices.draft + prices.row))
            if speed > best.speed:
                best = Plan(count, speed)
        return best

    def _update(self, drafted: int, accepted: int) -> None:
        # Drafts behind a rejected one say nothing.
        for outcome in [1.0] * accepted + [0.0] * (accepted < drafted):
            self.rate = self._mean(self.rate, outcome)


class BlockAcceptance(Acceptance):
    """What blocks of drafts have brought lately."""

    def __init__(self) -> None:
        super().__init__()
        self._verified, self._accepted = _FIRST_BLOCK

    def plan(self, most: int, prices: Prices) -> Plan:
        share = min(1.0, most / max(1.0, self._verified))
        with_block = prices.step + prices.draft + share * self._verified * prices.row
        speed = (1 + share * self._accepted) / with_block
        if speed > prices.plain_speed:
            return Plan(most, speed)
        return Plan(0, prices.plain_speed)

    def _update(self, drafted: int, accepted: int) -> None:
        self._verified = self._mean(self._verified, float(drafted))
        self._accepted = self._mean(self._accepted, float(accepted))
