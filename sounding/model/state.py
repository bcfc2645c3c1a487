"""What a sequence must remember between chunks, and how it is stored.

Everything remembered is a list of rows, appended to and never changed: window entries and raw
projections by token, compressed and index entries by group. Of some lists only the last rows are
kept. That makes the three things a server needs simple: `fork` shares or copies, `rewind` shortens,
`serialize` writes the rows out.

Two storages stand behind `Rows`, and the network cannot tell which it was given: `GrowingRows` are
plain tensors that gradients flow through; `PackedRows` are preallocated bytes in the deployed
format. Source: spec/architecture.md 8.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sounding.config import CSA, ModelConfig
from sounding.ops.quant import (
    FP4_BLOCK,
    KV_BLOCK,
    decode_scale,
    encode_scale,
    fp4_blocks,
    fp8_blocks,
    pack_fp4,
    unpack_fp4,
)


@runtime_checkable  # so that the shape checks of the tests can run
class Rows(Protocol):
    """Rows that are appended in order; `length` counts all there ever were, kept or not."""

    length: int

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        """Add rows; return what their readers may see: the rows kept so far, then the new ones."""

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on. ValueError if too few earlier ones are still kept."""

    def fork(self) -> "Rows":
        """An independent continuation from here."""

    def read(self) -> Tensor:
        """The kept rows as stored, oldest first."""

    def restore(self, stored: Tensor, length: int) -> None:
        """Take over rows that `read` gave, of a list of this length."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""


@dataclass(frozen=True)
class Retention:
    """How many rows a list keeps: `None` is all; `needed` by readers, the rest allow rewinding."""

    kept: int | None
    needed: int = 0

    def check(self, kept_after: int, length: int) -> None:
        """Raise ValueError when a rewound list of `length` would lack rows that readers need."""
        if kept_after < min(length, self.needed):
            raise ValueError(
                f"cannot rewind to {length} rows: {kept_after} of the {min(length, self.needed)} "
                "before that are still kept; make the state with more `rewind_tokens`, or fork it "
                "before going on"
            )


class GrowingRows:
    """Rows as one tensor that grows by concatenation: forks share it, gradients flow through it."""

    def __init__(self, width: int, retention: Retention) -> None:
        self.length = 0
        self._rows = torch.empty(0, width)
        self._retention = retention

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        visible = torch.cat((self._rows.to(rows), rows)) if len(self._rows) else rows
        self.length += len(rows)
        kept = self._retention.kept
        # A copy, because a slice would keep the whole chunk in memory.
        self._rows = visible if kept is None or len(visible) <= kept else visible[-kept:].clone()
        return visible

    def truncate(self, length: int) -> None:
        kept_after = len(self._rows) - (self.length - length)
        self._retention.check(kept_after, length)
        self._rows, self.length = self._rows[:kept_after], length

    def fork(self) -> "GrowingRows":
        twin = object.__new__(GrowingRows)
        twin.__dict__.update(self.__dict__)
        return twin

    def read(self) -> Tensor:
        return self._rows

    def restore(self, stored: Tensor, length: int) -> None:
        _require_shape(stored, self._rows)
        self._rows, self.length = stored, length

    @property
    def nbytes(self) -> int:
        return self._rows.numel() * self._rows.element_size()


@dataclass(frozen=True)
class Codec:
    """A packed form of rows: both directions, and the bytes of one row."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, torch.dtype], Tensor]
    row_bytes: int


class PackedRows:
    """Rows as bytes in a buffer made once: a ring where only the last are kept.

    What readers see has been through the codec, also for rows of the same chunk, so results do not
    depend on where a chunk ends.
    """

    def __init__(self, codec: Codec, retention: Retention, capacity: int) -> None:
        self.length = 0
        self._kept = 0
        self._codec = codec
        self._retention = retention
        self._buffer = torch.zeros(
            capacity if retention.kept is None else retention.kept,
            codec.row_bytes,
            dtype=torch.uint8,
        )

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        slots = len(self._buffer)
        if self._retention.kept is None and self.length + len(rows) > slots:
            raise ValueError(
                f"the state has room for {slots} compressed entries and holds {self.length}; "
                f"{len(rows)} more do not fit: make it with a larger `max_tokens`"
            )
        packed = self._codec.encode(rows.detach())
        visible = torch.cat((self.read(), packed))
        last = packed[-slots:]
        self.length += len(rows)
        self._kept = min(self._kept + len(rows), slots)
        self._buffer[self._slots(len(last))] = last
        return self._codec.decode(visible, rows.dtype)

    def truncate(self, length: int) -> None:
        kept_after = self._kept - (self.length - length)
        self._retention.check(kept_after, length)
        self._kept, self.length = kept_after, length

    def fork(self) -> "PackedRows":
        twin = object.__new__(PackedRows)
        twin.__dict__.update(self.__dict__)
        twin._buffer = self._buffer.clone()
        return twin

    def read(self) -> UInt8[Tensor, "p bytes"]:
        return self._buffer[self._slots(self._kept)]

    def restore(self, stored: Tensor, length: int) -> None:
        _require_shape(stored, self._buffer)
        self.length, self._kept = length, len(stored)
        self._buffer[self._slots(len(stored))] = stored

    @property
    def nbytes(self) -> int:
        return self._buffer.numel()

    def _slots(self, count: int) -> Tensor:
        """Buffer positions of the last `count` rows, oldest first."""
        return torch.arange(self.length - count, self.length) % max(1, len(self._buffer))


def _require_shape(stored: Tensor, like: Tensor) -> None:
    if stored.ndim != 2 or stored.shape[1] != like.shape[1]:
        raise ValueError(
            f"a saved state has rows of shape {list(stored.shape)} where this one has "
            f"[..., {like.shape[1]}]: it belongs to another model or storage"
        )


# --------------------------------------------------------------------------------------------------
# The deployed formats


def kv_codec(head_dim: int, rotary: int) -> Codec:
    """FP8 channels in blocks of 64, then the bf16 rotary channels, then a scale byte per block
    padded to 8: 584 bytes for the published 512 channels. Source: spec/architecture.md 8.1."""
    plain = head_dim - rotary
    blocks = -(-plain // KV_BLOCK)
    scale_bytes = -(-blocks // 8) * 8
    ends = (plain, plain + 2 * rotary, plain + 2 * rotary + scale_bytes)

    def encode(rows: Tensor) -> Tensor:
        values, scale = fp8_blocks(rows[:, :plain].float(), KV_BLOCK)
        fp8 = values.flatten(1)[:, :plain].to(torch.float8_e4m3fn).view(torch.uint8)
        turned = rows[:, plain:].to(torch.bfloat16).contiguous().view(torch.uint8)
        scales = encode_scale(scale).view(torch.uint8)
        padding = scales.new_zeros(len(rows), scale_bytes - blocks)
        return torch.cat((fp8, turned, scales, padding), 1)

    def decode(packed: Tensor, dtype: torch.dtype) -> Tensor:
        fp8, turned, scales = packed.tensor_split((*ends[:2],), 1)
        scale = decode_scale(scales[:, :blocks].contiguous().view(torch.float8_e8m0fnu), dtype)
        wide = scale.repeat_interleave(KV_BLOCK, 1)[:, :plain]
        values = fp8.contiguous().view(torch.float8_e4m3fn).to(dtype) * wide
        return torch.cat((values, turned.contiguous().view(torch.bfloat16).to(dtype)), 1)

    return Codec(encode, decode, ends[2])


def index_codec(head_dim: int) -> Codec:
    """FP4 channels, then a scale byte per 32: 68 bytes for the published 128 channels."""
    half = head_dim // 2

    def encode(rows: Tensor) -> Tensor:
        values, scale = fp4_blocks(rows.float())
        scales = encode_scale(scale).view(torch.uint8)
        return torch.cat((pack_fp4(values.flatten(1)).view(torch.uint8), scales), 1)

    def decode(packed: Tensor, dtype: torch.dtype) -> Tensor:
        codes, scales = packed.tensor_split((half,), 1)
        scale = decode_scale(scales.contiguous().view(torch.float8_e8m0fnu), dtype)
        values = unpack_fp4(codes.contiguous().view(torch.int8), dtype)
        return values * scale.repeat_interleave(FP4_BLOCK, 1)

    return Codec(encode, decode, half + head_dim // FP4_BLOCK)


def float_codec(width: int) -> Codec:
    """float32, for the projections of unfinished groups."""
    return Codec(
        lambda rows: rows.float().contiguous().view(torch.uint8),
        lambda packed, dtype: packed.contiguous().view(torch.float32).to(dtype),
        4 * width,
    )


# --------------------------------------------------------------------------------------------------
# The state of a layer and of a sequence


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

    @property
    def length(self) -> int:
        """Tokens this layer has seen."""
        return self.window.length

    def rewind(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        for rows, rows_length in self._lists(length):
            if rows_length < rows.length:
                rows.truncate(rows_length)

    def fork(self) -> "LayerState":
        """An independent continuation."""

        def twin(part: CompressorState | None) -> CompressorState | None:
            if part is None:
                return None
            return CompressorState(part.projections.fork(), part.entries.fork())

        return LayerState(self.ratio, self.window.fork(), twin(self.compressor), twin(self.indexer))

    def named_rows(self) -> Iterator[tuple[str, Rows]]:
        """Every list with its name."""
        yield "window", self.window
        for name, part in (("compressor", self.compressor), ("indexer", self.indexer)):
            if part is not None:
                yield f"{name}.projections", part.projections
                yield f"{name}.entries", part.entries

    def _lists(self, length: int) -> Iterator[tuple[Rows, int]]:
        """Every list with the length it has after `length` tokens."""
        for name, rows in self.named_rows():
            yield rows, length // self.ratio if name.endswith("entries") else length


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
        for layer in self.layers:
            layer.rewind(length)
        for draft in self.drafts:
            draft.rewind(min(draft.length, max(0, length - 1)))

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

        Raises ValueError when `data` is damaged or belongs to another model.
        """
        try:
            tensors = safetensors.torch.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            lengths = json.loads(header["__metadata__"]["lengths"])
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"the saved state cannot be read: {error}") from error
        mine = dict(self._named_rows())
        if tensors.keys() != mine.keys() or lengths.keys() != mine.keys():
            raise ValueError("the saved state belongs to a model with other layers")
        for name, rows in mine.items():
            rows.restore(tensors[name], lengths[name])

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
