"""Choices by seed. Only `random.random` is used, whose sequence Python guarantees for a seed."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A source of choices: the same seed gives the same choices in every version of Python."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)

    def below(self, limit: int) -> int:
        """A whole number from 0 to below `limit`."""
        return int(self._rng.random() * limit)

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self._rng.random() < share

    def one(self, items: Sequence[T]) -> T:
        """One of some items."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One of some items with their weights."""
        at = self._rng.random() * sum(weight for _, weight in items)
        for item, weight in items:
            at -= weight
            if at < 0:
                return item
        return items[-1][0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in another order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(len(left))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` of the items, or all where there are fewer, in their order."""
        chosen = set(self.shuffled(range(len(items)))[:count])
        return [item for index, item in enumerate(items) if index in chosen]
