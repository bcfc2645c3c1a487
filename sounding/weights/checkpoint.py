"""A model folder as an object: config, every tensor under its published name, read when used.

Opening reads headers only and validates them against the layout the config implies, in every
dialect and number format. `shards` validates the structure of single files.
Source: docs/checkpoints.md 1 to 5.
"""

import dataclasses
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sounding.config import ModelConfig, QuantizationConfig
from sounding.config_file import parse_config
from sounding.files import parse_json
from sounding.weights.layout import (
    FLOATS,
    Component,
    Kind,
    Parameter,
    Storage,
    StoredTensor,
    parameters,
    stored_as,
)
from sounding.weights.names import expert_parts, fused_experts, is_transformers, published_name
from sounding.weights.raw import ARRAY_DTYPES, RawTensor, to_float32
from sounding.weights.shards import Shard, foreign_weights, read_folder

if TYPE_CHECKING:  # reading a checkpoint needs no PyTorch
    from torch import Tensor

    from sounding.weights.drafter import DrafterFile

CONFIG_NAME = "config.json"

logger = logging.getLogger(__name__)

# Dtypes a weight may have, the published ones first.
ALLOWED_DTYPES = {
    Kind.EXPERT: ("I8", "F8_E4M3", *FLOATS),
    Kind.LINEAR: ("F8_E4M3", *FLOATS),
    Kind.PLAIN: FLOATS,
    Kind.PRECISE: FLOATS,
    Kind.TABLE: ("I64", "I32"),
}
_PACKED = ("I8", "F8_E4M3")  # formats with scales beside them
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DRAFT = re.compile(r"mtp\.\d+\.")
_DRAFT_GROUP = re.compile(r"^mtp\.")
# Copies of the embedding and the vocabulary head inside a draft block, which shares the main ones.
_DRAFT_COPY = re.compile(r"mtp\.\d+\.(?!markov_head\.)(.*emb.*|(.+\.)?head\.weight)")


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The location of a published tensor: a shard's tensor, or one expert's part of a fused one."""

    shard: Shard
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    expert: int | None = None
    first_row: int = 0

    @property
    def where(self) -> str:
        """File and tensor, to open an error message with."""
        return f"{self.shard.path}: tensor {self.stored_name!r}"

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return StoredTensor(self.stored_name, self.shape, self.dtype).num_bytes

    @property
    def extent(self) -> tuple[int, int]:
        """Its bytes in the file, from and to."""
        entry = self.shard.entries[self.stored_name]
        if self.expert is None:
            return entry.begin, entry.end
        _, rows, _ = entry.shape
        row_bytes = self.num_bytes // self.shape[0]
        begin = entry.begin + (self.expert * rows + self.first_row) * row_bytes
        return begin, begin + self.num_bytes

    def read(self) -> RawTensor:
        """The tensor as stored, without a copy."""
        whole = self.shard.read(self.stored_name)
        if whole.dtype != self.dtype:  # the same bytes by another name
            whole = RawTensor(whole.array.view(ARRAY_DTYPES[self.dtype]), self.dtype)
        if self.expert is None:
            return whole
        return whole[self.expert, self.first_row : self.first_row + self.shape[0]]


class Checkpoint:
    """An opened model folder; `sources` and `parameters` carry published names.

    `config` agrees with the formats found in the files, which overrule config.json.
    Only headers are read. Raises ValueError naming file, tensor, rule and way out.
    """

    def __init__(self, folder: Path, drafter: "DrafterFile | None" = None) -> None:
        """With `drafter` the network has the DSpark drafter of that file, in place of one that the
        checkpoint may hold."""
        self.folder = folder
        raw, config = read_config(folder)
        shards = read_folder(folder)
        by_transformers = "layer_types" in raw or any(map(is_transformers, shards))
        self.dialect: Literal["published", "transformers"] = (
            "transformers" if by_transformers else "published"
        )
        self.sources = _resolve(shards)
        if self.dialect == "transformers":
            config = _without_absent_drafts(config, self.sources)
        if drafter is not None:
            config = drafter.joined(config)
        self.parameters = tuple(parameters(config))
        self.skipped = _skip_drafts(self.sources, config, folder)
        if drafter is not None:
            self.sources |= _drafter_sources(drafter)
        _require_all(self.sources, self.parameters, folder)
        expected = _validate(self.sources, self.parameters)
        _refuse_unknown(self.sources, expected, folder)
        self.storage = detect_storage(
            self.parameters, {name: source.dtype for name, source in self.sources.items()}
        )
        self.config = reconcile(config, self.storage)

    @property
    def files(self) -> list[Path]:
        """The files that its tensors are read from."""
        return sorted({source.shard.path for source in self.sources.values()})

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors of the network."""
        return sum(source.num_bytes for source in self.sources.values())

    def read_raw(self, name: str) -> RawTensor:
        """A tensor by its published name, as stored; scales and tables are checked on the way.

        Raises ValueError for scales that are not finite and for expert ids out of range.
        """
        source = self.sources[name]
        tensor = source.read()
        if name.endswith(".scale"):
            _require_finite_scale(tensor, source.where)
        elif name.endswith(".tid2eid"):
            _require_expert_ids(tensor, self.config.n_routed_experts, source.where)
        return tensor

    def read(self, name: str) -> "Tensor":
        """`read_raw` as a PyTorch tensor of the same memory."""
        from sounding.weights.tensors import to_torch

        return to_torch(self.read_raw(name))

    def read_packed(self, parameter: Parameter) -> tuple["Tensor", "Tensor | None"]:
        """A parameter as stored, and its scales if it is quantized, as PyTorch tensors."""
        has_scale = self.sources[parameter.name].dtype in _PACKED
        weight = self.read(parameter.name)
        return weight, self.read(parameter.scale_name) if has_scale else None

    def read_all(self) -> dict[str, RawTensor]:
        """Every tensor of the network by its published name, scales included, each checked."""
        return {name: self.read_raw(name) for name in self.names()}

    def names(self, *, routed_experts: bool = True) -> Iterator[str]:
        """The published names of all tensors of the network, scales included; or of all but those
        of routed experts."""
        for parameter in self.parameters:
            if routed_experts or parameter.kind is not Kind.EXPERT:
                yield parameter.name
                if self.sources[parameter.name].dtype in _PACKED:
                    yield parameter.scale_name


def read_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """The config of a model folder, in its published or its transformers form, and its JSON."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; a model is a folder with {CONFIG_NAME} and safetensors"
            + (foreign_weights(folder) if folder.is_file() else "")
        )
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {CONFIG_NAME}, so it is not a model, or not all of one"
            f"{foreign_weights(folder)}"
        )
    raw = parse_json(path.read_bytes(), str(path))
    try:
        return raw, parse_config(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def detect_storage(network: Iterable[Parameter], dtypes: Mapping[str, str]) -> Storage:
    """The formats of a checkpoint with these dtypes, by the first weight of each kind."""
    found: dict[Kind, str] = {}
    scales = "F8_E8M0"
    for parameter in network:
        dtype = dtypes[parameter.name]
        if parameter.kind not in found and dtype == "F8_E4M3":
            scales = dtypes[parameter.scale_name]
        found.setdefault(parameter.kind, dtype)
    return Storage(
        experts=found[Kind.EXPERT],
        linears=found[Kind.LINEAR],
        plain=found[Kind.PLAIN],
        scales=scales,
    )


def reconcile(config: ModelConfig, storage: Storage) -> ModelConfig:
    """Return the config with the formats found in the files."""
    if config.torch_dtype is not None:
        config = dataclasses.replace(config, torch_dtype=_TORCH_NAMES[storage.plain])
    if storage.linears in FLOATS and storage.experts in FLOATS:
        return dataclasses.replace(config, quantization_config=None, expert_dtype=None)
    quantization = dataclasses.replace(
        config.quantization_config or QuantizationConfig(),
        scale_fmt="ue8m0" if storage.scales == "F8_E8M0" else None,
    )
    formats: dict[str, Literal["fp4", "fp8"]] = {"I8": "fp4", "F8_E4M3": "fp8"}
    found = formats.get(storage.experts)
    if found not in (None, config.expert_format):  # the first release lacks the key and may
        quantization = dataclasses.replace(quantization, expert_dtype=None)
        config = dataclasses.replace(config, expert_dtype=found)
    return dataclasses.replace(config, quantization_config=quantization)


# --------------------------------------------------------------------------------------------------
# Names


def _resolve(shards: Mapping[str, Shard]) -> dict[str, TensorSource]:
    """Published name to source, for every tensor of the files."""
    sources: dict[str, TensorSource] = {}
    for stored_name, shard in shards.items():
        for name, source in _published(stored_name, shard):
            if name in sources:
                raise ValueError(
                    f"{source.where} and {sources[name].where} are both {name!r}; "
                    "each tensor must be there once: remove one"
                )
            sources[name] = source
    return sources


def _published(stored_name: str, shard: Shard) -> Iterable[tuple[str, TensorSource]]:
    entry = shard.entries[stored_name]
    fused = fused_experts(stored_name)
    if fused is None:
        name = published_name(stored_name)
        dtype = _packed_dtype(name, entry.dtype)
        yield name, TensorSource(shard, stored_name, entry.shape, dtype)
        return
    prefix, linears, suffix = fused
    dtype = _packed_dtype(f"{prefix}.0.w1.{suffix}", entry.dtype)
    if len(entry.shape) != 3 or entry.shape[1] % len(linears):
        raise ValueError(
            f"{shard.path}: tensor {stored_name!r} has shape {list(entry.shape)}; fused experts "
            "must have shape [experts, outputs, inputs], gate and up stacked in the outputs"
        )
    experts, rows, columns = entry.shape
    rows //= len(linears)
    for expert in range(experts):
        for position, linear in enumerate(linears):
            name = f"{prefix}.{expert}.{linear}.{suffix}"
            yield (
                name,
                TensorSource(shard, stored_name, (rows, columns), dtype, expert, position * rows),
            )


def _drafter_sources(drafter: "DrafterFile") -> dict[str, TensorSource]:
    """The tensors of a drafter's own file, where they have the names of MTP blocks."""
    return {
        _DRAFT_GROUP.sub("drafter.", name): source
        for stored_name in drafter.shard.entries
        for name, source in _published(stored_name, drafter.shard)
    }


def _packed_dtype(name: str, dtype: str) -> str:
    """The dtype of a tensor where packed bytes are called U8: FP4 experts, and e8m0 scales."""
    if dtype == "U8" and name.endswith(".scale"):
        return "F8_E8M0"
    return "I8" if dtype == "U8" and expert_parts(name) is not None else dtype


def _without_absent_drafts(config: ModelConfig, names: Collection[str]) -> ModelConfig:
    """transformers drops draft blocks on saving but keeps announcing them in the config."""
    announced = config.num_mtp_layers or config.num_dspark_blocks
    if announced == 0 or any(_DRAFT.match(name) for name in names):
        return config
    logger.warning("the checkpoint has no mtp tensors: the model has no block to draft with")
    return dataclasses.replace(config, num_nextn_predict_layers=0, dspark=None)


def _skip_drafts(
    sources: dict[str, TensorSource], config: ModelConfig, folder: Path
) -> tuple[str, ...]:
    """Take out draft tensors the network does not have; returns their names."""
    in_their_place = config.dspark is not None and not config.dspark.beside
    unused = _DRAFT_COPY if config.num_mtp_layers or in_their_place else _DRAFT
    skipped = tuple(name for name in sources if unused.match(name))
    for name in skipped:
        del sources[name]
    if skipped:
        logger.warning(
            "%s: skipped %d tensors under mtp.* (%s, ...): not part of the network",
            folder, len(skipped), skipped[0],
        )  # fmt: skip
    return skipped


# --------------------------------------------------------------------------------------------------
# Checks


def _require_all(
    sources: Mapping[str, TensorSource], expected: Collection[Parameter], folder: Path
) -> None:
    missing = [parameter.name for parameter in expected if parameter.name not in sources]
    if not missing:
        return
    hint = "download the missing shards, or correct the sizes in config.json"
    if all(name.startswith("drafter.") for name in missing):
        raise ValueError(
            f"the drafter beside {folder} lacks {_some(missing)}, which its config calls for; "
            "write it anew, or give --drafter none to run without it"
        )
    if all(name.startswith("mtp.") for name in missing):
        hint = "to run without drafts set num_nextn_predict_layers to 0 in config.json"
        if any(parameter.component is Component.DSPARK for parameter in expected):
            hint += " and remove its dspark_* keys"
    raise ValueError(f"{folder} lacks {_some(missing)}, which its config calls for; {hint}")


def _refuse_unknown(
    sources: Mapping[str, TensorSource], expected: Collection[str], folder: Path
) -> None:
    unknown = [source for name, source in sources.items() if name not in expected]
    if unknown:
        names = _some([source.stored_name for source in unknown])
        raise ValueError(
            f"{unknown[0].shard.path} holds {names}, which this network does not have; config.json "
            "may belong to another model, or the model to a later release"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"tensor {shown}" if len(names) == 1 else f"{len(names)} tensors ({shown}, ...)"


def _validate(sources: Mapping[str, TensorSource], network: Iterable[Parameter]) -> set[str]:
    """Validate dtypes and shapes against the layout; returns the names in it."""
    expected: set[str] = set()
    expert_dtypes: dict[tuple[str, str], str] = {}
    for parameter in network:
        weight = sources[parameter.name]
        _require_dtype(weight, ALLOWED_DTYPES[parameter.kind])
        if parameter.kind is Kind.EXPERT:
            _require_same_format(parameter, weight, expert_dtypes)
        scale = sources.get(parameter.scale_name)
        packed = weight.dtype in _PACKED
        if packed and scale is None:
            raise ValueError(
                f"{weight.where} is quantized but its scales {parameter.scale_name!r} are "
                "missing; download the whole model"
            )
        if packed and scale is not None:
            allowed = ("F8_E8M0",) if weight.dtype == "I8" else ("F8_E8M0", "F32")
            _require_dtype(scale, allowed)
        for tensor in stored_as(parameter, weight.dtype, scale.dtype if scale else "F8_E8M0"):
            _require_shape(sources[tensor.name], tensor)
            expected.add(tensor.name)
    return expected


def _require_same_format(
    parameter: Parameter, weight: TensorSource, seen: dict[tuple[str, str], str]
) -> None:
    parts = expert_parts(parameter.name)
    assert parts is not None
    first = seen.setdefault((parts[0], parts[2]), weight.dtype)
    if first != weight.dtype:
        raise ValueError(
            f"{weight.where} is {weight.dtype} while other experts of its layer are {first}; "
            "one layer's experts must share a format: convert the checkpoint again"
        )


def _require_dtype(source: TensorSource, allowed: tuple[str, ...]) -> None:
    if source.dtype not in allowed:
        raise ValueError(
            f"{source.where} has dtype {source.dtype}; it must be {' or '.join(allowed)}"
        )


def _require_shape(source: TensorSource, expected: StoredTensor) -> None:
    if source.shape != expected.shape:
        raise ValueError(
            f"{source.where} has shape {list(source.shape)}; by config.json it must be "
            f"{list(expected.shape)} for {expected.dtype}: config and weights are from "
            "different models"
        )


def _require_finite_scale(scale: RawTensor, where: str) -> None:
    bad = scale.array == 255 if scale.dtype == "F8_E8M0" else ~np.isfinite(to_float32(scale))
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"{where} has {int(bad.sum())} scales that are not finite, the first at {place}; "
            "the file is damaged: download it again"
        )


def _require_expert_ids(table: RawTensor, experts: int, where: str) -> None:
    ids = table.array
    if ((ids < 0) | (ids >= experts)).any():
        raise ValueError(
            f"{where} has expert ids from {int(ids.min())} to {int(ids.max())}; they must be "
            f"below n_routed_experts = {experts}"
        )
