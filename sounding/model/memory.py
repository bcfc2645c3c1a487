"""Memory of rows that native code reads and appends to: row i of a list is at slot i % slots.

Where only the last rows are kept that makes a ring; elsewhere there are always slots enough. A
list's header says where its memory is and how many rows it has; native code keeps it up to date.
"""

import ctypes

import torch
from torch import Tensor

from sounding.ops.cpu.inference.network import ROW_FORMATS as NATIVE_FORMATS
from sounding.ops.cpu.inference.network import NativeRows

__all__ = ["NATIVE_FORMATS", "UNPREPARED", "Memory", "NativeRows"]

UNPREPARED = -1  # format of a header without memory: native code has to ask for it


class Memory:
    """A buffer of slots, which forks may share: rows written once are never changed."""

    def __init__(self, buffer: Tensor, *, bounded: bool) -> None:
        self.buffer = buffer
        self.bounded = bounded
        self._used = ctypes.c_int64(0)  # how many rows whoever shares the buffer has written
        self._header = NativeRows()

    def describe(self, header: NativeRows, format: int) -> None:
        """Make this the memory of a list; the header keeps its counts."""
        self._header = header
        header.data = self.buffer.data_ptr()
        header.used = ctypes.addressof(self._used)
        header.slots, header.row_bytes = len(self.buffer), self.buffer[:1].nbytes
        header.bounded, header.shared, header.format = self.bounded, 0, format

    def read(self) -> Tensor:
        """The kept rows, oldest first."""
        header = self._header
        if not self.bounded:
            return self.buffer[: header.length]
        return self.buffer[self._slots(header.length, header.kept)]

    def write(self, rows: Tensor, length: int) -> None:
        """Take rows behind the kept ones, as the last ones of a list which thereby has `length`."""
        header, slots = self._header, len(self.buffer)
        last = rows[-slots:] if slots else rows[:0]
        self.buffer[self._slots(length, len(last))] = last
        header.length, header.kept = length, min(header.kept + len(rows), slots)
        self._used.value = length

    def fork(self, mine: NativeRows, header: NativeRows) -> "Memory":
        """Memory for a fork: the same where rows are only added, otherwise a copy."""
        if self.bounded:
            return self.copy(header)
        # From now on only the first of the two to go on may do so in place.
        twin = Memory(self.buffer, bounded=False)
        twin._used = self._used
        twin._header = header
        mine.shared = header.shared = 1
        return twin

    def copy(self, header: NativeRows) -> "Memory":
        """Memory for a fork, of its own."""
        twin = Memory(self.buffer.clone(), bounded=self.bounded)
        twin.describe(header, header.format)
        twin._used.value = header.length
        return twin

    def _slots(self, length: int, count: int) -> Tensor:
        """Where the last `count` rows of a list of `length` are, oldest first."""
        return torch.arange(length - count, length) % max(1, len(self.buffer))
