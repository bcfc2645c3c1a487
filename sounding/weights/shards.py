"""Safetensors files, read lazily: headers first, a tensor when it is used.

Every structural rule of the format is checked before the first tensor is read, so a truncated
download or a foreign file is refused with the reason, not read as noise. `checkpoint` interprets
the names.
"""

import ctypes
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sounding.files import parse_json
from sounding.weights.layout import DTYPE_BYTES
from sounding.weights.raw import ARRAY_DTYPES, RawTensor

INDEX_NAME = "model.safetensors.index.json"

_LENGTH_BYTES = 8  # the header's length, little-endian, opens the file
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_MAX_NAME = 1000  # characters of a tensor's name, which messages repeat
_MAX_DIMENSIONS = 64  # of a tensor, in torch and in NumPy
# Without a reservation of memory for pages that may be written: a model larger than memory would be
# refused. Linux had the flag long before Python 3.13 named it.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_MAP_FLAGS = mmap.MAP_PRIVATE | _NO_RESERVE
_MAP_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
# Files given in place of a safetensors file, by their first bytes.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes; it holds a pickle, which can run code"),
    (b"\x80", "a Python pickle, which can run code"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was never downloaded"),
    (b"<", "a web page, probably an error message saved as the download"),
)
_REMEDY = "only safetensors files are read; get the model in that format"
_ADAPTER = "adapter_"
# Weights that others read, by the endings of their files.
_OTHER_WEIGHTS: dict[str, tuple[tuple[str, ...], str]] = {
    "an adapter (LoRA), the change of a model": (
        (),
        "merge it into the model that it was trained on, and give the folder of that",
    ),
    "a GGUF file, the format of llama.cpp": ((".gguf",), _REMEDY),
    "a pickle of PyTorch, which can run code": (
        (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"),
        _REMEDY,
    ),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: dtype by its safetensors name, shape, bytes counted from the start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Shard:
    """One safetensors file whose header has been read and found sound.

    Raises ValueError naming the file, what is wrong with it and what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header, data_begin = _read_header(file.read, size, path)
        self.metadata = _metadata(header.pop("__metadata__", {}), path)
        for name, raw in header.items():
            if len(name) > _MAX_NAME:
                raise ValueError(
                    f"{path}: a tensor's name has {len(name):,} characters ({name[:40]!r}...); at "
                    f"most {_MAX_NAME:,} are read, so the file is damaged: download it again"
                )
            self.entries[name] = _entry(raw, data_begin, f"{path}: tensor {name!r}")
        _require_seamless(self.entries, data_begin, size, path)

    def read(self, name: str) -> RawTensor:
        """The tensor itself: its pages come from disk when they are touched, without a copy.

        The mapping is private: writing into the array changes memory, never the file.
        """
        entry = self.entries[name]
        dtype = np.dtype(ARRAY_DTYPES[entry.dtype])
        if entry.begin == entry.end:
            return RawTensor(np.empty(entry.shape, dtype), entry.dtype)
        # One mapping per tensor, which dies with it. Private and writable, because an array over
        # read-only pages would crash whatever writes into it.
        page = entry.begin - entry.begin % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            mapped = _map(file.fileno(), page, entry.end - page)
        raw = np.frombuffer(mapped, dtype=np.uint8, offset=entry.begin - page)
        if raw.ctypes.data % dtype.itemsize:
            raw = raw.copy()  # legal in the format, but no CPU type may lie unaligned
        return RawTensor(raw.view(dtype).reshape(entry.shape), entry.dtype)


def _map(file: int, offset: int, length: int) -> Any:
    """Bytes of an open file as a buffer, unmapped when nothing refers to it any more.

    Not Python's mmap, which keeps a descriptor open for each mapping: a published checkpoint has
    more tensors than a process may have files. Raises OSError where the system refuses.
    """
    libc = _libc()
    address = libc.mmap(None, length, _MAP_PROTECTION, _MAP_FLAGS, file, offset)
    if address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map {length:,} bytes of a file: {os.strerror(error)}")
    mapped = (ctypes.c_uint8 * length).from_address(address)
    weakref.finalize(mapped, libc.munmap, address, length).atexit = False
    return mapped


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = (ctypes.c_void_p, size, number, number, number, ctypes.c_long)
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = (ctypes.c_void_p, size)
    return libc


# --------------------------------------------------------------------------------------------------
# Headers


def _read_header(read: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The parsed JSON header and where the data after it begins."""
    start = read(64)
    if size <= _LENGTH_BYTES or start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise ValueError(f"{path} is {_foreign(start, size)}; {_REMEDY}")
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{path} claims a header of {length:,} bytes; the format allows "
            f"{_MAX_HEADER_BYTES:,}, so the file is damaged: download it again"
        )
    data_begin = _LENGTH_BYTES + length
    if data_begin > size:
        raise ValueError(
            f"{path} is truncated within its header: it has {size:,} bytes and the header alone "
            f"takes {data_begin:,}; download it again"
        )
    text = start[_LENGTH_BYTES:data_begin] + read(max(0, data_begin - len(start)))
    return parse_json(text, f"the header of {path}"), data_begin


def _foreign(start: bytes, size: int) -> str:
    for magic, description in _FOREIGN:
        if start.startswith(magic):
            return description
    if size <= _LENGTH_BYTES:
        return f"only {size} bytes long, too short for a safetensors file"
    return "not a safetensors file (no header where one must be)"


def _metadata(raw: Any, path: Path) -> dict[str, str]:
    sound = isinstance(raw, dict) and all(isinstance(value, str) for value in raw.values())
    if not sound:
        raise ValueError(f"{path}: __metadata__ must map names to texts, not {raw!r:.60}")
    return raw


def _entry(raw: Any, data_begin: int, where: str) -> Entry:
    """Check one tensor of a header; `where` names file and tensor."""
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} must have dtype, shape and data_offsets, not {raw!r:.60}")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in (*DTYPE_BYTES, "F4"):
        known = ", ".join([*DTYPE_BYTES, "F4"])
        raise ValueError(f"{where} has the unknown dtype {dtype!r:.40}; known are {known}")
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS or prod(shape) >= 2**63:
        raise ValueError(f"{where} has the impossible shape {shape!r:.60}")
    if dtype == "F4":  # counted in numbers, where published files count bytes of two
        if not shape or shape[-1] % 2:
            raise ValueError(f"{where} is F4 {shape!r:.60}; its last dimension must be even")
        dtype, shape = "I8", [*shape[:-1], shape[-1] // 2]
    if not (_is_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise ValueError(f"{where} has the impossible data_offsets {offsets!r:.60}")
    needed, given = prod(shape) * DTYPE_BYTES[dtype], offsets[1] - offsets[0]
    if needed != given:
        raise ValueError(
            f"{where} is {dtype} {list(shape)}, which takes {needed:,} bytes, but its "
            f"data_offsets span {given:,}; the file is damaged"
        )
    return Entry(dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _is_sizes(value: Any) -> bool:
    """True if a JSON value is a list of valid file offsets or sizes."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _require_seamless(entries: Mapping[str, Entry], begin: int, size: int, path: Path) -> None:
    """Tensors must tile the data exactly: no overlap, no hole, nothing missing or left over."""
    position, previous = begin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps" if entry.begin < position else "leaves a hole after"
            raise ValueError(f"{path}: tensor {name!r} {what} {previous}; the file is damaged")
        position, previous = entry.end, repr(name)
    if position > size:
        raise ValueError(
            f"{path} is truncated: its header describes {position:,} bytes and the file has "
            f"{size:,}; download it again"
        )
    if position < size:
        raise ValueError(
            f"{path} has {size - position:,} bytes after its last tensor, which the format "
            "forbids; the file is damaged: download it again"
        )


# --------------------------------------------------------------------------------------------------
# Folders


def read_folder(folder: Path) -> dict[str, Shard]:
    """Tensor name to the shard that holds it, from headers alone.

    With an index its shards are read and must agree with it name by name; without one the folder
    must hold a single file. Raises ValueError naming file, tensor and rule.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        shard = Shard(_only_file(folder))
        return dict.fromkeys(shard.entries, shard)
    weight_map = _weight_map(index)
    shards = {name: _open(folder, name, index) for name in sorted(set(weight_map.values()))}
    found: dict[str, Shard] = {}
    for shard in shards.values():
        for name in shard.entries:
            if name in found:
                raise ValueError(
                    f"tensor {name!r} is in {found[name].path} and in {shard.path}; "
                    "each tensor must have one home: remove one of the files"
                )
            found[name] = shard
    for name, file in weight_map.items():
        if name not in shards[file].entries:
            raise ValueError(
                f"{index} places tensor {name!r} in {file}, which does not hold it; "
                "index and shards are from different models: download both again"
            )
    for name, shard in found.items():
        if name not in weight_map:
            raise ValueError(
                f"{shard.path} holds tensor {name!r}, which {index} does not name; "
                "index and shards are from different models: download both again"
            )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    raw = parse_json(index.read_bytes(), str(index)).get("weight_map")
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{index} must have a weight_map from tensor names to files")
    for name, file in raw.items():
        path = PurePosixPath(file) if isinstance(file, str) and file else None
        if path is None or path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file:
            raise ValueError(
                f"{index} places tensor {name!r} in {file!r}; a shard must be a file within the "
                "model's folder"
            )
    return raw


def _open(folder: Path, name: str, index: Path) -> Shard:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{index} names the shard {name}, which is missing: download it as well")
    return Shard(path)


def _only_file(folder: Path) -> Path:
    """The one weight file of a folder without an index."""
    found = sorted(folder.glob("*.safetensors"))
    files = [path for path in found if not path.name.startswith(_ADAPTER)]
    for preferred in ("model.safetensors", "model-00001-of-00001.safetensors"):
        if folder / preferred in files:
            return folder / preferred
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(
            f"{folder} holds {len(files)} safetensors files and no {INDEX_NAME} to say which "
            "belong together; download the index as well"
        )
    raise ValueError(f"{folder} holds no safetensors file of a model{foreign_weights(folder)}")


def foreign_weights(folder: Path) -> str:
    """What lies in a folder, or at a path, in place of weights that are read; "" for nothing."""
    others = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    for path in others:
        for what, (endings, remedy) in _OTHER_WEIGHTS.items():
            adapter = what.startswith("an adapter") and path.name.startswith(_ADAPTER)
            if adapter or path.suffix in endings:
                return f": {path.name} is {what}; {remedy}"
    return f"; {_REMEDY}"
