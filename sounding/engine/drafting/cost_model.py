"""What guessing ahead knows of one sequence: where its text repeats, and whether guesses pay."""

from array import array
from collections.abc import Sequence

import numpy as np

from sounding.engine.network import Streams

_LOOKUP_TOKENS = (4, 3)  # as many last tokens must have stood together before
_LOOKUP_BACK = 1 << 16  # tokens that are searched

# Costs in steps of one sequence alone, as measured on a CPU: what a step takes whoever is in it,
# what each sequence adds, what each further row of a sequence adds until a `Clock` knows better.
_STEP, _SEQUENCE, _ROW = 0.8, 0.2, 0.1
_PRIOR = 0.7  # how often a guess is right, before anything is known
_WEIGHT = 0.1  # of the newest guess
_CLOCK_WEIGHT = 0.3
_FIRST_STEPS = 4  # without guesses, before there are any
_COMPARE_STEPS = 32  # with guesses, before there is one without
_FADE = 0.01  # a step's share of forgetting what guesses took: one slow moment must not end them
_REST_TOKENS = 64  # without guesses, after they did not pay


class Payoff:
    """How often one way of guessing was right lately, and how many guesses that is worth."""

    def __init__(self) -> None:
        self.rate = _PRIOR
        self._rest = 0

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn from verified guesses; those behind the first wrong one say nothing."""
        outcomes = [1.0] * accepted + [0.0] * (accepted < drafted)
        for outcome in outcomes:
            self.rate += _WEIGHT * (outcome - self.rate)

    def best_count(
        self, most: int, *, running: int, guess_cost: float, row_cost: float = _ROW
    ) -> int:
        """How many guesses make the most tokens per time; 0 where none pay.

        `running` sequences share a step; a guess costs `guess_cost` steps to make and `row_cost` to
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
    """One sequence's share of a step in which it has `count` guesses, which cost so much each."""
    return _STEP / max(1, running) + _SEQUENCE + count * cost


class Clock:
    """What guesses take on this machine, to make and to verify, in steps of one sequence alone.

    Measured, because that differs by far; it decides how fast tokens come and never which.
    """

    def __init__(self, guess_cost: float) -> None:
        """`guess_cost` is assumed until a guess was made, and again when that was long ago."""
        self._assumed = guess_cost
        self.guess_cost, self.row_cost = guess_cost, _ROW
        self._step_seconds = 0.0
        self._plain_steps = self._since_plain = 0

    @property
    def waits(self) -> bool:
        """Whether a step without guesses is due, to compare others with."""
        return self._plain_steps < _FIRST_STEPS or self._since_plain >= _COMPARE_STEPS

    def stepped(self, seconds: float, sequences: int, rows: int) -> None:
        """A step of so many answers verified so many rows; those beyond one each were guesses."""
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
        """So many guesses were made by the MTP block."""
        if self._step_seconds:
            self.guess_cost = _mean(self.guess_cost, seconds / guesses / self._step_seconds)


def _mean(old: float, new: float) -> float:
    """A moving mean, which begins at the first value."""
    return old + _CLOCK_WEIGHT * (new - old) if old else new


class Lookup:
    """Finds where the last tokens of a text stood before."""

    def __init__(self) -> None:
        self._text = array("i")

    def find(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the last time; none if there was no such time.

        `tokens` begin with those of the call before.
        """
        self._text.extend(tokens[len(self._text) :])
        size = self._text.itemsize
        text = self._text[-_LOOKUP_BACK:].tobytes()
        for length in _LOOKUP_TOKENS:
            pattern = text[len(text) - length * size :]
            if len(pattern) < length * size:
                continue
            at = text.rfind(pattern, 0, len(text) - size)
            while at % size and at >= 0:  # found in the middle of a number
                at = text.rfind(pattern, 0, at + len(pattern) - 1)
            if at >= 0:
                follows = array("i")
                start = at + len(pattern)
                follows.frombytes(text[start : start + count * size])
                return follows.tolist()
        return []


class Noted:
    """Streams of the tokens fed last, in pieces until somebody reads them: putting each token's
    behind the others as it comes would copy them all every time."""

    def __init__(self, streams: Streams) -> None:
        self._parts, self._rows = [streams], len(streams)

    def __len__(self) -> int:
        return self._rows

    def append(self, streams: Streams) -> None:
        """What was fed next."""
        self._parts.append(streams)
        self._rows += len(streams)

    def take(self, count: int) -> Streams:
        """The first `count` rows, which are gone then."""
        whole = np.concatenate(self._parts)
        self._parts, self._rows = [whole[count:]], len(whole) - count
        return whole[:count]

    def keep(self, count: int) -> None:
        """Forget all rows but the last `count`."""
        self.take(self._rows - count)
        self._parts = [part.copy() for part in self._parts]


class Speculation:
    """What guessing knows of one sequence."""

    def __init__(self) -> None:
        self.lookup, self.looked_up = Lookup(), Payoff()
        self.mtp = Payoff()
        self.source: Payoff | None = None
        """Of the guesses that are being verified."""
        self.streams: Noted | None = None
        """Of the last tokens fed, which the MTP block has not read yet; None where it has missed
        some before them."""

    def verified(self, drafted: int, accepted: int) -> None:
        """Learn what became of the guesses."""
        if self.source is not None:
            self.source.observe(drafted, accepted)
        self.source = None
