"""The state of one sequence: lists of rows by layer, with fork, rewind, save and restore.

Rows are appended and never changed: window entries and projections by token, compressed and index
entries by group. So `fork` shares or copies, `rewind` shortens, and `serialize` writes the rows.
Source: docs/architecture.md 8.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import safetensors
import safetensors.numpy

from sounding.config import ModelConfig
from sounding.state.row_layout import (
    CompressorLayout,
    LayerLayout,
    ListLayout,
    block_layouts,
    draft_layouts,
    layer_layouts,
)
from sounding.state.rows import Rows, StoredRows

# Raised when damaged bytes are parsed; AttributeError for a dtype that NumPy lacks.
_UNREADABLE = (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError)
_R = TypeVar("_R", bound=Rows)
_R_co = TypeVar("_R_co", bound=Rows, covariant=True)


@dataclass
class CompressorState(Generic[_R]):
    """Projections of tokens whose group is incomplete or still read, and finished entries."""

    projections: _R
    entries: _R


@dataclass
class LayerState(Generic[_R]):
    """The state of one layer; parts that this kind of layer lacks are None."""

    ratio: int
    window: _R
    compressor: CompressorState[_R] | None
    indexer: CompressorState[_R] | None

    @property
    def length(self) -> int:
        """Number of tokens the layer has processed."""
        return self.window.length

    def fork(self) -> "LayerState[_R]":
        """An independent continuation."""

        def twin(part: CompressorState[_R] | None) -> CompressorState[_R] | None:
            if part is None:
                return None
            return CompressorState(_fork(part.projections), _fork(part.entries))

        return LayerState(self.ratio, _fork(self.window), twin(self.compressor), twin(self.indexer))

    def lists(self) -> list[_R | None]:
        """Every list in the order of the C++ kernels (RowsOf); None for those a layer lacks."""
        lists: list[_R | None] = [self.window]
        for part in (self.compressor, self.indexer):
            lists += [None, None] if part is None else [part.projections, part.entries]
        return lists

    def named_rows(self) -> Iterator[tuple[str, _R]]:
        """Every list with its name."""
        yield "window", self.window
        for name, part in (("compressor", self.compressor), ("indexer", self.indexer)):
            if part is not None:
                yield f"{name}.projections", part.projections
                yield f"{name}.entries", part.entries

    def lengths_after(self, length: int) -> Iterator[tuple[str, _R, int]]:
        """Every list with its name and the length it has after `length` tokens."""
        for name, rows in self.named_rows():
            yield name, rows, length // self.ratio if rows.per_group else length


def _fork(rows: _R) -> _R:
    twin = rows.fork()
    assert isinstance(twin, type(rows))
    return twin


@dataclass
class SequenceState(Generic[_R]):
    """One sequence: a state per decoder layer, and one per block of each drafter."""

    layers: list[LayerState[_R]]
    drafts: list[LayerState[_R]]
    """Of the MTP blocks, which stay one token behind: position t needs token t + 1."""
    blocks: list[LayerState[_R]]
    """Of the blocks of a DSpark drafter."""
    adapter: Any = None
    """What the network's `load_adapter` made, applied to every token of this sequence; None: the
    base alone. Drafters are always the base's."""

    @property
    def length(self) -> int:
        """Number of tokens the network has processed: the position of the next chunk."""
        return self.layers[0].length

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens, e.g. after rejected drafts.

        Raises ValueError for a length ahead, or for one further back than the kept rows allow:
        `rewind_tokens`, or everything while no list has dropped rows.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the state holds {self.length} tokens")
        parts = [(layer, length) for layer in self.layers]
        parts += [(draft, min(draft.length, max(0, length - 1))) for draft in self.drafts]
        parts += [(block, min(block.length, length)) for block in self.blocks]
        shorter = [
            (rows, rows_length)
            for part, part_length in parts
            for _, rows, rows_length in part.lengths_after(part_length)
            if rows_length < rows.length
        ]
        # Check all lists first: a partly rewound state would be useless.
        for rows, rows_length in shorter:
            rows.check_truncate(rows_length)
        for rows, rows_length in shorter:
            rows.truncate(rows_length)

    def fork(self) -> "SequenceState[_R]":
        """An independent continuation; growing storage shares its tensors, packed copies."""
        layers, drafts, blocks = ([layer.fork() for layer in layers] for _, layers in self.groups())
        return SequenceState(layers, drafts, blocks, self.adapter)

    def fork_drafts(self) -> "SequenceState[_R]":
        """A continuation of the MTP blocks alone, for steps on their own output."""
        return SequenceState([], [draft.fork() for draft in self.drafts], [])

    def groups(self) -> tuple[tuple[str, list[LayerState[_R]]], ...]:
        """The lists of layers, by their names."""
        return ("layers", self.layers), ("drafts", self.drafts), ("blocks", self.blocks)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(rows.nbytes for _, rows in self._named_rows())

    def serialize(self) -> bytes:
        """The kept rows as a safetensors file in memory."""
        arrays, lengths = {}, {}
        for name, rows in self._named_rows():
            # A copy in C order: the NumPy half of safetensors 0.8.0 writes other arrays wrongly.
            arrays[name] = np.ascontiguousarray(rows.read())
            lengths[name] = rows.length
        return safetensors.numpy.save(arrays, {"lengths": json.dumps(lengths)})

    def restore(self, data: bytes) -> None:
        """Restore a serialized state of the same model, storage and retention.

        Raises ValueError when `data` is damaged or belongs to another model; then nothing changes.
        """
        arrays, lengths = self._check_saved(data)
        for name, rows in self._named_rows():
            rows.restore(arrays[name], lengths[name])

    def _check_saved(self, data: bytes) -> tuple[dict[str, StoredRows], dict[str, int]]:
        """Parse saved rows and lengths, and check that they are a state of this form."""
        try:
            arrays = safetensors.numpy.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            lengths = dict(json.loads(header["__metadata__"]["lengths"]))
        except _UNREADABLE as error:
            raise ValueError(f"the saved state cannot be read: {error}") from error
        mine = dict(self._named_rows())
        if arrays.keys() != mine.keys() or lengths.keys() != mine.keys():
            raise ValueError("the saved state belongs to a model with other layers")
        if not all(type(length) is int and length >= 0 for length in lengths.values()):
            raise ValueError("the saved state is damaged: lengths must be counts")
        total = lengths["layers.0.window"]
        for group, layers in self.groups():
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
                    rows.check_restore(arrays[prefix + name], length)
        return arrays, lengths

    def _named_rows(self) -> Iterator[tuple[str, _R]]:
        for group, layers in self.groups():
            for index, layer in enumerate(layers):
                for name, rows in layer.named_rows():
                    yield f"{group}.{index}.{name}", rows


@runtime_checkable  # for the shape checks of the tests
class MakeRows(Protocol[_R_co]):
    """Makes an empty list of rows."""

    def __call__(self, layout: ListLayout) -> _R_co: ...


def empty_state(
    config: ModelConfig, make_rows: MakeRows[_R], *, rewind_tokens: int = 0
) -> SequenceState[_R]:
    """An empty state whose lists `make_rows` makes.

    It can go back at least `rewind_tokens` tokens at any time.
    """

    def compressor(layout: CompressorLayout | None) -> CompressorState[_R] | None:
        if layout is None:
            return None
        return CompressorState(make_rows(layout.projections), make_rows(layout.entries))

    def layer(layout: LayerLayout) -> LayerState[_R]:
        window, parts = make_rows(layout.window), (layout.compressor, layout.indexer)
        return LayerState(layout.ratio, window, *map(compressor, parts))

    return SequenceState(
        [layer(each) for each in layer_layouts(config, rewind_tokens=rewind_tokens)],
        [layer(each) for each in draft_layouts(config, rewind_tokens=rewind_tokens)],
        [layer(each) for each in block_layouts(config, rewind_tokens=rewind_tokens)],
    )
