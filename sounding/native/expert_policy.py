"""Which experts of a layer stay in memory after a step: a rule that sees what steps use.

The rule never changes a result, only how often the disk is read.
"""

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

_DECAY = 0.98  # of a count per step in which its layer is used


@runtime_checkable
class ExpertPolicy(Protocol):
    """Chooses what to keep."""

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """A step uses these experts, in the order of the last token that needs each."""

    def keep(self, layer: int, experts: Collection[int], count: int) -> set[int]:
        """At most `count` of these experts, the ones to keep."""


class LeastRecentlyUsed:
    """Keeps the experts that were used last.

    A step of many tokens leaves the same experts as its tokens one by one.
    """

    def __init__(self) -> None:
        self._used: dict[tuple[int, int], int] = {}
        self._clock = 0

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """See `ExpertPolicy`."""
        for expert in experts:
            self._clock += 1
            self._used[layer, expert] = self._clock

    def keep(self, layer: int, experts: Collection[int], count: int) -> set[int]:
        """See `ExpertPolicy`."""
        return set(sorted(experts, key=lambda expert: -self._used.get((layer, expert), 0))[:count])


class MostFrequentlyUsed:
    """Keeps the experts that were used most often, old uses counting less; then the last used."""

    def __init__(self) -> None:
        self._recent = LeastRecentlyUsed()
        self._counts: dict[tuple[int, int], float] = {}
        self._steps: dict[int, int] = {}

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """See `ExpertPolicy`."""
        self._recent.use(layer, experts)
        step = self._steps[layer] = self._steps.get(layer, 0) + 1
        for expert in experts:
            # A use at step s counts DECAY^-s: all counts decay alike without being touched.
            self._counts[layer, expert] = self._counts.get((layer, expert), 0.0) + _DECAY**-step
        if step > 10_000:  # long before the numbers overflow
            self._steps[layer] = 0
            for key in [key for key in self._counts if key[0] == layer]:
                self._counts[key] *= _DECAY**step

    def keep(self, layer: int, experts: Collection[int], count: int) -> set[int]:
        """See `ExpertPolicy`."""
        recent = list(self._recent.keep(layer, experts, len(experts)))
        recent.sort(key=lambda expert: -self._counts.get((layer, expert), 0.0))
        return set(recent[:count])
