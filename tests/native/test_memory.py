"""Weights in one piece of memory."""

import numpy as np

from sounding.native.memory import bring_into_memory
from sounding.weights.checkpoint import Checkpoint
from tests.weights.folders import TINY


def test_what_is_brought_into_memory_is_the_same_and_needs_no_file() -> None:
    before = Checkpoint(TINY).read_all()
    after = bring_into_memory(before)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert np.array_equal(after[name].array, tensor.array), name
        assert not np.shares_memory(after[name].array, tensor.array), name
    ends = sorted((tensor.address, tensor.nbytes) for tensor in after.values())
    size = sum(-(-tensor.nbytes // 64) * 64 for tensor in after.values())
    assert ends[-1][0] + ends[-1][1] - ends[0][0] <= size  # side by side
    assert all(
        tensor.address % 64 == 0 and tensor.array.flags.c_contiguous for tensor in after.values()
    )
