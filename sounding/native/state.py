"""Empty states for the C++ kernels, and how the kernels find their lists."""

import ctypes
from collections.abc import Sequence

from sounding.config import ModelConfig
from sounding.native.rows import Format, KernelRows
from sounding.state.rows import Retention
from sounding.state.sequence_state import LayerState, RowFormat, SequenceState, empty_state
from sounding.weights.layout import FP4_BLOCK

KernelLayer = LayerState[KernelRows]
KernelState = SequenceState[KernelRows]

_KV_BLOCK = 64  # channels of an entry that share a scale


def growing_state(config: ModelConfig, *, rewind_tokens: int = 0) -> KernelState:
    """An empty state that grows without bound: bfloat16, projections in float32."""

    def rows(
        format: RowFormat, width: int, retention: Retention, *, per_group: bool, ratio: int
    ) -> KernelRows:
        numbers: Format = "float32" if format == "projections" else "bfloat16"
        return KernelRows(numbers, width, retention, per_group=per_group)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)


def packed_state(config: ModelConfig, *, max_tokens: int, rewind_tokens: int = 0) -> KernelState:
    """An empty state for up to `max_tokens` in preallocated memory, in the deployed formats.

    For a network that simulates them (`Simulation(kv=True, indexer=True)` at least): FP4 index
    entries are only as good as the Hadamard rotation before them.
    """

    def rows(
        format: RowFormat, width: int, retention: Retention, *, per_group: bool, ratio: int
    ) -> KernelRows:
        numbers: Format
        match format:
            case "projections":
                numbers, size = "float32", width
            case "index_entries":
                numbers, size = "index", width // 2 + width // FP4_BLOCK
            case _:
                numbers, size = "kv", _kv_bytes(width, config.qk_rope_head_dim)
        capacity = max_tokens // ratio if ratio else 0
        return KernelRows(numbers, size, retention, per_group=per_group, capacity=capacity)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)


def _kv_bytes(head_dim: int, rotary: int) -> int:
    """Bytes of a packed entry: FP8 channels, bfloat16 rotary channels, scales padded to 8."""
    plain = head_dim - rotary
    scales = -(-plain // _KV_BLOCK)
    return plain + 2 * rotary + -(-scales // 8) * 8


class Lists:
    """All lists of the layers of one sequence, and the addresses of their headers."""

    def __init__(self, layers: Sequence[KernelLayer]) -> None:
        self.rows = [rows for layer in layers for rows in layer.lists()]
        self.addresses = (ctypes.c_void_p * len(self.rows))(
            *(None if rows is None else ctypes.addressof(rows.header) for rows in self.rows)
        )


def lists_of(layers: Sequence[KernelLayer]) -> Lists:
    """The lists of layers. Headers stay where they are as long as their rows live, so they are
    collected once and remembered with the first list."""
    first = layers[0].window
    if first.lists is None:
        first.lists = Lists(layers)
    return first.lists
