"""The lists of rows that a state is made of, and how large they become.

One table for every storage, for the memory that is reserved and for the sizes that are reported.
Source: docs/architecture.md 8.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sounding.config import CSA, ModelConfig
from sounding.state.rows import Retention

RowFormat = Literal["window", "projections", "entries", "index_entries"]
"""What is in a row; each storage chooses its numbers."""

_KV_BLOCK = 64  # channels of a packed entry that share a scale byte
_SCALE_ALIGNMENT = 8  # scale bytes of a packed entry are padded to a multiple of this
_INDEX_BLOCK = 32  # channels of a packed index entry that share a scale byte


@dataclass(frozen=True)
class ListLayout:
    """One list of rows."""

    format: RowFormat
    width: int
    """Numbers in a row."""
    retention: Retention
    tokens_per_row: int = 1

    @property
    def per_group(self) -> bool:
        """True if a row stands for a group of tokens."""
        return self.tokens_per_row > 1

    def kept_rows(self, num_tokens: int) -> int:
        """Rows that are kept of a sequence of `num_tokens`."""
        rows, kept = num_tokens // self.tokens_per_row, self.retention.kept
        return rows if kept is None else min(rows, kept)

    def slots(self, max_tokens: int) -> int:
        """Rows to preallocate for a sequence of up to `max_tokens`."""
        kept = self.retention.kept
        return max_tokens // self.tokens_per_row if kept is None else kept


@dataclass(frozen=True)
class CompressorLayout:
    """The lists of a compressor: its input, and the entries it makes."""

    projections: ListLayout
    entries: ListLayout


@dataclass(frozen=True)
class LayerLayout:
    """The lists of a layer, of a kind that `ratio` names."""

    ratio: int
    window: ListLayout
    compressor: CompressorLayout | None
    indexer: CompressorLayout | None

    def lists(self) -> Iterator[ListLayout]:
        """Those that the layer has."""
        yield self.window
        for part in (self.compressor, self.indexer):
            if part is not None:
                yield part.projections
                yield part.entries


def layer_layouts(config: ModelConfig, *, rewind_tokens: int = 0) -> list[LayerLayout]:
    """The layouts of the decoder layers, for a state that can go back `rewind_tokens`."""
    return [_layer(config, ratio, rewind_tokens) for ratio in config.ratios]


def draft_layouts(config: ModelConfig, *, rewind_tokens: int = 0) -> list[LayerLayout]:
    """The layouts of the MTP blocks."""
    return [_layer(config, 0, rewind_tokens) for _ in range(config.num_mtp_layers)]


def block_layouts(config: ModelConfig, *, rewind_tokens: int = 0) -> list[LayerLayout]:
    """The layouts of the blocks of a DSpark drafter."""
    # All of a drafted block sees the whole window before the block.
    kept = Retention(config.sliding_window + rewind_tokens, config.sliding_window)
    window = ListLayout("window", config.head_dim, kept)
    return [LayerLayout(0, window, None, None)] * config.num_dspark_blocks


def all_lists(config: ModelConfig, *, rewind_tokens: int = 0) -> Iterator[ListLayout]:
    """Every list of a state, those of drafters included."""
    for layouts in (layer_layouts, draft_layouts, block_layouts):
        for layer in layouts(config, rewind_tokens=rewind_tokens):
            yield from layer.lists()


def _layer(config: ModelConfig, ratio: int, rewind_tokens: int) -> LayerLayout:
    def compressor(width: int, entries: RowFormat) -> CompressorLayout:
        # Values and gates of each token; CSA has two halves of each and looks one group back.
        groups = 2 if ratio == CSA else 1
        kept = Retention(groups * ratio + rewind_tokens, groups * ratio - 1)
        return CompressorLayout(
            ListLayout("projections", 2 * groups * width, kept),
            ListLayout(entries, width, Retention(None), tokens_per_row=ratio),
        )

    window = Retention(config.sliding_window + rewind_tokens, config.sliding_window - 1)
    return LayerLayout(
        ratio,
        ListLayout("window", config.head_dim, window),
        compressor(config.head_dim, "entries") if ratio else None,
        compressor(config.index_head_dim, "index_entries") if ratio == CSA else None,
    )


def packed_row_bytes(config: ModelConfig, rows: ListLayout) -> int:
    """Bytes of a row in the deployed formats.

    A window or compressed entry is FP8 with bfloat16 rotary channels, 584 bytes for the published
    models; an index entry is FP4, 68 bytes; projections are float32.
    """
    match rows.format:
        case "projections":
            return 4 * rows.width
        case "index_entries":
            return rows.width // 2 + -(-rows.width // _INDEX_BLOCK)
        case _:
            plain = rows.width - config.qk_rope_head_dim
            scales = -(-plain // _KV_BLOCK)
            padded = -(-scales // _SCALE_ALIGNMENT) * _SCALE_ALIGNMENT
            return plain + 2 * config.qk_rope_head_dim + padded


def entries_read(config: ModelConfig, num_tokens: int) -> tuple[int, int]:
    """Entries that the last of `num_tokens` attends to, and index entries scored for it, over all
    decoder layers. Where all compressed entries may be chosen, none is scored."""
    entries = index_entries = 0
    for ratio in config.ratios:
        entries += min(config.sliding_window, num_tokens)
        visible = num_tokens // ratio if ratio else 0
        if ratio == CSA:
            entries += min(config.index_topk, visible)
            index_entries += visible if visible > config.index_topk else 0
        else:
            entries += visible
    return entries, index_entries
