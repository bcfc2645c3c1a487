"""Checkpoints that every process writes its part of, read by any number of processes.

PyTorch's distributed checkpoints (DCP) in safetensors files, which cannot carry code; each says in
its header where its parts lie in the whole tensors. Loading takes from all files what each process
needs, however the tensors were cut when they were saved. A file that is missing would leave numbers
as they were before, so the names and sizes of all files are kept beside them.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sounding.files import sync
from sounding.parallel.group import Group

FOLDER_NAME = "shards"
_FILES_NAME = "files.json"


def save_shards(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> None:
    """Write tensors that are sharded (`sharding.logical`) or the same everywhere. Collective."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    state = {name: _with_dimension(tensor) for name, tensor in tensors.items()}
    with _alone_without_a_warning():
        save(state, storage_writer=writer, no_dist=group.world == 1)
    group.wait()
    if group.is_main:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
        for path in files:
            sync(path)
        sizes = {path.name: path.stat().st_size for path in files}
        (folder / _FILES_NAME).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
        sync(folder / _FILES_NAME)


def saved_shapes(folder: Path) -> dict[str, torch.Size]:
    """The shapes of the whole tensors. Raises ValueError naming a file that is damaged."""
    try:
        sizes = json.loads((folder / _FILES_NAME).read_text(encoding="utf-8"))
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found:,} bytes and was written with {size:,}")
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from None
    return {
        name: torch.Size(getattr(entry, "size", ()))
        for name, entry in metadata.state_dict_metadata.items()
    }


def load_shards(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> None:
    """Fill tensors from those saved by these names, in place. Collective.

    Raises ValueError where one is missing, of another shape, or cannot be read.
    """
    shapes = saved_shapes(folder)
    state = {name: _with_dimension(tensor) for name, tensor in tensors.items()}
    for name, tensor in state.items():
        if shapes.get(name) != tensor.shape:
            found = f"has the shape {list(shapes[name])}" if name in shapes else "is missing"
            raise ValueError(f"{name} {found} in {folder}; this run has {list(tensor.shape)}")
    try:
        _load(state, folder, alone=group.world == 1)
    except CheckpointException as error:
        raise ValueError(f"{folder} cannot be read: {error}") from None


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """All tensors whose names begin with `prefix`, whole, named without it."""
    dtypes = _dtypes(folder)
    tensors = {
        name: torch.zeros(shape, dtype=dtypes[name])
        for name, shape in saved_shapes(folder).items()
        if name.startswith(prefix)
    }
    _load(tensors, folder, alone=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _load(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    with _alone_without_a_warning():
        reader = HuggingFaceStorageReader(str(folder))
        load(dict(tensors), storage_reader=reader, no_dist=alone)


@contextmanager
def _alone_without_a_warning() -> Iterator[None]:
    """DCP warns of a single process even where `no_dist` says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _dtypes(folder: Path) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys() - found.keys():
                found[name] = file.get_slice(name)[:0].dtype
    return found


def _with_dimension(tensor: Tensor) -> Tensor:
    """Files have no slices of a number, so a number is a vector of one; it shares its memory."""
    return tensor.view(1) if tensor.ndim == 0 else tensor
