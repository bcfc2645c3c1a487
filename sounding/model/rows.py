"""Lists of rows, the one thing that states are made of: appended to, of bounded memory, storable.

Of some lists only the last rows are kept. Two storages stand behind `Rows`, and the network cannot
tell which it was given: `GrowingRows` are plain tensors that gradients flow through; `PackedRows`
are preallocated bytes in the deployed format. Source: docs/architecture.md 8.1.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sounding.model.memory import NATIVE_FORMATS, UNPREPARED, Memory, NativeRows
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

    header: NativeRows  # what native code sees; it stays where it is as long as the rows live

    @property
    def length(self) -> int:
        """Rows appended so far."""

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        """Add rows; return what their readers may see: the rows kept so far, then the new ones."""

    def make_room(self, count: int, dtype: torch.dtype) -> None:
        """Prepare memory that native code can append `count` rows to, or raise ValueError."""

    def check_truncate(self, length: int) -> None:
        """ValueError if too few of the rows before `length` are still kept for their readers."""

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on, where `check_truncate` allows it."""

    def fork(self) -> "Rows":
        """An independent continuation from here."""

    def read(self) -> Tensor:
        """The kept rows as stored, oldest first."""

    def check_restore(self, stored: Tensor, length: int) -> None:
        """ValueError unless `read` can have given these rows, of such a list of this length."""

    def restore(self, stored: Tensor, length: int) -> None:
        """Take over rows that `read` gave, where `check_restore` allows it."""

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

    def check_saved(self, stored: Tensor, length: int) -> None:
        """Raise ValueError when a list of `length` cannot have kept just these rows."""
        kept = length if self.kept is None else min(length, self.kept)
        needed = length if self.kept is None else min(length, self.needed)
        if not needed <= len(stored) <= kept:
            raise ValueError(
                f"a saved state has {len(stored)} rows of a list of {length}, of which this one "
                f"keeps {needed} to {kept}: it is damaged or was made with other `rewind_tokens`"
            )


class GrowingRows:
    """Rows that grow without bound: tensors that forks share and gradients flow through, or, once
    native code has asked for room, memory that it appends to."""

    def __init__(self, width: int, retention: Retention) -> None:
        self.header = NativeRows(format=UNPREPARED)
        self._width = width
        self._retention = retention
        self._tensor: Tensor | None = torch.empty(0, width)
        self._memory: Memory | None = None

    @property
    def length(self) -> int:
        return self.header.length

    @property
    def _rows(self) -> Tensor:
        if self._tensor is not None:
            return self._tensor
        assert self._memory is not None
        return self._memory.read()

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        before = self._rows
        visible = torch.cat((before.to(rows), rows)) if len(before) else rows
        kept = self._retention.kept
        # A copy, because a slice would keep the whole chunk in memory.
        after = visible if kept is None or len(visible) <= kept else visible[-kept:].clone()
        self._set(after, self.length + len(rows))
        return visible

    def make_room(self, count: int, dtype: torch.dtype) -> None:
        """Let native code append `count` rows in place, as numbers of this precision."""
        rows, kept = self._rows.to(dtype), self._retention.kept
        needed = self.length + count
        # Room for a quarter more, so that all the copying is a fraction of the appending.
        slots = needed + needed // 4 + 64 if kept is None else kept
        self._memory = Memory(
            torch.zeros(slots, self._width, dtype=dtype), bounded=kept is not None
        )
        self._memory.describe(self.header, NATIVE_FORMATS[dtype])
        self.header.kept = 0
        self._memory.write(rows, self.length)
        self._tensor = None

    def check_truncate(self, length: int) -> None:
        self._retention.check(len(self._rows) - (self.length - length), length)

    def truncate(self, length: int) -> None:
        self.check_truncate(length)
        if self._tensor is not None:
            self._tensor = self._tensor[: len(self._tensor) - (self.length - length)]
        self.header.kept -= self.length - length
        self.header.length = length

    def fork(self) -> "GrowingRows":
        twin = GrowingRows(self._width, self._retention)
        ctypes.pointer(twin.header)[0] = self.header
        twin._tensor = self._tensor
        if self._memory is not None:
            twin._memory = self._memory.fork(self.header, twin.header)
        return twin

    def read(self) -> Tensor:
        return self._rows

    def check_restore(self, stored: Tensor, length: int) -> None:
        _require_like(stored, self._rows)
        self._retention.check_saved(stored, length)

    def restore(self, stored: Tensor, length: int) -> None:
        self.check_restore(stored, length)
        self._set(stored, length)

    @property
    def nbytes(self) -> int:
        if self._tensor is not None:
            return self._tensor.numel() * self._tensor.element_size()
        assert self._memory is not None
        return self._memory.buffer.nbytes

    def _set(self, rows: Tensor, length: int) -> None:
        """Hold these rows as a tensor."""
        self._tensor, self._memory = rows, None
        self.header.format = UNPREPARED
        self.header.length, self.header.kept = length, len(rows)


@dataclass(frozen=True)
class Codec:
    """A packed form of rows: both directions, and the bytes of one row."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, torch.dtype], Tensor]
    row_bytes: int
    native_format: int


class PackedRows:
    """Rows as bytes in a buffer made once: a ring where only the last are kept.

    What readers see has been through the codec, also for rows of the same chunk, so results do not
    depend on where a chunk ends.
    """

    def __init__(self, codec: Codec, retention: Retention, capacity: int) -> None:
        self._codec = codec
        self._retention = retention
        slots = capacity if retention.kept is None else retention.kept
        buffer = torch.zeros(slots, codec.row_bytes, dtype=torch.uint8)
        self._memory = Memory(buffer, bounded=retention.kept is not None)
        self.header = NativeRows()
        self._memory.describe(self.header, codec.native_format)

    @property
    def length(self) -> int:
        return self.header.length

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        self._check_room(len(rows))
        packed = self._codec.encode(rows.detach())
        visible = torch.cat((self.read(), packed))
        self._memory.write(packed, self.length + len(rows))
        return self._codec.decode(visible, rows.dtype)

    def make_room(self, count: int, dtype: torch.dtype) -> None:
        """Raise ValueError: what was allocated is all there is."""
        self._check_room(count)

    def check_truncate(self, length: int) -> None:
        self._retention.check(self.header.kept - (self.length - length), length)

    def truncate(self, length: int) -> None:
        self.check_truncate(length)
        self.header.kept -= self.length - length
        self.header.length = length

    def fork(self) -> "PackedRows":
        twin = object.__new__(PackedRows)
        twin.__dict__.update(self.__dict__)
        twin.header = NativeRows()
        ctypes.pointer(twin.header)[0] = self.header
        twin._memory = self._memory.copy(twin.header)
        return twin

    def read(self) -> UInt8[Tensor, "p bytes"]:
        return self._memory.read()

    def check_restore(self, stored: Tensor, length: int) -> None:
        _require_like(stored, self._memory.buffer)
        self._retention.check_saved(stored, length)
        if len(stored) > self.header.slots:
            raise ValueError(
                f"a saved state has {len(stored)} compressed entries where this one has room for "
                f"{self.header.slots}: make it with a larger `max_tokens`"
            )

    def restore(self, stored: Tensor, length: int) -> None:
        self.check_restore(stored, length)
        self.header.kept = 0
        self._memory.write(stored, length)

    @property
    def nbytes(self) -> int:
        return self._memory.buffer.nbytes

    def _check_room(self, count: int) -> None:
        slots = self.header.slots
        if self._retention.kept is None and self.length + count > slots:
            raise ValueError(
                f"the state has room for {slots} compressed entries and holds {self.length}; "
                f"{count} more do not fit: make it with a larger `max_tokens`"
            )


def _require_like(stored: Tensor, like: Tensor) -> None:
    """Same width and kind of number; the precision of floating numbers is the network's."""
    if (
        stored.ndim != 2
        or stored.shape[1] != like.shape[1]
        or (
            stored.dtype != like.dtype
            and not (stored.is_floating_point() and like.is_floating_point())
        )
    ):
        raise ValueError(
            f"a saved state has rows of shape {list(stored.shape)} and {stored.dtype} where this "
            f"one has [..., {like.shape[1]}] and {like.dtype}: it belongs to another model or "
            "storage"
        )


# --------------------------------------------------------------------------------------------------
# The deployed formats


def kv_codec(head_dim: int, rotary: int) -> Codec:
    """FP8 channels in blocks of 64, then the bf16 rotary channels, then a scale byte per block
    padded to 8: 584 bytes for the published 512 channels. Source: docs/architecture.md 8.1."""
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

    return Codec(encode, decode, ends[2], NATIVE_FORMATS["kv"])


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

    return Codec(encode, decode, half + head_dim // FP4_BLOCK, NATIVE_FORMATS["index"])


def float_codec(width: int) -> Codec:
    """float32, for the projections of unfinished groups."""
    return Codec(
        lambda rows: rows.float().contiguous().view(torch.uint8),
        lambda packed, dtype: packed.contiguous().view(torch.float32).to(dtype),
        4 * width,
        NATIVE_FORMATS[torch.float32],
    )
