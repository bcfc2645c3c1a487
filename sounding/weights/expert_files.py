"""Experts of a checkpoint read one by one, past the page cache, into memory of the caller.

An expert is six tensors (three without scales). Neighbours in a file are read at once: as published
that makes two reads, in the form that `pack` writes one. Nothing is mapped, so that a file that is
shortened or lost while it is read is an error of the read and not the end of the process.
"""

import ctypes
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sounding.ops.cpu import library
from sounding.weights.checkpoint import Checkpoint, TensorSource
from sounding.weights.layout import DTYPE_BYTES
from sounding.weights.raw import RawTensor

PAGE_BYTES = 4096  # alignment of direct reads: of offset, length and address
PARTS = ("w1", "w2", "w3")
CHECKSUMS = "sounding.expert_checksums"
"""Key of a shard's metadata: checksums of tensors, and of experts as "layers.3.17", each as
`name:hex`, separated by blanks."""

ReadCall = Callable[[int, Sequence[memoryview], int], int]
"""`os.preadv`, or what tests put in its place."""

_DIRECT = getattr(os, "O_DIRECT", 0)
_NO_CACHE = 48  # fcntl of macOS: F_NOCACHE
_ODD = 0x9E3779B97F4A7C15  # joins the checksums of pieces


class ExpertReadError(OSError):
    """An expert could not be read as it was; the message names the file and the way out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [begin, end) of a file, which are read to `place` and on in memory.

    Numbers of several bytes may lie unaligned in a file; all bytes then move to `place - shift`.
    """

    file: int
    begin: int
    end: int
    place: int
    shift: int = 0

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def window(self) -> tuple[int, int]:
        """What is read in memory, in whole pages."""
        low, high = self.place, self.place + self.nbytes
        return low - low % PAGE_BYTES, -(-high // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Where an expert lies in files, and its tensors in memory."""

    pieces: tuple[Piece, ...]
    values: tuple[int, ...]
    """Offsets of w1, w2 and w3 in memory."""
    scales: tuple[int, ...]
    """Offsets of their scales; none if they have none."""
    checksum: int | None


class ExpertFiles:
    """The routed experts of some layers: `names` such as "layers.3", counts[i] in each."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Sequence[str],
        counts: Sequence[int],
        *,
        read: ReadCall = os.preadv,
    ) -> None:
        """Opens the files. Raises ValueError for one that cannot be opened."""
        self._read, self.names = read, tuple(names)
        self.sources: list[dict[str, TensorSource]] = []
        """Tensors of the first expert of each layer, by their names in it, such as "w1.scale"."""
        self._files: list[_File] = []
        numbers: dict[Path, int] = {}
        self._places: list[list[Place]] = []
        for name, count in zip(names, counts, strict=True):
            experts = [_tensors(checkpoint, f"{name}.ffn.experts.{e}") for e in range(count)]
            self.sources.append(experts[0])
            for tensors in experts:
                for source in tensors.values():
                    path = source.shard.path
                    if path not in numbers:
                        numbers[path] = len(numbers)
                        self._files.append(_File(path, source.shard.metadata.get(CHECKSUMS, "")))
            self._places.append(
                [
                    _place(tensors, numbers, self._files, f"{name}.{expert}")
                    for expert, tensors in enumerate(experts)
                ]
            )
        self._seen: dict[tuple[int, int], int] = {}
        everywhere = [place for places in self._places for place in places]
        self.slot_bytes = max((place.pieces[-1].window[1] for place in everywhere), default=0)
        """Memory that any one expert needs, in whole pages."""
        self.expert_bytes = max(
            (sum(piece.nbytes for piece in place.pieces) for place in everywhere), default=0
        )
        """Bytes of the largest expert."""

    @property
    def counts(self) -> list[int]:
        """Number of experts of each layer."""
        return [len(places) for places in self._places]

    def in_sequence(self, layer: int) -> bool:
        """True if a step that runs this layer goes on to the next; drafters are run apart."""
        return all(name.startswith("layers.") for name in self.names[layer : layer + 2])

    def place(self, layer: int, expert: int) -> Place:
        """Where an expert lies."""
        return self._places[layer][expert]

    def path(self, layer: int, expert: int) -> Path:
        """The file of an expert, or of its first part."""
        return self._files[self._places[layer][expert].pieces[0].file].path

    def order(self, layer: int, expert: int) -> tuple[int, int]:
        """Sorts experts by their order in the files."""
        first = self._places[layer][expert].pieces[0]
        return first.file, first.begin

    def nbytes(self, layer: int, expert: int) -> int:
        """Bytes that reading an expert takes from the disk."""
        pieces = self._places[layer][expert].pieces
        return sum(piece.window[1] - piece.window[0] for piece in pieces)

    def read(self, layer: int, expert: int, slot: memoryview) -> None:
        """Read an expert into a slot of `slot_bytes` that begins at a page.

        May be called from several threads. Raises ExpertReadError, after which the slot holds
        nothing of use.
        """
        place = self._places[layer][expert]
        total = 0
        for piece in place.pieces:
            self._files[piece.file].read(self._read, piece, slot)
            array = np.frombuffer(slot, dtype=np.uint8)
            whole = array[piece.place - piece.shift :][: piece.nbytes]
            if piece.shift:
                whole[...] = array[piece.place :][: piece.nbytes]
            total = (total * _ODD + bytes_checksum(whole)) % 2**64
        known = place.checksum
        if known is None:  # files as published have none: at least every read must be the same
            known = self._seen.setdefault((layer, expert), total)
        if total != known:
            path = self.path(layer, expert)
            raise ExpertReadError(
                f"{path}: expert {expert} of {self.names[layer]} does not have its checksum: the "
                "file or the disk is damaged, or the file was replaced while it was in use; check "
                "the disk, get the file again and restart"
            )

    def close(self) -> None:
        """Close the files; no read may be running."""
        for file in self._files:
            file.close()


def parse_checksums(text: str) -> dict[str, int]:
    """The metadata under `CHECKSUMS` as numbers by name."""
    entries = (entry.partition(":") for entry in text.split())
    return {name: int(value, 16) for name, _, value in entries}


def require_checksums(checkpoint: Checkpoint, tensors: Mapping[str, RawTensor]) -> None:
    """Raise ExpertReadError for a tensor that does not have the checksum that its file gives."""
    shards = {checkpoint.sources[name].shard for name in tensors}
    known = {shard.path: parse_checksums(shard.metadata.get(CHECKSUMS, "")) for shard in shards}
    for name, tensor in tensors.items():
        path = checkpoint.sources[name].shard.path
        expected = known[path].get(name)
        found = bytes_checksum(tensor.array.reshape(-1).view(np.uint8)) if expected else None
        if found != expected:
            raise ExpertReadError(
                f"{path}: tensor {name!r} does not have its checksum: the file is damaged; pack "
                "the model again"
            )


def _tensors(checkpoint: Checkpoint, name: str) -> dict[str, TensorSource]:
    found = {}
    for part in PARTS:
        for leaf in ("weight", "scale"):
            source = checkpoint.sources.get(f"{name}.{part}.{leaf}")
            if source is not None:
                found[f"{part}.{leaf}"] = source
    return found


def _place(
    tensors: dict[str, TensorSource], numbers: dict[Path, int], files: "list[_File]", key: str
) -> Place:
    """Join neighbours in the files, and lay the pieces out so that direct reads need no copy."""
    itemsize = max(DTYPE_BYTES[source.dtype] for source in tensors.values())
    extents = sorted((numbers[s.shard.path], *s.extent, name) for name, s in tensors.items())
    pieces: list[Piece] = []
    offsets: dict[str, int] = {}
    for file, begin, end, name in extents:
        last = pieces[-1] if pieces else None
        if last is not None and last.file == file and last.end == begin:
            pieces[-1] = Piece(file, last.begin, end, last.place, last.shift)
        else:
            at = last.window[1] if last is not None else 0
            # Direct reads begin at a page of the file, and land at a page of memory.
            pieces.append(Piece(file, begin, end, at + begin % PAGE_BYTES, begin % itemsize))
        piece = pieces[-1]
        offsets[name] = piece.place - piece.shift + begin - piece.begin
    return Place(
        tuple(pieces),
        tuple(offsets[f"{part}.weight"] for part in PARTS),
        tuple(offsets[f"{part}.scale"] for part in PARTS if f"{part}.scale" in offsets),
        files[pieces[0].file].checksums.get(key),
    )


def bytes_checksum(array: NDArray[np.uint8]) -> int:
    """The checksum of bytes. Raises ValueError if the C++ kernels were not built."""
    found = library()
    if found is None:
        raise ValueError("checksums of experts need the C++ kernels, which were not built")
    function = found.bytes_checksum
    function.restype = ctypes.c_uint64
    return int(function(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.size)))


# --------------------------------------------------------------------------------------------------
# One file


class _File:
    """A file that is read past the page cache where the file system allows it."""

    def __init__(self, path: Path, checksums: str) -> None:
        self.path = path
        self.checksums = parse_checksums(checksums)
        self._lock = threading.Lock()
        self._descriptor, self._direct = _open(path)
        self._facts = self._look()

    def read(self, call: ReadCall, piece: Piece, slot: memoryview) -> None:
        """Read a piece to its place, and whether the file is still the one that was opened."""
        low, high = piece.window
        offset = piece.begin - piece.begin % PAGE_BYTES
        needed = piece.end - offset  # of the window; its last page may lie behind the file's end
        done = 0
        while done < needed:
            done -= done % PAGE_BYTES
            try:
                count = call(self._descriptor, [slot[low + done : high]], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._direct:
                    self._read_buffered()
                    continue
                raise self._failed(
                    piece, f"{error.strerror or error} (errno {error.errno})"
                ) from error
            if count <= 0 or (count < PAGE_BYTES and done + count < needed):
                self._require_unchanged()
                raise self._failed(piece, f"the read ended after {done + max(count, 0):,} bytes")
            done += count
        self._require_unchanged()

    def close(self) -> None:
        os.close(self._descriptor)

    def _read_buffered(self) -> None:
        """Go on without direct reads, which this file system announced and refuses."""
        with self._lock:
            if self._direct:
                # The old descriptor stays open: another thread may be reading with it.
                self._descriptor, self._direct = (
                    os.open(self.path, os.O_RDONLY | os.O_CLOEXEC),
                    False,
                )
                self._require_same(self._look())

    def _look(self) -> tuple[int, ...]:
        facts = os.fstat(self._descriptor)
        return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns

    def _require_unchanged(self) -> None:
        self._require_same(self._look())

    def _require_same(self, facts: tuple[int, ...]) -> None:
        if facts != self._facts:
            raise ExpertReadError(
                f"{self.path} was changed while experts were read from it (it had "
                f"{self._facts[2]:,} bytes and has {facts[2]:,}); put the original file back, and "
                "restart"
            )

    def _failed(self, piece: Piece, why: str) -> ExpertReadError:
        return ExpertReadError(
            f"{self.path}: reading {piece.nbytes:,} bytes at {piece.begin:,} failed: "
            f"{why}; check the disk and its cables, or copy the model to another disk"
        )


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether its reads are direct."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    if _DIRECT:
        try:
            return os.open(path, flags | _DIRECT), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    descriptor = os.open(path, flags)
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, _NO_CACHE, 1)
    return descriptor, False
