"""Rows sent from every process to every other, with exact counts, and their gradients sent back.

One primitive carries tokens to experts, the ends of sequences to the next process and matrices to
the process that updates them. Every process must call it, in the same order, also with no rows; so
must the backward pass. Hence what is received always needs a gradient, and whoever calls this lets
every result depend on it, even on no rows. Backward then runs in the reverse order of forward, as
autograd takes the newest node first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sounding.parallel.group import Axis, Group


@dataclass(frozen=True)
class Route:
    """How many rows go to each process along an axis (None: all processes), and come from it."""

    axis: Axis | None
    send: Sequence[int]
    receive: Sequence[int]

    @property
    def reverse(self) -> "Route":
        """The way back."""
        return Route(self.axis, self.receive, self.send)


def exchange(rows: Tensor, route: Route, group: Group, purpose: str) -> Tensor:
    """Send rows in the order of their receivers; returns those that came, by sender.

    Differentiable: the backward pass sends gradients back. `purpose` is counted in `group.sent`.
    """
    if not torch.is_grad_enabled():
        return move(rows, route, group, purpose)
    # An input that needs a gradient even where none of the rows does.
    always = torch.zeros((), requires_grad=True)
    received: Tensor = _Exchange.apply(rows, always, route, group, purpose)
    return received


def move(rows: Tensor, route: Route, group: Group, purpose: str) -> Tensor:
    """`exchange` without gradients."""
    received = rows.new_empty(sum(route.receive), *rows.shape[1:])
    own = group.rank if route.axis is None else group.rank_in(route.axis)
    row_bytes = rows.shape[1:].numel() * rows.element_size()
    group.sent[purpose] += (sum(route.send) - route.send[own]) * row_bytes
    dist.all_to_all_single(
        received,
        rows.contiguous(),
        list(route.receive),
        list(route.send),
        group=None if route.axis is None else group.along(route.axis),
    )
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, always: Tensor, route: Route, group: Group, purpose: str
    ) -> Tensor:
        ctx.way = (route.reverse, group, purpose)
        return move(rows, route, group, purpose)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        return move(gradients[0], *ctx.way), None, None, None, None
