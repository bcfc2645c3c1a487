"""Model folders made for a test, sound ones to be spoiled, written without our own writer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sounding.weights.raw import RawTensor

TINY = Path(__file__).parent.parent / "vectors" / "tiny"
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


def tiny_tensors() -> dict[str, Tensor]:
    """The tensors of the golden checkpoint, by safetensors' own reader."""
    return load_file(TINY / SHARD)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The JSON of its config; a change to None removes the key."""
    raw = {**json.loads((TINY / "config.json").read_text()), **changes}
    return {key: value for key, value in raw.items() if value is not None}


def write_model(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Path:
    """A folder with one shard and no index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or tiny_config()))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, shards: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """A folder with several shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    for file, tensors in shards.items():
        save_file(dict(tensors), folder / file)
    write_index(folder, {name: file for file, held in shards.items() for name in held})
    return folder


def write_index(folder: Path, weight_map: Mapping[str, Any]) -> None:
    """An index that says where each tensor is."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of exactly this header (JSON, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def tensor_bytes(tensor: Tensor | RawTensor) -> bytes:
    """A tensor's bytes as stored."""
    if isinstance(tensor, RawTensor):
        return tensor.array.tobytes()
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def base_tensors() -> dict[str, Tensor]:
    """The golden network in the Base format: FP8 everywhere, float32 scales no power of two."""
    generator = torch.Generator().manual_seed(1)
    tensors = tiny_tensors()
    for name in [name for name in tensors if name.endswith(".scale")]:
        weight = tensors[name.removesuffix("scale") + "weight"]
        if weight.dtype == torch.int8:
            shape = (weight.shape[0], 2 * weight.shape[1])
            values = torch.randn(shape, generator=generator)
            tensors[name.removesuffix("scale") + "weight"] = values.to(torch.float8_e4m3fn)
            weight = values
        grid = [-(-size // 128) for size in weight.shape]
        tensors[name] = torch.rand(grid, generator=generator) * 0.01 + 1e-3
    return tensors
