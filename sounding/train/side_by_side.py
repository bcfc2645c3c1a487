"""Batches worked on at the same time by the threads of one process."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from sounding.ops.cpu.threads import Share

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def side_by_side(
    work: Callable[[_Item], _Result], items: Sequence[_Item], *, threaded: bool
) -> Iterator[_Result]:
    """`work(item)` of every item, in order; where `threaded`, of several at once.

    As many as torch has threads: each item then gets one, and torch all of them back at the end.
    Processors that are shared, with other programs or other machines, differ in pace: kernels of
    the items that are still at work when there are no others left use their threads too.
    """
    threads = torch.get_num_threads()
    workers = min(len(items), threads)
    if not threaded or workers < 2:
        yield from map(work, items)
        return

    share = Share(threads, len(items))

    def alone(item: _Item) -> _Result:
        with share.piece():
            return work(item)

    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        try:
            torch.set_num_threads(1)  # whoever uses a result while others are at work
            for left, result in zip(range(len(items))[::-1], pool.map(alone, items), strict=True):
                if left == 0:
                    torch.set_num_threads(threads)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
