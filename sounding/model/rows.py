"""The reference's storage of rows: PyTorch tensors.

`GrowingRows` are plain tensors that gradients flow through; `PackedRows` are preallocated bytes in
the deployed format. Source: docs/architecture.md 8.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
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
from sounding.state.rows import Retention, Rows, StoredRows, require_like

# NumPy has no bfloat16: such rows are stored as their bits.
_STORED = {
    np.dtype("float32"): torch.float32,
    np.dtype("float64"): torch.float64,
    np.dtype("uint16"): torch.bfloat16,
}


@runtime_checkable  # for the shape checks of the tests
class TensorRows(Rows, Protocol):
    """Rows that the reference appends to."""

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        """Append rows; return all rows that queries may see: the stored ones, then the new ones."""

    def fork(self) -> "TensorRows":
        """An independent continuation from here."""


def append_each(lists: Sequence[TensorRows], parts: Sequence[Tensor]) -> list[Tensor]:
    """Append to every sequence's list its part of a chunk; what each returns, in their order.

    The last sequence comes first: where a batch is cut over processes, what its last sequence sends
    to the next process must be known when its first receives.
    """
    pairs = list(zip(lists, parts, strict=True))
    return [rows.append(part) for rows, part in reversed(pairs)][::-1]


class GrowingRows:
    """Rows that grow without bound: tensors that forks share and gradients flow through."""

    def __init__(self, width: int, retention: Retention, *, per_group: bool = False) -> None:
        self.per_group = per_group
        self.length = 0
        self._retention = retention
        self._rows = torch.empty(0, width)

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        before = self._rows
        visible = torch.cat((before.to(rows), rows)) if len(before) else rows
        kept = self._retention.kept
        # A copy, because a slice would keep the whole chunk in memory.
        self._rows = visible if kept is None or len(visible) <= kept else visible[-kept:].clone()
        self.length += len(rows)
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

    def read(self) -> StoredRows:
        rows = self._rows.detach().cpu()
        return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()

    def check_restore(self, stored: StoredRows, length: int) -> None:
        known = stored.dtype if stored.dtype in _STORED else np.dtype("float32")
        require_like(stored, self._rows.shape[1], known)
        self._retention.check_saved(len(stored), length)

    def restore(self, stored: StoredRows, length: int) -> None:
        self.check_restore(stored, length)
        rows = torch.from_numpy(np.array(stored))
        self._rows = rows.view(_STORED[stored.dtype]).to(self._rows.device)
        self.length = length

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes


@dataclass(frozen=True)
class Codec:
    """A packed form of rows: both directions, and the bytes of one row."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, torch.dtype], Tensor]
    row_bytes: int


class PackedRows:
    """Rows as bytes in a preallocated buffer: a ring if only the last rows are needed.

    Rows are read back through the codec, also those of the same chunk, so results do not depend
    on where a chunk ends.
    """

    def __init__(
        self, codec: Codec, retention: Retention, capacity: int, *, per_group: bool = False
    ) -> None:
        self.per_group = per_group
        self.length = self._kept = 0
        self._codec = codec
        self._retention = retention
        self._slots = capacity if retention.kept is None else retention.kept
        self._buffer = torch.zeros(self._slots, codec.row_bytes, dtype=torch.uint8)

    def append(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "p w"]:
        if self._retention.kept is None and self.length + len(rows) > self._slots:
            raise ValueError(
                f"the state has room for {self._slots} compressed entries and holds {self.length}; "
                f"{len(rows)} more do not fit: make it with a larger `max_tokens`"
            )
        packed = self._codec.encode(rows.detach())
        visible = torch.cat((self._read(), packed))
        self._write(packed, self.length + len(rows))
        return self._codec.decode(visible, rows.dtype)

    def check_truncate(self, length: int) -> None:
        self._retention.check(self._kept - (self.length - length), length)

    def truncate(self, length: int) -> None:
        self.check_truncate(length)
        self._kept -= self.length - length
        self.length = length

    def fork(self) -> "PackedRows":
        twin = object.__new__(PackedRows)
        twin.__dict__.update(self.__dict__)
        twin._buffer = self._buffer.clone()
        return twin

    def read(self) -> StoredRows:
        return self._read().numpy()

    def check_restore(self, stored: StoredRows, length: int) -> None:
        require_like(stored, self._buffer.shape[1], np.dtype("uint8"))
        self._retention.check_saved(len(stored), length)
        if len(stored) > self._slots:
            raise ValueError(
                f"a saved state has {len(stored)} compressed entries where this one has room for "
                f"{self._slots}: make it with a larger `max_tokens`"
            )

    def restore(self, stored: StoredRows, length: int) -> None:
        self.check_restore(stored, length)
        self._kept = 0
        self._write(torch.from_numpy(np.array(stored)), length)

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def _read(self) -> UInt8[Tensor, "p bytes"]:
        """The stored rows, oldest first: row i of the list is in slot i % slots."""
        return self._buffer[self._places(self.length, self._kept)]

    def _write(self, rows: Tensor, length: int) -> None:
        """Append rows as the last of a list, which then has `length`."""
        last = rows[-self._slots :] if self._slots else rows[:0]
        self._buffer[self._places(length, len(last))] = last
        self.length, self._kept = length, min(self._kept + len(rows), self._slots)

    def _places(self, length: int, count: int) -> Tensor:
        return torch.arange(length - count, length) % max(1, self._slots)


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
