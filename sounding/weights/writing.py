"""Atomic writing of checkpoints.

A folder is filled under a hidden name beside its destination, synced to disk, and renamed last; a
crash leaves only that hidden folder, which the next save to the same place removes. Tensors may
arrive in any order and in parts, so memory holds one part, never a shard.
The bytes equal those of safetensors' own writer, whose order is that of the published files.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from sounding.files import sync
from sounding.weights.checkpoint import CONFIG_NAME
from sounding.weights.layout import DTYPE_BYTES, StoredTensor, shard_groups
from sounding.weights.names import published_name
from sounding.weights.shards import INDEX_NAME
from sounding.weights.tensors import DTYPE_NAMES

SINGLE_SHARD_BYTES = 4 * 2**30  # up to here one shard is handier; above, one per layer
_ALIGNMENT = 8  # headers are padded so that data begins aligned
# Files a checkpoint consists of; a folder with anything else in it is never replaced.
_CHECKPOINT_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".md", ".model")


@contextmanager
def new_checkpoint(
    folder: Path,
    tensors: Sequence[StoredTensor],
    config: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Iterator["CheckpointWriter"]:
    """Write a checkpoint folder, which appears when the block ends normally.

    `tensors` are all that will be put, `config` is the JSON of config.json, `metadata` goes into
    every shard. Raises ValueError for a destination that is in use or on too small a disk.
    """
    total_bytes = sum(tensor.num_bytes for tensor in tensors)
    with replacing(folder, total_bytes, overwrite=overwrite) as partial:
        writer = CheckpointWriter(partial, tensors, metadata)
        try:
            yield writer
            writer.finish(config)
        finally:
            writer.close()


class CheckpointWriter:
    """Fills a folder with shards, tensor by tensor in any order. Made by `new_checkpoint`."""

    def __init__(
        self, folder: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str] | None
    ) -> None:
        self._folder = folder
        self._homes: dict[str, _ShardFile] = {}
        self._total_bytes = sum(tensor.num_bytes for tensor in tensors)
        for file, held in _assign(tensors, self._total_bytes).items():
            shard = _ShardFile(folder / file, held, metadata)
            self._homes.update(dict.fromkeys((tensor.name for tensor in held), shard))

    def put(self, name: str, tensor: Shaped[Tensor, "..."], first_row: int = 0) -> None:
        """Write a tensor, or consecutive rows of it; rows count all dimensions but the last."""
        self._homes[name].put(name, tensor, first_row)

    def copy_file(self, path: Path) -> None:
        """Put a file that is not weights (a tokenizer, a licence) beside them."""
        shutil.copyfile(path, self._folder / path.name)
        sync(self._folder / path.name)

    def finish(self, config: Mapping[str, Any]) -> None:
        """Sync all shards, then write index and config; without these nothing opens."""
        for shard in set(self._homes.values()):
            shard.finish()
        homes = {name: shard.path.name for name, shard in self._homes.items()}
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": homes}
        self._write_json(INDEX_NAME, index)
        self._write_json(CONFIG_NAME, config)

    def close(self) -> None:
        """Release the files, finished or not."""
        for shard in set(self._homes.values()):
            shard.close()

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        (self._folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        sync(self._folder / name)


def _assign(tensors: Sequence[StoredTensor], total_bytes: int) -> dict[str, list[StoredTensor]]:
    """File name to its tensors: one shard if small, else split as the published shards are."""
    if total_bytes <= SINGLE_SHARD_BYTES:
        return {"model-00001-of-00001.safetensors": list(tensors)}
    by_published = {published_name(tensor.name): tensor for tensor in tensors}
    groups = shard_groups(by_published)
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": [by_published[n] for n in group]
        for number, group in enumerate(groups, 1)
    }


# --------------------------------------------------------------------------------------------------
# One file


class _ShardFile:
    """A safetensors file whose header is written first and whose tensors may come in any order."""

    def __init__(
        self, path: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str] | None
    ) -> None:
        self.path = path
        header, self._places = _header(tensors, metadata)
        self._missing_bytes = {tensor.name: tensor.num_bytes for tensor in tensors}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.truncate(self._file, len(header) + sum(self._missing_bytes.values()))
        _write_at(self._file, memoryview(header), 0)

    def put(self, name: str, tensor: Tensor, first_row: int) -> None:
        spec, begin = self._places[name]
        assert DTYPE_NAMES[tensor.dtype] == spec.dtype, (name, tensor.dtype, spec.dtype)
        assert tensor.shape[-1:] == spec.shape[-1:], (name, tensor.shape, spec.shape)
        row_bytes = (spec.shape[-1] if spec.shape else 1) * DTYPE_BYTES[spec.dtype]
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        assert first_row * row_bytes + len(flat) <= spec.num_bytes, name
        _write_at(self._file, flat.numpy().data, begin + first_row * row_bytes)
        self._missing_bytes[name] -= len(flat)

    def finish(self) -> None:
        missing = [name for name, count in self._missing_bytes.items() if count]
        assert not missing, f"never written: {missing[:3]}"
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _header(
    tensors: Sequence[StoredTensor], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, tuple[StoredTensor, int]]]:
    """The bytes that open a file, and where tensors begin: widest dtype first, then by name."""
    rank = {dtype: position for position, dtype in enumerate(DTYPE_BYTES)}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begins: dict[str, tuple[StoredTensor, int]] = {}
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: (rank[tensor.dtype], tensor.name)):
        begins[tensor.name] = (tensor, position)
        end = position + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    data_begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {
        name: (tensor, data_begin + begin) for name, (tensor, begin) in begins.items()
    }


def _write_at(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)  # may stop short, always does above 2 GiB
        data, offset = data[written:], offset + written


# --------------------------------------------------------------------------------------------------
# Folders


@contextmanager
def replacing(folder: Path, num_bytes: int = 0, *, overwrite: bool = False) -> Iterator[Path]:
    """A new hidden folder that takes the place of `folder` when the block ends normally.

    Raises ValueError if `folder` is in use and `overwrite` is false, if it holds anything that is
    no checkpoint, or if its disk lacks `num_bytes`.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _require_replaceable(folder, overwrite)
    free = shutil.disk_usage(folder.parent).free
    if num_bytes > free:
        raise ValueError(
            f"{folder} would take {num_bytes:,} bytes and its disk has {free:,} free; make room "
            "or choose another disk"
        )
    partial = _sibling(folder, "partial")
    partial.mkdir()
    lock = _lock(partial)
    assert lock is not None
    try:
        yield partial
        sync(partial)
        _swap(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def recover(folder: Path) -> None:
    """Finish or undo what interrupted saves to `folder` left beside it."""
    for path in sorted(folder.parent.iterdir()):
        role = path.name.removeprefix(f".{folder.name}.").partition("-")[0]
        if not path.name.startswith(f".{folder.name}.") or role not in ("partial", "replaced"):
            continue
        lock = _lock(path)
        if lock is None:
            continue  # another process is writing it
        if role == "replaced" and not folder.exists():
            path.rename(folder)  # the crash came between the two renames of a swap
        else:
            shutil.rmtree(path)
        os.close(lock)


def _require_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; a checkpoint is written to a folder")
    files = list(folder.iterdir())
    if files and not overwrite:
        raise ValueError(f"{folder} is not empty; choose a new folder, or replace it (--force)")
    foreign = [path for path in files if not _belongs(path)]
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0].name}, which is no part of a checkpoint, and would be "
            "lost; choose another folder"
        )


def _belongs(path: Path) -> bool:
    named = path.suffix in _CHECKPOINT_SUFFIXES or path.name.startswith("LICENSE")
    return path.is_file() and (named or path.name == ".gitattributes")


def _swap(partial: Path, folder: Path) -> None:
    """Put a finished folder in place; the old one is gone only once the new one is there."""
    replaced = None
    if folder.exists() and any(folder.iterdir()):
        replaced = _sibling(folder, "replaced")
        folder.rename(replaced)
    partial.rename(folder)
    sync(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}-{secrets.token_hex(4)}")


def _lock(folder: Path) -> int | None:
    """A lock that ends with this process, to distinguish an abandoned folder from a busy one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
