"""Work on several items at once, one thread of the process for each."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from sounding.ops.cpu.threads import ThreadShare

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def side_by_side(
    work: Callable[[_Item], _Result], items: Sequence[_Item], *, threaded: bool
) -> Iterator[_Result]:
    """Yield `work(item)` for every item, in order; where `threaded`, of several at once.

    As many as torch has threads: each item gets one, and torch gets all of them back at the end.
    Cores that are shared with other programs differ in pace: when no items are waiting, kernels of
    those that are still running use the idle threads too.
    """
    threads = torch.get_num_threads()
    workers = min(len(items), threads)
    if not threaded or workers < 2:
        yield from map(work, items)
        return

    share = ThreadShare(threads, len(items))

    def alone(item: _Item) -> _Result:
        with share.piece():
            return work(item)

    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        try:
            torch.set_num_threads(1)  # for code that uses a result while others are computed
            for left, result in zip(range(len(items))[::-1], pool.map(alone, items), strict=True):
                if left == 0:
                    torch.set_num_threads(threads)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
