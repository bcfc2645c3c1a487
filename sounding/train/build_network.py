"""Build the network of a run, with its initial weights."""

import torch
from torch import nn

from sounding.model.layers import Linear
from sounding.model.transformer import Transformer
from sounding.parallel.group import Group
from sounding.simulation import EXACT, QUANTIZATION_AWARE
from sounding.train.initialise import initialise
from sounding.train.run_config import RunConfig


def build_network(run: RunConfig, device: torch.device) -> Transformer:
    """The network of a run with its initial weights.

    Raises ValueError when quantization-aware training is asked for and the model has no quantized
    form.
    """
    if run.train.qat and run.model.quantization_config is None:
        raise ValueError(
            "train.qat = True needs model.quantization_config: it says what to round to"
        )
    simulation = QUANTIZATION_AWARE if run.train.qat else EXACT
    model = Transformer(run.model, simulation, getattr(torch, run.train.dtype)).to(device)
    initialise(model, run.model, run.train.seed)
    if run.train.qat:
        _assert_rounded(model)
    if run.train.compile:
        for block in (*model.layers, *model.mtp):
            block.compile(dynamic=True)  # lengths differ from batch to batch
    return model


def freeze_all_but(model: Transformer, prefix: str | None, group: Group) -> None:
    """Let only parameters whose names begin with `prefix` take gradients; None changes nothing.

    Raises ValueError for a prefix that no name has, and for one in a group of several processes,
    where parameters are sharded and train together.
    """
    if not prefix:
        return
    if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
        raise ValueError(
            f"train.only = {prefix!r} begins no parameter's name; they begin with 'layers.0.', "
            "'mtp.0.', 'embed.', 'head.' and the like"
        )
    if group.world > 1:
        raise ValueError("train.only needs a single process: sharded weights train together")
    for name, param in model.named_parameters():
        if not name.startswith(prefix):
            param.requires_grad_(False)


def _assert_rounded(model: nn.Module) -> None:
    """Check that rounding is on: training without it would only be noticed after the run."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.format is not None:
            with torch.no_grad():
                rounded = module.stored.values
            assert module.simulate, f"the inputs of {name} are not rounded"
            assert not torch.equal(rounded, module.weight), f"the weights of {name} are not rounded"
