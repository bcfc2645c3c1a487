"""Start a run from the weights of a model, or from the weights and moments of a run's checkpoint.

With the moments a next phase continues at full learning rate, on other data, without the steps that
moments take to build up. Step and data start over: the result is a new run.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from sounding.config import ModelConfig
from sounding.data.dataset import TOKENIZER_NAME
from sounding.model.transformer import Transformer
from sounding.text.tokenizer import Tokenizer
from sounding.train.run_checkpoint import model_of
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import parameters
from sounding.weights.state_dict import read_state

logger = logging.getLogger(__name__)

# How weights are stored, and notes: a network with another value is the same network.
_STORAGE_FIELDS = {"expert_dtype", "quantization_config", "torch_dtype", "architectures"}


@torch.no_grad()
def load_initial_weights(model: Transformer, folder: Path, beside: Sequence[Path] = ()) -> None:
    """Fill a network in place from a model in any storage format, unpacked to float32.

    `folder` is a model's, or that of a run's checkpoint, whose moments `moments_of` reads.
    `beside` are the files that go with the network: a tokenizer among them must be the
    checkpoint's. Raises ValueError for a network of other shapes, naming tensor and settings, and
    for another tokenizer. Settings that differ without changing a shape are logged as warnings.
    """
    folder = model_of(folder)
    checkpoint = Checkpoint(folder)
    differing = _differences(checkpoint.config, model.config)
    _require_same_shapes(checkpoint, model.config, differing)
    _require_same_tokenizer(folder, beside)
    for line in differing:
        logger.warning("%s was made with another %s", folder, line)
    state = read_state(checkpoint, torch.float32)
    kept = _begins_anew(checkpoint.config, model.config)
    for name, param in model.named_parameters():
        if not (kept and name.startswith(model.config.dspark_prefix)):
            param.copy_(state[name])


def _begins_anew(theirs: ModelConfig, ours: ModelConfig) -> bool:
    """True if the drafter keeps its own initial weights: a first DSpark drafter for a network."""
    return ours.dspark is not None and theirs.dspark is None


def _differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """Settings in which the networks differ, as `hidden_size: 128, not 384`."""
    before, after = theirs.to_dict(), ours.to_dict()
    names = [name for name in {**before, **after} if name not in _STORAGE_FIELDS]
    return [
        f"{name}: {before.get(name)}, not {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _require_same_shapes(
    checkpoint: Checkpoint, config: ModelConfig, differing: Sequence[str]
) -> None:
    theirs = {parameter.name: parameter.shape for parameter in checkpoint.parameters}
    ours = {parameter.name: parameter.shape for parameter in parameters(config)}
    anew = _begins_anew(checkpoint.config, config)
    for name in {**ours, **theirs}:
        if anew and name.startswith(config.dspark_prefix):
            continue
        if theirs.get(name) == ours.get(name):
            continue
        found, wanted = (
            f"of shape {list(shapes[name])}" if name in shapes else "missing"
            for shapes in (theirs, ours)
        )
        raise ValueError(
            f"{checkpoint.folder} is another network: {name} is {found} there and {wanted} in the "
            f"run ({'; '.join(differing)}); give the run those values with --set model.NAME=VALUE"
        )


def _require_same_tokenizer(folder: Path, beside: Sequence[Path]) -> None:
    theirs = folder / TOKENIZER_NAME
    for path in beside:
        if path.name != TOKENIZER_NAME or not theirs.is_file():
            continue
        if Tokenizer.from_file(theirs).token_bytes != Tokenizer.from_file(path).token_bytes:
            raise ValueError(
                f"{theirs} and {path} are different tokenizers, so the weights would read wrong "
                "tokens: tokenize the data with the model's own"
            )
