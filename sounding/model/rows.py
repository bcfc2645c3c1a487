"""Lists of rows, the one thing that states are made of: appended to, of bounded memory, storable.

Of some lists only the last rows are kept. Two storages stand behind `Rows`, and the network cannot
tell which it was given: `GrowingRows` are plain tensors that gradients flow through; `PackedRows`
are preallocated bytes in the deployed format. Source: spec/architecture.md 8.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

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

    def check_truncate(self, length: int) -> None:
        self._retention.check(len(self._rows) - (self.length - length), length)

    def truncate(self, length: int) -> None:
        self.check_truncate(length)
        self._rows = self._rows[: len(self._rows) - (self.length - length)]
        self.length = length

    def fork(self) -> "GrowingRows":
        twin = object.__new__(GrowingRows)
        twin.__dict__.update(self.__dict__)
        return twin

    def read(self) -> Tensor:
        return self._rows

    def check_restore(self, stored: Tensor, length: int) -> None:
        _require_like(stored, self._rows)
        self._retention.check_saved(stored, length)

    def restore(self, stored: Tensor, length: int) -> None:
        self.check_restore(stored, length)
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

    def check_truncate(self, length: int) -> None:
        self._retention.check(self._kept - (self.length - length), length)

    def truncate(self, length: int) -> None:
        self.check_truncate(length)
        self._kept, self.length = self._kept - (self.length - length), length

    def fork(self) -> "PackedRows":
        twin = object.__new__(PackedRows)
        twin.__dict__.update(self.__dict__)
        twin._buffer = self._buffer.clone()
        return twin

    def read(self) -> UInt8[Tensor, "p bytes"]:
        return self._buffer[self._slots(self._kept)]

    def check_restore(self, stored: Tensor, length: int) -> None:
        _require_like(stored, self._buffer)
        self._retention.check_saved(stored, length)
        if len(stored) > len(self._buffer):
            raise ValueError(
                f"a saved state has {len(stored)} compressed entries where this one has room for "
                f"{len(self._buffer)}: make it with a larger `max_tokens`"
            )

    def restore(self, stored: Tensor, length: int) -> None:
        self.check_restore(stored, length)
        self.length, self._kept = length, len(stored)
        self._buffer[self._slots(len(stored))] = stored

    @property
    def nbytes(self) -> int:
        return self._buffer.numel()

    def _slots(self, count: int) -> Tensor:
        """Buffer positions of the last `count` rows, oldest first."""
        return torch.arange(self.length - count, self.length) % max(1, len(self._buffer))


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
