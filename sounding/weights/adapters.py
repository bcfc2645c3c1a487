"""Adapters as values and as files: low-rank deltas that lie beside the weights of a base.

The delta of a weight W [o, i] is `factor` B A, with A [r, i] and B [o, r]; the base keeps its
stored format. One safetensors file holds an adapter: `<module>.lora_A.weight` and
`<module>.lora_B.weight`, routed experts stacked, and in its metadata the factor and the digest of
the base's bytes. It is written whole, so that what is on disk always opens.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sounding.config import ModelConfig
from sounding.files import write_file
from sounding.weights.layout import Component, Kind, Parameter, parameters
from sounding.weights.names import expert_parts
from sounding.weights.raw import RawTensor
from sounding.weights.shards import Shard

ADAPTER_NAME = "adapter.safetensors"
_FACTS, _VERSION = "sounding_adapter", 1
_LOW, _HIGH = "lora_A.weight", "lora_B.weight"
_COMPONENTS = (Component.ATTENTION, Component.SHARED, Component.ROUTED)
_NAME = re.compile(r"(?P<module>.+)\.(?P<leaf>lora_[AB]\.weight)")


class Delta(NamedTuple):
    """The two factors of one weight's delta, in bfloat16 or float32."""

    low: RawTensor
    """A [*e, r, i]: what the input is multiplied with first."""
    high: RawTensor
    """B [*e, o, r]"""

    @property
    def rank(self) -> int:
        return self.low.shape[-2]


@dataclass(frozen=True)
class Adapter:
    """Deltas of a base's weights, by module as the network names them, such as
    `layers.0.attn.wq_a` and `layers.0.ffn.experts.w1` (stacked by expert)."""

    deltas: Mapping[str, Delta]
    factor: float
    """What B A is multiplied with: alpha / rank in the usual terms."""
    base: str
    """Digest of the bytes of the base's weights (`weights_digest`); "" if it is not known."""

    @property
    def nbytes(self) -> int:
        return sum(low.nbytes + high.nbytes for low, high in self.deltas.values())

    @property
    def num_parameters(self) -> int:
        return sum(low.array.size + high.array.size for low, high in self.deltas.values())


# --------------------------------------------------------------------------------------------------
# Weights that may have a delta


def adaptable(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Modules that an adapter may change, with the shapes of their weights: the linears of
    attention, of shared experts and, stacked, of routed experts.

    Router, compressors, indexers, hyper-connections and MTP blocks keep the base's weights.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in parameters(config):
        if parameter.component in _COMPONENTS and parameter.kind in (Kind.EXPERT, Kind.LINEAR):
            module = _module(parameter)
            experts = shapes[module][0] + 1 if module in shapes else 1
            stack = (experts,) if parameter.kind is Kind.EXPERT else ()
            shapes[module] = (*stack, *parameter.shape)
    return shapes


def _module(parameter: Parameter) -> str:
    parts = expert_parts(parameter.name)
    return f"{parts[0]}.{parts[2]}" if parts else parameter.name.removesuffix(".weight")


def require_fit(adapter: Adapter, config: ModelConfig, where: str) -> None:
    """Raise ValueError, naming the delta, unless every one fits a weight of the network."""
    shapes = adaptable(config)
    if not adapter.deltas:
        raise ValueError(f"{where} has no delta, so it would change nothing; tune again")
    for module, (low, high) in adapter.deltas.items():
        if module not in shapes:
            raise ValueError(
                f"{where}: {module!r} is no weight of this network that an adapter may change; it "
                "was made for another one"
            )
        *stack, outputs, inputs = shapes[module]
        rank = low.shape[-2] if len(low.shape) == len(stack) + 2 else 0
        for leaf, found, wanted in (
            (_LOW, low, (*stack, rank, inputs)),
            (_HIGH, high, (*stack, outputs, rank)),
        ):
            if rank < 1 or found.shape != wanted:
                shape = ", ".join(map(str, (*stack, "rank", inputs)))
                expected = list(wanted) if rank else f"[{shape}]"
                raise ValueError(
                    f"{where}: {module}.{leaf} is {list(found.shape)}; with this network and a "
                    f"rank of {rank or 'at least 1'} it is {expected}"
                )
            if found.dtype not in ("BF16", "F32"):
                raise ValueError(
                    f"{where}: {module}.{leaf} is {found.dtype}; only BF16 and F32 are read"
                )


def require_base(adapter: Adapter, digest: str, where: str) -> None:
    """Raise ValueError unless the adapter was made for weights of this digest."""
    if adapter.base and adapter.base != digest:
        raise ValueError(
            f"{where} was made for a base whose weights have the digest {adapter.base[:12]}, and "
            f"this model's have {digest[:12]}: the base was replaced. Name the old one, or make "
            "the adapter anew with `sounding tune FOLDER --anew`"
        )


# --------------------------------------------------------------------------------------------------
# Files


def adapter_file(path: Path) -> Path:
    """The file of an adapter that is named by its folder or by itself. Raises ValueError."""
    file = path / ADAPTER_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path} holds no adapter ({ADAPTER_NAME}); `sounding tune FOLDER` makes one"
        )
    return file


def read_adapter(path: Path, config: ModelConfig) -> Adapter:
    """The adapter in a folder or file, checked against the shapes of a network.

    Its tensors lie in memory of their own, so the file may be replaced meanwhile. Raises
    ValueError naming file and tensor; the base's digest is the caller's to check.
    """
    file = adapter_file(path)
    shard = Shard(file)
    facts = _facts(shard.metadata, file)
    parts: dict[str, dict[str, RawTensor]] = {}
    for name in shard.entries:
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{file}: {name!r} is no part of an adapter")
        raw = shard.read(name)
        copy = RawTensor(np.array(raw.array, order="C"), raw.dtype)
        parts.setdefault(match["module"], {})[match["leaf"]] = copy
    adapter = Adapter(paired(parts, str(file)), _factor(facts, file), str(facts.get("base", "")))
    require_fit(adapter, config, str(file))
    return adapter


def paired(parts: Mapping[str, Mapping[str, RawTensor]], where: str) -> dict[str, Delta]:
    """Deltas of the two factors of each module. Raises ValueError where one is missing."""
    for module, leaves in parts.items():
        for leaf in (_LOW, _HIGH):
            if leaf not in leaves:
                raise ValueError(f"{where}: {module}.{leaf} is missing beside the other factor")
    return {module: Delta(leaves[_LOW], leaves[_HIGH]) for module, leaves in parts.items()}


def _facts(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(metadata[_FACTS])
    except (KeyError, ValueError):
        facts = None
    if not isinstance(facts, dict) or facts.get("version") != _VERSION:
        raise ValueError(
            f"{file} is no adapter in this program's form {_VERSION}; one that PEFT wrote is read "
            "by `sounding adapter import`"
        )
    return facts


def _factor(facts: Mapping[str, Any], file: Path) -> float:
    factor = facts.get("factor")
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"{file}: its factor is {factor!r}, which must be a number above 0")
    return float(factor)


def write_adapter(adapter: Adapter, folder: Path) -> Path:
    """Write an adapter to a folder, replacing the one in it at once; returns the file."""
    from safetensors.torch import save

    from sounding.weights.tensors import to_torch

    tensors = {}
    for module, delta in adapter.deltas.items():
        tensors[f"{module}.{_LOW}"] = to_torch(delta.low)
        tensors[f"{module}.{_HIGH}"] = to_torch(delta.high)
    facts = {"version": _VERSION, "factor": adapter.factor, "base": adapter.base}
    folder.mkdir(parents=True, exist_ok=True)
    # One key: safetensors writes several in any order, and equal adapters should be equal files.
    write_file(folder / ADAPTER_NAME, save(tensors, {_FACTS: json.dumps(facts)}))
    return folder / ADAPTER_NAME
