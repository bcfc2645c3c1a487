"""The datasets of a run and their shares, as plain values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Share:
    """One dataset's share of a mixture, as a weight relative to the others'."""

    name: str
    path: str
    """Folder of the dataset, as `data tokenize` makes it."""
    weight: float
    final_weight: float | None = None
    """At the end, reached along a line; None: the weight does not change."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a dataset of a mixture has no name; give it one, such as 'corpus'")
        for kind, weight in (("weight", self.weight), ("final_weight", self.final_weight)):
            if weight is not None and not 0 <= weight < math.inf:
                raise ValueError(
                    f"{kind} of {self.name!r} = {weight!r} must be a finite number of at least 0"
                )
        if not self.weight and not self.final_weight:
            raise ValueError(
                f"the weight of {self.name!r} is 0 throughout, so it would never be read: leave "
                "it out, or give it a weight"
            )

    def at(self, progress: float) -> float:
        """The weight at this fraction, 0 to 1, of the run."""
        last = self.weight if self.final_weight is None else self.final_weight
        return self.weight + (last - self.weight) * progress


def require_mixture(shares: Sequence[Share]) -> None:
    """Raise ValueError unless these shares make a mixture that can be read from end to end."""
    names = [share.name for share in shares]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two datasets of a mixture are named {twice[0]!r}; rename one")
    for progress, when in ((0.0, "at first"), (1.0, "at the end")):
        if shares and not sum(share.at(progress) for share in shares):
            raise ValueError(f"all weights of the mixture are 0 {when}; one must be above")
