"""Threads of the kernels.

Catches: a forked process that waits for its parent's workers, or that has none of its own.
"""

import os
from pathlib import Path

import pytest
import torch

from sounding.ops import cpu
from sounding.ops.cpu.inference import network as native
from sounding.ops.matmul import Weight

pytestmark = [
    pytest.mark.skipif(cpu.library() is None, reason="kernels were not built"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc"),
]


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_fork_has_workers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    values = torch.randn(2048, 256, dtype=torch.bfloat16)
    x = torch.randn(2, 256, dtype=torch.bfloat16)
    weight = native.describe_weight(Weight(values))
    assert weight is not None
    wanted = native.linear(x, weight)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = _count_threads()
            same = torch.equal(native.linear(x, weight), wanted)
            code = 0 if same and _count_threads() == before + 2 else 1
        finally:  # whatever happens, the child must not go on with the tests
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(native.linear(x, weight), wanted)
