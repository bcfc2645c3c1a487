"""Seeded random choices, from `random.random` only: Python guarantees its sequence for a seed."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A random generator that makes the same choices for a seed in every version of Python."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)

    def below(self, limit: int) -> int:
        """A random integer from 0 to `limit` - 1."""
        return int(self._rng.random() * limit)

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self._rng.random() < share

    def one(self, items: Sequence[T]) -> T:
        """A randomly chosen item."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """A randomly chosen item, from (item, weight) pairs."""
        at = self._rng.random() * sum(weight for _, weight in items)
        for item, weight in items:
            at -= weight
            if at < 0:
                return item
        return items[-1][0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(len(left))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` random items in their order, or all if there are fewer."""
        chosen = set(self.shuffled(range(len(items)))[:count])
        return [item for index, item in enumerate(items) if index in chosen]
