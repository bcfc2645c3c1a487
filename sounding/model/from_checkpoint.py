"""Build a network from a checkpoint, and save one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sounding.config import ModelConfig
from sounding.model.transformer import Transformer
from sounding.simulation import EXACT, Simulation
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.state_dict import read_state, write_state


def load_model(
    checkpoint: Checkpoint,
    *,
    simulation: Simulation = EXACT,
    dtype: torch.dtype = torch.float32,
    dequantize: torch.dtype | None = None,
) -> Transformer:
    """The network of a checkpoint, computing in `dtype`.

    Weights keep their stored format, so that they take as much memory as they do on disk, unless
    `dequantize` names a dtype to unpack them to: as parameters to train, or to trade memory for
    speed. Raises ValueError for defective tensors (see `Checkpoint`).
    """
    state = read_state(checkpoint, dequantize)
    return build_model(state, checkpoint.config, simulation=simulation, dtype=dtype)


def build_model(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    simulation: Simulation = EXACT,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """Build a network around tensors, which are not copied."""
    with torch.device("meta"):
        model = Transformer(config, simulation, dtype)
    trainable = {name: old.requires_grad for name, old in model.named_parameters()}
    missing = sorted(trainable.keys() - state.keys())
    if missing:
        raise ValueError(f"the state lacks {missing[0]!r}, a parameter of the network")
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        learns = trainable.get(name, False) and tensor.dtype.is_floating_point
        learns = learns and tensor.element_size() > 1  # float8 is storage, not for gradients
        parameter = nn.Parameter(tensor, requires_grad=learns)
        model.get_submodule(owner).register_parameter(leaf, parameter)
    return model


def save_model(model: Transformer, folder: Path, *, overwrite: bool = False) -> None:
    """Write a network in the published layout, each weight in the format it has.

    Raises ValueError as `write_state` does.
    """
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_state(state, model.config, folder, overwrite=overwrite)
