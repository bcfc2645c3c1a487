"""Routed experts divided over processes: tokens go to their experts, and results come back.

Every pair of a token and an expert is a row, as in the report: a token goes as often as it has
experts. Counts are exact, so nothing is padded and no token dropped. The sum over a token's experts
is taken where the token is, in order of their index, as in a process alone.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.ops import experts as ops
from sounding.ops.matmul import Weight
from sounding.ops.norm import upcast
from sounding.parallel.exchange import Route, exchange, move
from sounding.parallel.group import Group

PURPOSE = "experts"


class ExpertExchange:
    """`ops.experts` where this process has only its share of the experts."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def __call__(
        self,
        x: Float[Tensor, "t c"],
        chosen: Int[Tensor, "t k"],
        weights: Float[Tensor, "t k"],
        w1: Weight,
        w2: Weight,
        w3: Weight,
        *,
        limit: float,
        simulate: bool = False,
        always: Float[Tensor, "t c"] | None = None,
    ) -> Float[Tensor, "t c"]:
        """As `ops.experts`; w1, w2 and w3 are this process's."""
        group, held = self._group, w1.values.shape[0]
        order = chosen.flatten().argsort(stable=True)  # by expert, then by token
        token = order // chosen.shape[1]
        loads = chosen.flatten().bincount(minlength=held * group.size("expert"))
        asked = self._loads_of_others(loads)  # sender, expert of ours
        route = Route(
            "expert", loads.unflatten(0, (-1, held)).sum(1).tolist(), asked.sum(1).tolist()
        )
        rows = exchange(x[token], route, group, PURPOSE)
        shares = exchange(weights.flatten()[order, None], route, group, PURPOSE)
        experts = torch.arange(held, device=x.device).repeat(len(asked))
        experts = experts.repeat_interleave(asked.flatten())[:, None]
        if len(rows):
            results = ops.experts(rows, experts, shares, w1, w2, w3, limit=limit, simulate=simulate)
        else:  # nothing to compute, but the way back leads through here
            results = rows * shares
        # A row has the result of one expert, so rounding it back loses nothing.
        back = exchange(results.to(x.dtype), route.reverse, group, PURPOSE)
        output = torch.zeros_like(upcast(x)).index_add(0, token, upcast(back))
        return output if always is None else (output + upcast(always)).to(x.dtype)

    def _loads_of_others(self, loads: Int[Tensor, " e"]) -> Int[Tensor, "p h"]:
        """How many rows each process sends to each of this one's experts."""
        size = self._group.size("expert")
        each = [len(loads) // size] * size
        return move(loads, Route("expert", each, each), self._group, PURPOSE).unflatten(
            0, (size, -1)
        )
