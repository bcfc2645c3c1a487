"""Pack a checkpoint for reading its experts from disk: one read each, checksummed.

A packed checkpoint is a checkpoint like any other, with the same tensors. One file per layer holds
its routed experts by number, each in one piece; where an expert's bytes are whole pages, as in the
published models, each begins at a page. One file holds all other tensors. Checksums are in the
files' metadata.

Files are written one by one, and one that is complete is kept when packing starts again.
"""

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.files import file_facts, sync, write_file
from sounding.weights.checkpoint import CONFIG_NAME, Checkpoint
from sounding.weights.companions import companions
from sounding.weights.expert_files import (
    CHECKSUMS,
    PAGE_BYTES,
    PARTS,
    ExpertFiles,
    bytes_checksum,
)
from sounding.weights.shards import INDEX_NAME, Shard

_SOURCE = "sounding.packed_from"
_UNFINISHED = ".partial"
_UNKNOWN = f"{0:016x}"  # a checksum before its tensor is read


@dataclass
class _Plan:
    """A file to write: its tensors in order, and what is checksummed as a whole."""

    path: Path
    source: str
    """Facts of the files that its tensors come from."""
    tensors: dict[str, tuple[str, tuple[int, ...], int]] = field(default_factory=dict)
    """Dtype, shape and bytes by name."""
    wholes: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(size for _, _, size in self.tensors.values())

    def header(self, checksums: Mapping[str, str]) -> bytes:
        """The bytes that open the file, which end at a page. Their number does not depend on the
        checksums."""
        values = " ".join(f"{name}:{checksums.get(name, _UNKNOWN)}" for name in self.wholes)
        entries: dict[str, Any] = {
            "__metadata__": {"format": "pt", CHECKSUMS: values, _SOURCE: self.source}
        }
        at = 0
        for name, (dtype, shape, size) in self.tensors.items():
            offsets = [at, at + size]
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
            at += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % PAGE_BYTES)
        return len(text).to_bytes(8, "little") + text

    def is_done(self) -> bool:
        """True if the file was written by an earlier run, from the same source."""
        if not self.path.is_file():
            return False
        try:
            found = Shard(self.path)
        except ValueError:
            return False
        same = {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()}
        wanted = {name: (dtype, shape) for name, (dtype, shape, _) in self.tensors.items()}
        return same == wanted and found.metadata.get(_SOURCE) == self.source


def pack(
    checkpoint: Checkpoint, folder: Path, on_progress: Callable[[int], object] = lambda size: None
) -> None:
    """Write a packed copy of a checkpoint to `folder`, or go on with one that was begun.

    Calls `on_progress` with numbers of bytes that are done. Raises ValueError for a folder with
    other files, or on too small a disk, and ExpertReadError where the source cannot be read.
    """
    layers = _layers(checkpoint)
    files = ExpertFiles(checkpoint, list(layers), list(layers.values()))
    try:
        plans = [_resident_plan(checkpoint, folder, len(layers))]
        plans += [_layer_plan(checkpoint, folder, name, layers) for name in layers]
        _require_place(checkpoint.folder, folder, plans)
        folder.mkdir(parents=True, exist_ok=True)
        for number, plan in enumerate(plans):
            if plan.is_done():
                on_progress(plan.num_bytes)
            elif number == 0:
                _write(plan, _resident_data(checkpoint, plan), on_progress)
            else:
                _write(plan, _layer_data(files, number - 1), on_progress)
    finally:
        files.close()
    _finish(checkpoint, folder, plans)


def _layers(checkpoint: Checkpoint) -> dict[str, int]:
    """Number of experts of each layer by its name, such as "layers.3"."""
    counts: dict[str, int] = {}
    for name in checkpoint.names():
        before, routed, _ = name.partition(".ffn.experts.")
        if routed and name.endswith(".w1.weight"):
            counts[before] = counts.get(before, 0) + 1
    return counts


def _resident_plan(checkpoint: Checkpoint, folder: Path, layers: int) -> _Plan:
    plan = _Plan(_path(folder, 0, layers), "")
    names = list(checkpoint.names(routed_experts=False))
    _add(plan, checkpoint, names)
    plan.wholes = names
    return plan


def _layer_plan(checkpoint: Checkpoint, folder: Path, name: str, layers: dict[str, int]) -> _Plan:
    plan = _Plan(_path(folder, 1 + list(layers).index(name), len(layers)), "")
    ordered = [
        f"{name}.ffn.experts.{expert}.{part}.{leaf}"
        for expert in range(layers[name])
        for leaf in ("weight", "scale")
        for part in PARTS
    ]
    _add(plan, checkpoint, [each for each in ordered if each in checkpoint.sources])
    plan.wholes = [f"{name}.{expert}" for expert in range(layers[name])]
    return plan


def _add(plan: _Plan, checkpoint: Checkpoint, names: list[str]) -> None:
    sources = {name: checkpoint.sources[name] for name in names}
    plan.source = file_facts(sorted({source.shard.path for source in sources.values()}))
    for name, source in sources.items():
        plan.tensors[name] = source.dtype, source.shape, source.num_bytes


def _path(folder: Path, number: int, layers: int) -> Path:
    return folder / f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"


def _require_place(source: Path, folder: Path, plans: list[_Plan]) -> None:
    """Raise ValueError for a folder that holds anything else, or whose disk is too small."""
    own = {plan.path.name for plan in plans}
    own |= {f"{name}{_UNFINISHED}" for name in own}
    own |= {path.name for path in companions(source)} | {CONFIG_NAME, INDEX_NAME}
    foreign = (
        [path.name for path in folder.iterdir() if path.name not in own] if folder.exists() else []
    )
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]}, which is no part of a checkpoint that is being packed; "
            "choose a new folder"
        )
    if (folder / INDEX_NAME).exists() and not all(plan.is_done() for plan in plans):
        raise ValueError(f"{folder} holds another checkpoint; choose a new folder")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    needed = sum(plan.num_bytes for plan in plans if not plan.is_done())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"{folder} needs {needed:,} more bytes and its disk has {free:,} free; make room or "
            "choose another disk"
        )


def _resident_data(
    checkpoint: Checkpoint, plan: _Plan
) -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
    for name in plan.tensors:
        array = checkpoint.read_raw(name).array
        yield name, [np.ascontiguousarray(array).reshape(-1).view(np.uint8)]


def _layer_data(files: ExpertFiles, layer: int) -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
    """The tensors of each expert in turn."""
    slot = memoryview(mmap.mmap(-1, max(files.slot_bytes, 1)))
    sizes = {name: source.num_bytes for name, source in files.sources[layer].items()}
    for expert in range(files.counts[layer]):
        files.read(layer, expert, slot)
        place = files.place(layer, expert)
        parts = [
            np.frombuffer(slot, np.uint8, sizes[f"{part}.{leaf}"], offset)
            for leaf, offsets in (("weight", place.values), ("scale", place.scales))
            for part, offset in zip(PARTS, offsets, strict=False)
        ]
        yield f"{files.names[layer]}.{expert}", parts


def _write(
    plan: _Plan,
    data: Iterator[tuple[str, list[NDArray[np.uint8]]]],
    on_progress: Callable[[int], object],
) -> None:
    """Write a file under another name, which it loses when all of it is on the disk."""
    unfinished = plan.path.with_name(plan.path.name + _UNFINISHED)
    checksums: dict[str, str] = {}
    with unfinished.open("wb") as file:
        file.write(plan.header({}))
        for name, parts in data:
            whole = np.concatenate(parts)
            checksums[name] = f"{bytes_checksum(whole):016x}"
            file.write(whole.data)
            on_progress(whole.nbytes)
        file.seek(0)
        file.write(plan.header(checksums))
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(plan.path)
    sync(plan.path.parent)


def _finish(checkpoint: Checkpoint, folder: Path, plans: list[_Plan]) -> None:
    """Write what makes a checkpoint of the files: only now does the folder open."""
    for path in companions(checkpoint.folder):
        write_file(folder / path.name, path.read_bytes())
    homes = {name: plan.path.name for plan in plans for name in plan.tensors}
    index = {
        "metadata": {"total_size": sum(plan.num_bytes for plan in plans)},
        "weight_map": homes,
    }
    write_file(folder / CONFIG_NAME, (checkpoint.folder / CONFIG_NAME).read_bytes())
    write_file(folder / INDEX_NAME, (json.dumps(index, indent=2) + "\n").encode())
