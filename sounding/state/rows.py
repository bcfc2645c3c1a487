"""Append-only lists of rows, of which states are made.

Some lists keep only their last rows. Source: docs/architecture.md 8.1.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

StoredRows = NDArray[Any]
"""Rows as they are stored, [rows, width]: float32, bfloat16 as uint16, packed formats as uint8."""


@runtime_checkable  # for the shape checks of the tests
class Rows(Protocol):
    """Rows that are appended in order; `length` counts dropped ones too."""

    per_group: bool
    """True if a row stands for a group of tokens and not for one token."""

    @property
    def length(self) -> int:
        """Rows appended so far."""

    def check_truncate(self, length: int) -> None:
        """Raise ValueError if too few rows before `length` are kept for later tokens."""

    def truncate(self, length: int) -> None:
        """Drop the rows from `length` on, if `check_truncate` allows it."""

    def fork(self) -> "Rows":
        """An independent continuation from here."""

    def read(self) -> StoredRows:
        """The kept rows as stored, oldest first. May be a view of memory that changes."""

    def check_restore(self, stored: StoredRows, length: int) -> None:
        """Raise ValueError unless these can be the rows that `read` gave of a list of `length`."""

    def restore(self, stored: StoredRows, length: int) -> None:
        """Replace all rows by those that `read` gave, if `check_restore` allows it."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""


@dataclass(frozen=True)
class Retention:
    """Number of rows that a list keeps (None: all): `needed` for reading, the rest to rewind."""

    kept: int | None
    needed: int = 0

    def check(self, kept_after: int, length: int) -> None:
        """Raise ValueError if a list that is rewound to `length` would lack rows that are read."""
        if kept_after < min(length, self.needed):
            raise ValueError(
                f"cannot rewind to {length} rows: {kept_after} of the {min(length, self.needed)} "
                "before that are still kept; make the state with more `rewind_tokens`, or fork it "
                "before going on"
            )

    def check_saved(self, num_rows: int, length: int) -> None:
        """Raise ValueError if a list of `length` cannot have kept this number of rows."""
        kept = length if self.kept is None else min(length, self.kept)
        needed = length if self.kept is None else min(length, self.needed)
        if not needed <= num_rows <= kept:
            raise ValueError(
                f"a saved state has {num_rows} rows of a list of {length}, of which this one "
                f"keeps {needed} to {kept}: it is damaged or was made with other `rewind_tokens`"
            )


def require_like(stored: StoredRows, width: int, dtype: "np.dtype[Any]") -> None:
    """Raise ValueError unless saved rows have this width and dtype."""
    if stored.ndim != 2 or stored.shape[1] != width or stored.dtype != dtype:
        raise ValueError(
            f"a saved state has rows of shape {list(stored.shape)} and {stored.dtype} where this "
            f"one has [..., {width}] and {dtype}: it belongs to another model or storage"
        )
