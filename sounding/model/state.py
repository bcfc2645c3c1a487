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
from sounding.state.row_layout import ListLayout
from sounding.state.sequence_state import (
    CompressorState,
    LayerState,
    SequenceState,
    empty_state,
)

TensorCompressorState = CompressorState[TensorRows]
TensorLayerState = LayerState[TensorRows]
TensorState = SequenceState[TensorRows]


def growing_state(config: ModelConfig, *, rewind_tokens: int = 0) -> TensorState:
    """An empty state of plain tensors: differentiable, unbounded."""

    def rows(layout: ListLayout) -> TensorRows:
        return GrowingRows(layout.width, layout.retention, per_group=layout.per_group)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)


def packed_state(config: ModelConfig, *, max_tokens: int, rewind_tokens: int = 0) -> TensorState:
    """An empty state for up to `max_tokens` in preallocated memory, in the deployed formats.

    For a network that simulates them (`Simulation(kv=True, indexer=True)` at least): FP4 index
    entries are only as good as the Hadamard rotation before them.
    """
    kv = kv_codec(config.head_dim, config.qk_rope_head_dim)
    index = index_codec(config.index_head_dim)

    def rows(layout: ListLayout) -> TensorRows:
        match layout.format:
            case "projections":
                codec = float_codec(layout.width)
            case "index_entries":
                codec = index
            case _:
                codec = kv
        slots = layout.slots(max_tokens)
        return PackedRows(codec, layout.retention, slots, per_group=layout.per_group)

    return empty_state(config, rows, rewind_tokens=rewind_tokens)
