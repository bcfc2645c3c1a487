"""Whole matrices for Muon: each at one process, which orthogonalises it for all.

FSDP2 cuts a matrix by rows, and Muon needs it whole. Every matrix has an owner; the parts of what
is to be orthogonalised go to it, and parts of the direction come back. Matrices are dealt by the
work they make, the largest first to the process with the least. Stacks of experts need none of
this: they are cut between matrices. Source: docs/training.md 5.2.
"""

import heapq
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sounding.parallel.exchange import Route, move
from sounding.parallel.group import Group

PURPOSE = "matrices"


def owners(shapes: Sequence[torch.Size], world: int) -> list[int]:
    """The owner of every matrix: by decreasing work, each to the process with the least so far.

    Work is that of a Newton-Schulz iteration, products of the smaller Gram matrix.
    """
    loads = [(0, rank) for rank in range(world)]
    found = [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: -work_of(shapes[index])):
        load, rank = heapq.heappop(loads)
        found[index] = rank
        heapq.heappush(loads, (load + work_of(shapes[index]), rank))
    return found


def work_of(shape: torch.Size) -> int:
    """Multiplications of one Newton-Schulz iteration on a matrix of this shape."""
    small, large = sorted(shape)
    return small * small * (2 * large + small)


class WholeMatrices:
    """Takes parts of cut matrices to their owners and back."""

    def __init__(self, params: Sequence[Tensor], group: Group) -> None:
        """`params` are DTensors with two dimensions, cut by rows over all processes."""
        self._group = group
        self._shapes = [param.shape for param in params]
        self._owners = owners(self._shapes, group.world)
        self.owned = [at for at, rank in enumerate(self._owners) if rank == group.rank]

    def transformed(
        self, parts: Sequence[Tensor], transform: Callable[[list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """This process's parts of what `transform` makes of the whole matrices.

        `transform` is called with those that this process owns, of any shapes. Collective.
        """
        group = self._group
        sizes = [self._part_size(at, group.rank) for at in range(len(parts))]
        order = sorted(range(len(parts)), key=lambda at: self._owners[at])
        send, receive = [0] * group.world, [0] * group.world
        for at in order:
            send[self._owners[at]] += sizes[at]
        for rank in range(group.world):
            receive[rank] = sum(self._part_size(at, rank) for at in self.owned)
        route = Route(None, send, receive)
        flat = torch.cat([parts[at].flatten() for at in order])
        came = self._assembled(move(flat, route, group, PURPOSE).split(receive))
        made = self._cut(transform(came)) if came else flat.new_zeros(0)
        back = move(made, route.reverse, group, PURPOSE).split([sizes[at] for at in order])
        found = dict(zip(order, back, strict=True))
        return [found[at].view_as(part) for at, part in enumerate(parts)]

    def _rows(self, at: int, rank: int) -> tuple[int, int]:
        """The rows of a matrix that a process holds, as FSDP2 cuts them."""
        rows = self._shapes[at][0]
        each = -(-rows // self._group.world)
        return min(rows, rank * each), min(rows, (rank + 1) * each)

    def _part_size(self, at: int, rank: int) -> int:
        low, high = self._rows(at, rank)
        return (high - low) * self._shapes[at][1]

    def _assembled(self, by_sender: Sequence[Tensor]) -> list[Tensor]:
        pieces: list[list[Tensor]] = [[] for _ in self.owned]
        for rank, sent in enumerate(by_sender):
            sizes = [self._part_size(at, rank) for at in self.owned]
            for place, piece in enumerate(sent.split(sizes)):
                pieces[place].append(piece)
        return [
            torch.cat(each).view(self._shapes[at])
            for at, each in zip(self.owned, pieces, strict=True)
        ]

    def _cut(self, matrices: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [
                matrix[slice(*self._rows(at, rank))].flatten()
                for rank in range(self._group.world)
                for at, matrix in zip(self.owned, matrices, strict=True)
            ]
        )


def is_cut(param: Tensor) -> bool:
    """Whether a matrix is cut by rows over processes."""
    return isinstance(param, DTensor) and param.ndim == 2
