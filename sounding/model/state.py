"""The reference's states: lists of tensors by layer, plain or in the deployed formats."""

from sounding.config import ModelConfig
from sounding.model.rows import (
    GrowingRows,
    PackedRows,
    TensorRows,
    float_codec,
    index_codec,
    kv_codec,
)
from sounding.state.rows import Retention
from sounding.state.sequence_state import (
    CompressorState,
    LayerState,
    RowFormat,
    SequenceState,
    empty_state,
)

TensorCompressorState = CompressorState[TensorRows]
TensorLayerState = LayerState[TensorRows]
TensorState = SequenceState[TensorRows]


def growing_state(config: ModelConfig, *, rewind_tokens: int = 0) -> TensorState:
    """An empty state of plain tensors: differentiable, unbounded."""

    def rows(
        format: RowFormat, width: int, retention: Retention, *, per_group: bool, ratio: int
    ) -> TensorRows:
        return GrowingRows(width, retention, per_group=per_group)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)


def packed_state(config: ModelConfig, *, max_tokens: int, rewind_tokens: int = 0) -> TensorState:
    """An empty state for up to `max_tokens` in preallocated memory, in the deployed formats.

    For a network that simulates them (`Simulation(kv=True, indexer=True)` at least): FP4 index
    entries are only as good as the Hadamard rotation before them.
    """
    kv = kv_codec(config.head_dim, config.qk_rope_head_dim)
    index = index_codec(config.index_head_dim)

    def rows(
        format: RowFormat, width: int, retention: Retention, *, per_group: bool, ratio: int
    ) -> TensorRows:
        match format:
            case "projections":
                codec = float_codec(width)
            case "index_entries":
                codec = index
            case _:
                codec = kv
        capacity = max_tokens // ratio if ratio else 0
        return PackedRows(codec, retention, capacity, per_group=per_group)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)
