"""Speculation per sequence: prompt lookup, acceptance rates, and how many drafts pay."""

from array import array
from collections.abc import Sequence

import numpy as np

from sounding.engine.network import Streams

_LOOKUP_TOKENS = (4, 3)  # lengths of the n-grams that are looked up, longest first
_LOOKUP_BACK = 1 << 16  # tokens that are searched

# Costs in steps of one sequence alone, as measured on a CPU: a step by itself,
# each sequence in it, and each further row of a sequence until a `Clock` has measured it.
_STEP, _SEQUENCE, _ROW = 0.8, 0.2, 0.1
_PRIOR = 0.7  # acceptance rate before the first verify
_WEIGHT = 0.1  # of the newest outcome in the acceptance rate
_CLOCK_WEIGHT = 0.3
_FIRST_STEPS = 4  # without drafts, before the first draft
_COMPARE_STEPS = 32  # with drafts, before one without
_FADE = 0.01  # decay of measured costs per step: one slow step must not end drafting
_REST_TOKENS = 64  # without drafts, after they did not pay


class Payoff:
    """Recent acceptance rate of one draft source, and the number of drafts it justifies."""

    def __init__(self) -> None:
        self.rate = _PRIOR
        self._rest = 0

    def observe(self, drafted: int, accepted: int) -> None:
        """Update the rate from verified drafts; those behind a rejected one do not count."""
        outcomes = [1.0] * accepted + [0.0] * (accepted < drafted)
        for outcome in outcomes:
            self.rate += _WEIGHT * (outcome - self.rate)

    def best_count(
        self, most: int, *, running: int, guess_cost: float, row_cost: float = _ROW
    ) -> int:
        """Number of drafts that maximises tokens per time; 0 if none pay.

        `running` sequences share a step; a draft costs `guess_cost` steps to make and `row_cost` to
        verify.
        """
        cost = guess_cost + row_cost
        if self._rest:
            self._rest -= 1
            return 0
        best, best_rate = 0, 1 / step_cost(0, running, cost)
        tokens = 1.0
        for count in range(1, most + 1):
            tokens += self.rate**count
            rate = tokens / step_cost(count, running, cost)
            if rate > best_rate:
                best, best_rate = count, rate
        if best == 0 and most > 0:
            self._rest, self.rate = _REST_TOKENS, _PRIOR
        return best


def step_cost(count: int, running: int, cost: float) -> float:
    """One sequence's share of a step with `count` drafts at `cost` each."""
    return _STEP / max(1, running) + _SEQUENCE + count * cost


class Clock:
    """Measured cost of drafts on this machine, to make and verify, in steps of one sequence.

    Machines differ by far in it. It decides how fast tokens come, never which tokens.
    """

    def __init__(self, guess_cost: float) -> None:
        """`guess_cost` is assumed until a draft is timed, and again when that was long ago."""
        self._assumed = guess_cost
        self.guess_cost, self.row_cost = guess_cost, _ROW
        self._step_seconds = 0.0
        self._plain_steps = self._since_plain = 0

    @property
    def waits(self) -> bool:
        """True if a step without drafts is due, as the baseline for the others."""
        return self._plain_steps < _FIRST_STEPS or self._since_plain >= _COMPARE_STEPS

    def stepped(self, seconds: float, sequences: int, rows: int) -> None:
        """Record a step that verified `rows` rows; those beyond one per sequence were drafts."""
        guesses, plain = rows - sequences, _STEP + sequences * _SEQUENCE
        if guesses and self._step_seconds:
            self._since_plain += 1
            rest = max(0.0, seconds / self._step_seconds - plain)
            self.row_cost = _mean(self.row_cost, rest / guesses)
        elif not guesses:
            self._since_plain = 0
            self._plain_steps += 1
            one = seconds / plain
            if 1 < self._plain_steps <= _FIRST_STEPS:
                self._step_seconds = min(self._step_seconds, one)  # caches were cold at first
            else:
                self._step_seconds = _mean(self._step_seconds, one)
            self.row_cost += _FADE * (_ROW - self.row_cost)
            self.guess_cost += _FADE * (self._assumed - self.guess_cost)

    def guessed(self, seconds: float, guesses: int) -> None:
        """Record the time in which the MTP block made `guesses` drafts."""
        if self._step_seconds:
            self.guess_cost = _mean(self.guess_cost, seconds / guesses / self._step_seconds)


def _mean(old: float, new: float) -> float:
    """A moving mean, which begins at the first value."""
    return old + _CLOCK_WEIGHT * (new - old) if old else new


class Lookup:
    """Prompt lookup: finds the previous occurrence of the last tokens."""

    def __init__(self) -> None:
        self._text = array("i")

    def find(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the previous occurrence; [] if there is none.

        `tokens` must extend those of the previous call.
        """
        self._text.extend(tokens[len(self._text) :])
        size = self._text.itemsize
        text = self._text[-_LOOKUP_BACK:].tobytes()
        for length in _LOOKUP_TOKENS:
            pattern = text[len(text) - length * size :]
            if len(pattern) < length * size:
                continue
            at = text.rfind(pattern, 0, len(text) - size)
            while at % size and at >= 0:  # the match is not aligned to a token
                at = text.rfind(pattern, 0, at + len(pattern) - 1)
            if at >= 0:
                follows = array("i")
                start = at + len(pattern)
                follows.frombytes(text[start : start + count * size])
                return follows.tolist()
        return []


class Noted:
    """Streams of the last tokens, concatenated only when they are read: appending to one array
    at every token would copy all of them each time."""

    def __init__(self, streams: Streams) -> None:
        self._parts, self._rows = [streams], len(streams)

    def __len__(self) -> int:
        return self._rows

    def append(self, streams: Streams) -> None:
        """Append the streams of the next tokens."""
        self._parts.append(streams)
        self._rows += len(streams)

    def take(self, count: int) -> Streams:
        """Remove and return the first `count` rows."""
        whole = np.concatenate(self._parts)
        self._parts, self._rows = [whole[count:]], len(whole) - count
        return whole[:count]

    def keep(self, count: int) -> None:
        """Drop all rows but the last `count`."""
        self.take(self._rows - count)
        self._parts = [part.copy() for part in self._parts]


class Speculation:
    """The drafting state of one sequence."""

    def __init__(self) -> None:
        self.lookup, self.looked_up = Lookup(), Payoff()
        self.mtp = Payoff()
        self.source: Payoff | None = None
        """The source of the drafts that are being verified."""
        self.streams: Noted | None = None
        """Streams of the last tokens, which the MTP block has not read yet; None if it missed
        earlier ones."""

    def verified(self, drafted: int, accepted: int) -> None:
        """Record how many drafts were accepted."""
        if self.source is not None:
            self.source.observe(drafted, accepted)
        self.source = None
