"""Batches of one process on several threads: order, threads, errors."""

import threading
import time

import pytest
import torch

from sounding.ops.cpu.threads import num_threads
from sounding.train.side_by_side import side_by_side

pytestmark = pytest.mark.usefixtures("two_threads")


def test_two_run_at_once_with_one_thread_each_and_results_keep_their_order() -> None:
    both = threading.Barrier(2, timeout=30)

    def work(item: int) -> tuple[int, int, str]:
        if item < 2:
            both.wait()  # returns only if the other is here at the same time
        return item, torch.get_num_threads(), threading.current_thread().name

    done = list(side_by_side(work, range(4), threaded=True))
    assert [item for item, _, _ in done] == [0, 1, 2, 3]
    assert {threads for _, threads, _ in done} == {1}
    assert len({name for _, _, name in done}) == 2
    assert torch.get_num_threads() == 2


def test_kernels_of_the_last_get_the_threads_of_those_that_are_done() -> None:
    both = threading.Barrier(2, timeout=30)

    def work(item: int) -> list[int]:
        both.wait()
        found = [num_threads()]
        deadline = time.monotonic() + 30
        while item == 1 and num_threads() < 2 and time.monotonic() < deadline:
            time.sleep(0.001)  # until the other is done
        return [*found, num_threads(), torch.get_num_threads()]

    first, last = side_by_side(work, range(2), threaded=True)
    assert last == [1, 2, 1]
    assert first[0] == first[2] == 1


def test_results_are_used_on_one_thread_while_others_are_at_work() -> None:
    results = side_by_side(lambda item: item, range(4), threaded=True)
    assert [torch.get_num_threads() for _ in results] == [1, 1, 1, 2]
    assert torch.get_num_threads() == 2


def test_unthreaded_and_single_items_stay_in_the_thread_that_asks() -> None:
    def work(item: int) -> tuple[int, str]:
        return torch.get_num_threads(), threading.current_thread().name

    here = threading.current_thread().name
    assert list(side_by_side(work, range(3), threaded=False)) == [(2, here)] * 3
    assert list(side_by_side(work, [7], threaded=True)) == [(2, here)]


def test_a_mistake_in_one_ends_all_and_gives_the_threads_back() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ArithmeticError("item 2")
        return item

    results = side_by_side(work, range(100), threaded=True)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ArithmeticError, match="item 2"):
        next(results)
    assert torch.get_num_threads() == 2
