"""A DSpark drafter in a folder of its own, beside a model that stays as it is.

`drafter.safetensors` holds its blocks under the published names (`mtp.S`), and in its metadata the
digest of the weights that it was trained for; `config.json` is that model's, with the dspark_* keys
of the drafter. Joined to the model, its parameters are under `drafter.S`.
Source: docs/checkpoints.md 2.6.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sounding.config import ModelConfig
from sounding.files import write_file
from sounding.weights.checkpoint import Checkpoint, read_config
from sounding.weights.digest import weights_digest
from sounding.weights.layout import Parameter
from sounding.weights.raw import RawTensor
from sounding.weights.shards import Shard

DRAFTER_NAME, CONFIG_NAME = "drafter.safetensors", "config.json"
FOLDER = "drafter"
"""Where it is found in the folder of its model."""
_FACTS, _VERSION = "sounding_drafter", 1
# How weights are stored, and notes: a model with another value is the same network. The MTP blocks,
# which the drafter does not use, may have been taken out.
_IRRELEVANT = {
    *("expert_dtype", "quantization_config", "torch_dtype", "architectures", "use_cache"),
    *("num_nextn_predict_layers", "compress_ratios", "dspark", "max_position_embeddings"),
}


@dataclass(frozen=True)
class DrafterFile:
    """A drafter that was opened; tensors are read when they are used."""

    folder: Path
    shard: Shard
    config: ModelConfig
    """Of the model that it was trained for, with the drafter beside it."""
    base: str
    """Digest of all bytes of that model's weights (`weights_digest`)."""

    @property
    def path(self) -> Path:
        """The file of its weights."""
        return self.shard.path

    def joined(self, config: ModelConfig) -> ModelConfig:
        """The config of a model with this drafter beside it.

        Raises ValueError, naming the first value that differs, for a network of another shape.
        """
        for field in dataclasses.fields(config):
            theirs, ours = getattr(self.config, field.name), getattr(config, field.name)
            if field.name not in _IRRELEVANT and theirs != ours:
                self._refuse(field.name, theirs, ours)
        if self.config.ratios != config.ratios:
            self._refuse("compress_ratios", list(self.config.ratios), list(config.ratios))
        mtp_layers = config.num_mtp_layers
        return dataclasses.replace(
            config,
            dspark=self.config.dspark,
            num_nextn_predict_layers=mtp_layers,
            compress_ratios=(*config.ratios, *[0] * mtp_layers),
        )

    def require_base(self, digest: str) -> None:
        """Raise ValueError unless it was trained for weights of this digest."""
        if self.base != digest:
            raise ValueError(
                f"{self.path} was trained for a model whose weights have the digest "
                f"{self.base[:12]}, and this model's have {digest[:12]}: its drafts would be "
                "wrong. Train one for these weights, or give --drafter none to run without it"
            )

    def _refuse(self, name: str, theirs: Any, ours: Any) -> None:
        raise ValueError(
            f"{self.path} was made for a network with {name} = {theirs}, and this model's is "
            f"{ours}: give --drafter the drafter of this model, or none to run without it"
        )


# --------------------------------------------------------------------------------------------------
# Reading


def find_drafter(model: Path, asked: str | Path | None = None) -> DrafterFile | None:
    """The drafter that a model is run with: of the folder asked for, by default of the folder
    `drafter` in the model's own if there is one; None for "none".

    Raises ValueError for a folder without a drafter, and for a damaged one.
    """
    if asked is not None and str(asked) == "none":
        return None
    if asked is None:
        beside = model / FOLDER
        return open_drafter(beside) if (beside / DRAFTER_NAME).is_file() else None
    return open_drafter(Path(asked))


def open_drafter(folder: Path) -> DrafterFile:
    """The drafter in a folder, headers only. Raises ValueError naming file, rule and way out."""
    path = folder / DRAFTER_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no drafter ({DRAFTER_NAME}); `sounding drafter` writes one"
        )
    shard = Shard(path)
    _, config = read_config(folder)
    if config.dspark is None:
        raise ValueError(
            f"{folder / CONFIG_NAME} has no dspark_* keys, so it describes no drafter; write the "
            "drafter anew with `sounding drafter`"
        )
    dspark = dataclasses.replace(config.dspark, beside=True, n_blocks=config.num_dspark_blocks)
    config = dataclasses.replace(config, dspark=dspark)
    return DrafterFile(folder, shard, config, _base(shard))


def _base(shard: Shard) -> str:
    try:
        facts = json.loads(shard.metadata[_FACTS])
    except (KeyError, ValueError):
        facts = None
    if not isinstance(facts, dict) or facts.get("version") != _VERSION:
        raise ValueError(
            f"{shard.path} is no drafter in this program's form {_VERSION}: its metadata lacks "
            f"{_FACTS}; write it with `sounding drafter`"
        )
    return str(facts.get("base", ""))


# --------------------------------------------------------------------------------------------------
# Writing


def write_drafter(trained: Checkpoint, base: Checkpoint, folder: Path) -> Path:
    """Write the DSpark drafter of `trained` to a folder of its own, for the model `base`.

    The tensors keep their format. Raises ValueError for a checkpoint without a DSpark drafter, and
    where the network that the drafter was trained with is not `base`.
    """
    config = trained.config
    if config.dspark is None:
        raise ValueError(f"{trained.folder} has no DSpark drafter: its config has no dspark_* keys")
    _require_same_network(trained, base)
    prefix = config.dspark_prefix
    tensors = {
        "mtp." + name.removeprefix(prefix): trained.read_raw(name)
        for name in trained.sources
        if name.startswith(prefix)
    }
    dspark = dataclasses.replace(config.dspark, beside=True, n_blocks=config.num_dspark_blocks)
    described = dataclasses.replace(base.config, dspark=dspark)
    facts = {"version": _VERSION, "base": weights_digest(base.read_all())}
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(described.to_dict(), indent=1) + "\n"
    write_file(folder / CONFIG_NAME, settings.encode())
    write_file(folder / DRAFTER_NAME, _packed(tensors, {_FACTS: json.dumps(facts)}))
    return folder / DRAFTER_NAME


def _require_same_network(trained: Checkpoint, base: Checkpoint) -> None:
    """Raise ValueError unless all weights but those of drafters are equal, unpacked."""
    ours = {each.name: each for each in _network(base)}
    for parameter in _network(trained):
        other = ours.get(parameter.name)
        if other is None or other.shape != parameter.shape:
            raise ValueError(
                f"{trained.folder} is not the network of {base.folder}: {parameter.name} has "
                f"shape {list(parameter.shape)} there and "
                f"{'is missing' if other is None else list(other.shape)} here"
            )
        if not np.array_equal(_values(trained, parameter), _values(base, parameter)):
            raise ValueError(
                f"the drafter of {trained.folder} was trained with other weights than those of "
                f"{base.folder}: {parameter.name} differs. Name the model it was trained for"
            )


def _network(checkpoint: Checkpoint) -> Iterator[Parameter]:
    return (each for each in checkpoint.parameters if not each.drafts)


def _values(checkpoint: Checkpoint, parameter: Parameter) -> Any:
    """The unpacked numbers of a weight."""
    from sounding.ops.matmul import Weight

    if parameter.shape and parameter.name.endswith("tid2eid"):
        return checkpoint.read_raw(parameter.name).array
    import torch

    return Weight(*checkpoint.read_packed(parameter)).dense(torch.float32).numpy()


def _packed(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    from safetensors.torch import save

    from sounding.weights.tensors import to_torch

    return save({name: to_torch(raw) for name, raw in tensors.items()}, dict(metadata))
