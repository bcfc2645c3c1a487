"""What a sequence must remember between chunks.

Everything remembered is a list of rows (`rows`), appended to and never changed: window entries and
raw projections by token, compressed and index entries by group. That makes the three things a
server needs simple: `fork` shares or copies, `rewind` shortens, `serialize` writes the rows out.
Source: docs/architecture.md 8.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from sounding.config import CSA, ModelConfig
from sounding.model.rows import (
    Codec,
    GrowingRows,
    PackedRows,
    Retention,
    Rows,
    float_codec,
    index_codec,
    kv_codec,
)


@dataclass
class CompressorState:
    """Projections of tokens whose group is unfinished or still needed, and finished entries."""

    projections: Rows
    entries: Rows


@dataclass
class LayerState:
    """What one layer remembers of one sequence; parts a layer kind does not have are None."""

    ratio: int
    window: Rows
    compressor: CompressorState | None
    indexer: CompressorState | None
    headers: Any = field(default=None, repr=False, compare=False)
    """What native code looked up here, once."""

    @property
    def length(self) -> int:
        """Tokens this layer has seen."""
        return self.window.length

    def fork(self) -> "LayerState":
        """An independent continuation."""

        def twin(part: CompressorState | None) -> CompressorState | None:
            if part is None:
                return None
            return CompressorState(part.projections.fork(), part.entries.fork())

        return LayerState(self.ratio, self.window.fork(), twin(self.compressor), twin(self.indexer))

    def rows(self) -> list[Rows | None]:
        """Every list in the order of native code, None for those this kind of layer lacks."""
        lists: list[Rows | None] = [self.window]
        for part in (self.compressor, self.indexer):
            lists += [None, None] if part is None else [part.projections, part.entries]
        return lists

    def named_rows(self) -> Iterator[tuple[str, Rows]]:
        """Every list with its name."""
        yield "window", self.window
        for name, part in (("compressor", self.compressor), ("indexer", self.indexer)):
            if part is not None:
                yield f"{name}.projections", part.projections
                yield f"{name}.entries", part.entries

    def lengths_after(self, length: int) -> Iterator[tuple[str, Rows, int]]:
        """Every list with its name and the length it has after `length` tokens."""
        for name, rows in self.named_rows():
            yield name, rows, length // self.ratio if name.endswith("entries") else length


@dataclass
class SequenceState:
    """One sequence: a state per decoder layer, and one per MTP block.

    An MTP block runs behind the network: its position t needs token t + 1.
    """

    layers: list[LayerState]
    drafts: list[LayerState]

    @property
    def length(self) -> int:
        """Tokens the network has seen; the next chunk starts at this position."""
        return self.layers[0].length

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens, e.g. after rejected drafts.

        Raises ValueError when that lies ahead, or further back than the state keeps
        (`rewind_tokens`, or anything while no list has overflowed yet).
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the state holds {self.length} tokens")
        parts = [(layer, length) for layer in self.layers]
        parts += [(draft, min(draft.length, max(0, length - 1))) for draft in self.drafts]
        shorter = [
            (rows, rows_length)
            for part, part_length in parts
            for _, rows, rows_length in part.lengths_after(part_length)
            if rows_length < rows.length
        ]
        # Ask all first: a state that went back halfway would be of no use.
        for rows, rows_length in shorter:
            rows.check_truncate(rows_length)
        for rows, rows_length in shorter:
            rows.truncate(rows_length)

    def fork(self) -> "SequenceState":
        """An independent continuation; growing storage shares its tensors, packed copies."""
        return SequenceState(
            [layer.fork() for layer in self.layers], [draft.fork() for draft in self.drafts]
        )

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(rows.nbytes for _, rows in self._named_rows())

    def serialize(self) -> bytes:
        """The kept rows as a safetensors file in memory."""
        tensors, lengths = {}, {}
        for name, rows in self._named_rows():
            tensors[name] = rows.read().detach().contiguous()
            lengths[name] = rows.length
        return safetensors.torch.save(tensors, {"lengths": json.dumps(lengths)})

    def restore(self, data: bytes) -> None:
        """Take over a serialized state of the same model, storage and retention.

        Raises ValueError when `data` is damaged or belongs to another model; then nothing changes.
        """
        tensors, lengths = self._check_saved(data)
        for name, rows in self._named_rows():
            rows.restore(tensors[name], lengths[name])

    def _check_saved(self, data: bytes) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The saved rows and lengths, once they are found to be a state of this form."""
        try:
            tensors = safetensors.torch.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            lengths = dict(json.loads(header["__metadata__"]["lengths"]))
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the saved state cannot be read: {error}") from error
        mine = dict(self._named_rows())
        if tensors.keys() != mine.keys() or lengths.keys() != mine.keys():
            raise ValueError("the saved state belongs to a model with other layers")
        if not all(type(length) is int and length >= 0 for length in lengths.values()):
            raise ValueError("the saved state is damaged: lengths must be counts")
        total = lengths["layers.0.window"]
        for group, layers in (("layers", self.layers), ("drafts", self.drafts)):
            for index, layer in enumerate(layers):
                prefix = f"{group}.{index}."
                own = lengths[f"{prefix}window"]
                if own > total or (group == "layers" and own != total):
                    raise ValueError(
                        f"the saved state is damaged: {prefix}window has seen {own} tokens, "
                        f"layers.0.window {total}"
                    )
                for name, rows, length in layer.lengths_after(own):
                    if lengths[prefix + name] != length:
                        raise ValueError(
                            f"the saved state is damaged: {prefix}{name} has "
                            f"{lengths[prefix + name]} rows; after {own} tokens it has {length}"
                        )
                    rows.check_restore(tensors[prefix + name], length)
        return tensors, lengths

    def _named_rows(self) -> Iterator[tuple[str, Rows]]:
        for group, layers in (("layers", self.layers), ("drafts", self.drafts)):
            for index, layer in enumerate(layers):
                for name, rows in layer.named_rows():
                    yield f"{group}.{index}.{name}", rows


def growing_state(config: ModelConfig, *, rewind_tokens: int = 0) -> SequenceState:
    """An empty state of plain tensors: differentiable, unbounded."""

    def rows(width: int, retention: Retention, codec: Codec, ratio: int) -> Rows:
        return GrowingRows(width, retention)

    return _empty_state(config, rewind_tokens, rows)


def packed_state(config: ModelConfig, *, max_tokens: int, rewind_tokens: int = 0) -> SequenceState:
    """An empty state for up to `max_tokens` in preallocated memory, in the deployed formats.

    For a network that simulates them (`Simulation(kv=True, indexer=True)` at least): FP4 index
    entries are only as good as the Hadamard rotation before them.
    """

    def rows(width: int, retention: Retention, codec: Codec, ratio: int) -> Rows:
        return PackedRows(codec, retention, max_tokens // ratio if ratio else 0)

    return _empty_state(config, rewind_tokens, rows)


def _empty_state(
    config: ModelConfig,
    rewind_tokens: int,
    rows: Callable[[int, Retention, Codec, int], Rows],
) -> SequenceState:
    kv = kv_codec(config.head_dim, config.qk_rope_head_dim)
    index = index_codec(config.index_head_dim)

    def compressor(ratio: int, width: int, codec: Codec) -> CompressorState:
        # Values and gates of each token; CSA has two halves of each and looks one group back.
        groups = 2 if ratio == CSA else 1
        retention = Retention(groups * ratio + rewind_tokens, groups * ratio - 1)
        projected = 2 * groups * width
        return CompressorState(
            rows(projected, retention, float_codec(projected), 0),
            rows(width, Retention(None), codec, ratio),
        )

    def layer(ratio: int) -> LayerState:
        window = Retention(config.sliding_window + rewind_tokens, config.sliding_window - 1)
        return LayerState(
            ratio,
            rows(config.head_dim, window, kv, 0),
            compressor(ratio, config.head_dim, kv) if ratio else None,
            compressor(ratio, config.index_head_dim, index) if ratio == CSA else None,
        )

    return SequenceState(
        [layer(ratio) for ratio in config.ratios], [layer(0) for _ in range(config.num_mtp_layers)]
    )
