"""Lists of rows that the C++ kernels read and append to: row i is in slot i % slots.

A list of bounded length is a ring; the others always have enough slots. The header of a list holds
its address and length, and the kernels update it.
"""

import ctypes
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sounding.native.structs import NativeRows
from sounding.state.rows import Retention, StoredRows, require_like

if TYPE_CHECKING:
    from sounding.native.state import Lists

Format = Literal["float32", "bfloat16", "kv", "index"]
# Number in network.h, and dtype of the array; packed rows are counted in bytes.
_FORMATS: dict[Format, tuple[int, "np.dtype[Any]"]] = {
    "float32": (0, np.dtype(np.float32)),
    "bfloat16": (1, np.dtype(np.uint16)),
    "kv": (2, np.dtype(np.uint8)),
    "index": (3, np.dtype(np.uint8)),
}
_NO_MEMORY = -1  # format of a header without memory, for which the kernels request it
_SPARE_ROWS = 64


class KernelRows:
    """Rows of one list. Written rows never change, so that forks may share memory."""

    def __init__(
        self,
        format: Format,
        width: int,
        retention: Retention,
        *,
        per_group: bool,
        capacity: int | None = None,
    ) -> None:
        """`width` is in numbers of the format, or bytes of packed ones. With `capacity` all memory
        is allocated now; without, the list grows."""
        self.per_group = per_group
        self.header = NativeRows(format=_NO_MEMORY)
        """Read and written by the kernels; its address is constant while the list lives."""
        self.lists: "Lists | None" = None
        """Set at the first list of a state: see `state.lists_of`."""
        self._format, self._width, self._retention = format, width, retention
        self._capacity = capacity
        self._dtype = _FORMATS[format][1]
        self._buffer: NDArray[Any] = np.empty((0, width), self._dtype)
        self._used = ctypes.c_int64(0)  # rows written by all lists that share the buffer
        if capacity is not None:
            self._allocate(capacity if retention.kept is None else retention.kept)

    @property
    def length(self) -> int:
        return self.header.length

    def make_room(self, count: int) -> None:
        """Allocate memory for `count` more rows. Raises ValueError for a list with `capacity`."""
        if self._capacity is not None:
            raise ValueError(
                f"the state has room for {self.header.slots} compressed entries and holds "
                f"{self.length}; {count} more do not fit: make it with a larger `max_tokens`"
            )
        rows, length, kept = self.read(), self.length, self._retention.kept
        needed = length + count
        # A quarter more than needed, so that copying stays a fraction of appending.
        self._allocate(needed + needed // 4 + _SPARE_ROWS if kept is None else kept)
        self._write(rows, length)

    def check_truncate(self, length: int) -> None:
        self._retention.check(self.header.kept - (self.length - length), length)

    def truncate(self, length: int) -> None:
        self.check_truncate(length)
        self.header.kept -= self.length - length
        self.header.length = length

    def fork(self) -> "KernelRows":
        twin = object.__new__(KernelRows)
        twin.__dict__.update(self.__dict__)
        twin.header, twin.lists = NativeRows(), None
        ctypes.pointer(twin.header)[0] = self.header
        if self._bounded or self._capacity is not None:
            twin._used = ctypes.c_int64(self.length)
            if self.header.format != _NO_MEMORY:
                twin._buffer = self._buffer.copy()
                twin._point()
        else:
            # Only the first of the two that appends may do so in place.
            self.header.shared = twin.header.shared = 1
        return twin

    def read(self) -> StoredRows:
        if not self._bounded:
            return self._buffer[: self.length]
        return self._buffer[self._slots(self.length, self.header.kept)]

    def check_restore(self, stored: StoredRows, length: int) -> None:
        require_like(stored, self._width, self._dtype)
        self._retention.check_saved(len(stored), length)
        if self._capacity is not None and len(stored) > self.header.slots:
            raise ValueError(
                f"a saved state has {len(stored)} compressed entries where this one has room for "
                f"{self.header.slots}: make it with a larger `max_tokens`"
            )

    def restore(self, stored: StoredRows, length: int) -> None:
        self.check_restore(stored, length)
        if self._capacity is None:
            kept = self._retention.kept
            self._allocate(length + _SPARE_ROWS if kept is None else kept)
        self._write(stored, length)

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    @property
    def _bounded(self) -> bool:
        return self._retention.kept is not None

    def _allocate(self, slots: int) -> None:
        """Allocate empty memory that no other list shares."""
        self._buffer = np.zeros((slots, self._width), self._dtype)
        self._used = ctypes.c_int64(0)
        self.header.shared = self.header.kept = 0
        self._point()

    def _point(self) -> None:
        """Write the address of the memory to the header."""
        header = self.header
        header.data, header.used = self._buffer.ctypes.data, ctypes.addressof(self._used)
        header.slots, header.row_bytes = len(self._buffer), self._width * self._dtype.itemsize
        header.bounded, header.format = self._bounded, _FORMATS[self._format][0]

    def _write(self, rows: StoredRows, length: int) -> None:
        """Store these rows as the last ones of a list of `length`."""
        header, slots = self.header, len(self._buffer)
        last = rows[-slots:] if slots else rows[:0]
        self._buffer[self._slots(length, len(last))] = last
        header.length, header.kept = length, len(last)
        self._used.value = length

    def _slots(self, length: int, count: int) -> "NDArray[np.int64]":
        """The slots of the last `count` rows of a list of `length`, oldest first."""
        return np.arange(length - count, length) % max(1, len(self._buffer))
