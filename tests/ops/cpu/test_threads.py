"""Threads of the kernels.

Catches: a forked process that waits for its parent's workers, or that has none of its own.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from sounding.native.describe import describe_weight
from sounding.native.kernels import multiply, num_threads, set_num_threads
from sounding.ops import cpu
from sounding.weights.raw import RawTensor

pytestmark = [
    pytest.mark.skipif(cpu.library() is None, reason="kernels were not built"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc"),
]


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_fork_has_workers_of_its_own() -> None:
    threads = num_threads()
    set_num_threads(3)
    bits = np.random.default_rng(0).integers(0x3F00, 0x4000, (2050, 256), dtype=np.uint16)
    x, weight = bits[:2], describe_weight("w", RawTensor(bits[2:], "BF16"), None)
    wanted = multiply(x, weight)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = _count_threads()
            same = np.array_equal(multiply(x, weight), wanted)
            code = 0 if same and _count_threads() == before + 2 else 1
        finally:  # whatever happens, the child must not go on with the tests
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(multiply(x, weight), wanted)
    set_num_threads(threads)
