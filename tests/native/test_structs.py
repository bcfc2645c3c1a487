"""The structs of Python lie as those of C++ do, offset by offset.

Catches: a field added on one side, in another order, or of another size.
"""

import ctypes

import pytest

from sounding.native.kernels import kernels
from sounding.native.structs import STRUCTS
from sounding.ops import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")


def test_offsets_and_sizes_are_those_of_the_compiler() -> None:
    room = (ctypes.c_int64 * 1000)()
    count = kernels().network_layout(room)
    mine: list[int] = []
    for struct in STRUCTS:
        mine += [getattr(struct, name).offset for name, *_ in struct._fields_]
        mine += [ctypes.sizeof(struct), -1]
    assert mine == list(room[:count])
