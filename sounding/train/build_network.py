"""The network that a run trains, as it is before the first step."""

import torch
from torch import nn

from sounding.model.layers import EXACT, QUANTIZATION_AWARE, Linear
from sounding.model.transformer import Transformer
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


def _assert_rounded(model: nn.Module) -> None:
    """Quantization-aware training that silently is not would be found out only after the run."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.format is not None:
            with torch.no_grad():
                rounded = module.stored.values
            assert module.simulate, f"the inputs of {name} are not rounded"
            assert not torch.equal(rounded, module.weight), f"the weights of {name} are not rounded"
