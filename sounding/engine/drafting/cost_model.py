"""How many drafts pay: acceptance, and measured costs of drafting and verifying.

Costs are in steps of one sequence by itself. They decide how fast tokens come, never which tokens.
"""

from collections.abc import Mapping, Sequence

# As measured on a CPU: a step by itself, each sequence in it, and, until a `CostModel` has
# measured it, each further row of a sequence.
_STEP, _SEQUENCE, _ROW = 0.8, 0.2, 0.1
# With experts on disk a further row reads new ones: of fifteen tokens' experts, measured with
# V4-Flash, each is used 2.3 times. Steps that verify correct it soon.
STREAMED_ROW = 0.45
_FIRST_RATE = 0.7  # acceptance rate before the first verify
_FIRST_BLOCK = (4.0, 2.5)  # drafts verified and accepted of a block, before the first
_OUTCOME_WEIGHT = 0.1  # of the newest outcome in the acceptance rate
_COST_WEIGHT = 0.3  # of the newest measurement in a cost
_FIRST_STEPS = 4  # without drafts, before the first draft
_COMPARE_STEPS = 32  # with drafts, before one without
_FADE = 0.01  # decay of measured costs per step: one slow step must not end drafting
_PAUSE_CALLS = 64  # without drafts, after they did not pay


class AcceptanceRate:
    """Recent acceptance rate of one draft source in one sequence."""

    def __init__(self) -> None:
        self.rate = _FIRST_RATE
        self._pause = 0

    def observe(self, drafted: int, accepted: int) -> None:
        """Update the rate from verified drafts; those behind a rejected one do not count."""
        outcomes = [1.0] * accepted + [0.0] * (accepted < drafted)
        for outcome in outcomes:
            self.rate += _OUTCOME_WEIGHT * (outcome - self.rate)

    def best_count(
        self, most: int, *, running: int, draft_cost: float, row_cost: float = _ROW
    ) -> int:
        """Number of drafts that maximises tokens per time; 0 if none pays, and then for a while.

        `running` sequences share a step; a draft costs `draft_cost` to make and `row_cost` to
        verify.
        """
        cost = draft_cost + row_cost
        if self._pause:
            self._pause -= 1
            return 0
        best, best_speed = 0, 1 / _step_cost(0, running, cost)
        tokens = 1.0
        for count in range(1, most + 1):
            tokens += self.rate**count
            speed = tokens / _step_cost(count, running, cost)
            if speed > best_speed:
                best, best_speed = count, speed
        if best == 0 and most > 0:
            self._pause, self.rate = _PAUSE_CALLS, _FIRST_RATE
        return best


class BlockGain:
    """What blocks of drafts of one source have brought lately in one sequence."""

    def __init__(self) -> None:
        self._verified, self._accepted = _FIRST_BLOCK
        self._pause = 0

    def observe(self, drafted: int, accepted: int) -> None:
        """Record a block of which `drafted` drafts were verified, which may be none."""
        self._verified += _OUTCOME_WEIGHT * (drafted - self._verified)
        self._accepted += _OUTCOME_WEIGHT * (accepted - self._accepted)

    def pays(self, *, running: int, block_cost: float, row_cost: float) -> bool:
        """True if another block brings tokens faster than none; if not, False for a while."""
        if self._pause:
            self._pause -= 1
            return False
        with_block = block_cost + _step_cost(0, running, 0.0) + self._verified * row_cost
        if (1 + self._accepted) / with_block > 1 / _step_cost(0, running, 0.0):
            return True
        self._pause = _PAUSE_CALLS
        self._verified, self._accepted = _FIRST_BLOCK
        return False


def best_prefix(
    survival: Sequence[float], *, running: int, block_cost: float, row_cost: float
) -> int:
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
        speed = tokens / (block_cost + _step_cost(count, running, row_cost))
        if speed > best_speed:
            best, best_speed = count, speed
    return best


def _step_cost(count: int, running: int, cost: float) -> float:
    """One sequence's share of a step with `count` drafts at `cost` each."""
    return _STEP / max(1, running) + _SEQUENCE + count * cost


class CostModel:
    """Measured costs of drafts on this machine, to make and to verify: machines differ widely."""

    def __init__(self, assumed_costs: Mapping[str, float], row_cost: float = _ROW) -> None:
        """`assumed_costs` of making a draft, or a block of them, by drafter, and `row_cost` of
        verifying one: used until one is timed, and again when that was long ago."""
        self._assumed = dict(assumed_costs)
        self.draft_costs = dict(assumed_costs)
        self.row_cost = self._assumed_row = row_cost
        self._step_seconds = 0.0
        self._plain_steps = self._since_plain = 0

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
            self.row_cost = _mean(self.row_cost, rest / drafts)
        elif not drafts:
            self._since_plain = 0
            self._plain_steps += 1
            one = seconds / plain
            if 1 < self._plain_steps <= _FIRST_STEPS:
                self._step_seconds = min(self._step_seconds, one)  # caches were cold at first
            else:
                self._step_seconds = _mean(self._step_seconds, one)
            self.row_cost += _FADE * (self._assumed_row - self.row_cost)
            for name, assumed in self._assumed.items():
                self.draft_costs[name] += _FADE * (assumed - self.draft_costs[name])

    def record_drafting(self, drafter: str, seconds: float, drafts: int) -> None:
        """Record the time in which a drafter made `drafts` drafts, or so many blocks."""
        if self._step_seconds and self._assumed[drafter]:
            cost = seconds / drafts / self._step_seconds
            self.draft_costs[drafter] = _mean(self.draft_costs[drafter], cost)


def _mean(old: float, new: float) -> float:
    """A moving mean, which begins at the first value."""
    return old + _COST_WEIGHT * (new - old) if old else new
