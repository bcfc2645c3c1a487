"""Sequence states for the C++ kernels, and the addresses of their lists."""

import ctypes
from collections.abc import Sequence

from sounding.config import ModelConfig
from sounding.native.rows import Format, KernelRows
from sounding.state.row_layout import ListLayout, RowFormat, packed_row_bytes
from sounding.state.sequence_state import LayerState, SequenceState, empty_state

KernelLayer = LayerState[KernelRows]
KernelState = SequenceState[KernelRows]


def growing_state(config: ModelConfig, *, rewind_tokens: int = 0) -> KernelState:
    """An empty state that grows without bound: bfloat16, projections in float32."""

    def rows(layout: ListLayout) -> KernelRows:
        numbers = _growing_format(layout)
        return KernelRows(numbers, layout.width, layout.retention, per_group=layout.per_group)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)


def growing_row_bytes(layout: ListLayout) -> int:
    """Bytes of a row of a `growing_state`."""
    return layout.width * (4 if _growing_format(layout) == "float32" else 2)


def _growing_format(layout: ListLayout) -> Format:
    return "float32" if layout.format == "projections" else "bfloat16"


def packed_state(config: ModelConfig, *, max_tokens: int, rewind_tokens: int = 0) -> KernelState:
    """An empty state for up to `max_tokens` in preallocated memory, in the deployed formats.

    For a network that simulates them (`Simulation(kv=True, indexer=True)` at least): FP4 index
    entries are only as good as the Hadamard rotation before them.
    """
    formats: dict[RowFormat, Format] = {"projections": "float32", "index_entries": "index"}

    def rows(layout: ListLayout) -> KernelRows:
        numbers = formats.get(layout.format, "kv")
        # A packed row is counted in bytes.
        floats = layout.format == "projections"
        width = layout.width if floats else packed_row_bytes(config, layout)
        slots = layout.slots(max_tokens)
        return KernelRows(
            numbers, width, layout.retention, per_group=layout.per_group, capacity=slots
        )

    return empty_state(config, rows, rewind_tokens=rewind_tokens)


class Lists:
    """The lists of all layers of one sequence, with the addresses of their headers."""

    def __init__(self, layers: Sequence[KernelLayer]) -> None:
        self.rows = [rows for layer in layers for rows in layer.lists()]
        self.addresses = (ctypes.c_void_p * len(self.rows))(
            *(None if rows is None else ctypes.addressof(rows.header) for rows in self.rows)
        )


def join_addresses(lists: Sequence[Lists]) -> "ctypes.Array[ctypes.c_void_p]":
    """Those of several sequences, end to end."""
    if len(lists) == 1:
        return lists[0].addresses
    joined = b"".join(bytes(each.addresses) for each in lists)
    count = len(joined) // ctypes.sizeof(ctypes.c_void_p)
    return (ctypes.c_void_p * count).from_buffer_copy(joined)


def lists_of(layers: Sequence[KernelLayer]) -> Lists:
    """The lists of layers. The address of a header is constant while its list lives, so they are
    collected once and cached with the first list."""
    first = layers[0].window
    if first.lists is None:
        first.lists = Lists(layers)
    return first.lists
