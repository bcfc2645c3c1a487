"""Checkpoints: everything a run needs to resume to the same bits, in one folder per saved step.

`model` has the float32 weights in the published layout, so that every command takes it as it is;
`optimizer.safetensors` the moments, `state.json` the rest. Several processes write `shards` instead
of the moments, each its own parts of weights and moments, and where asked `model` too. A milestone
is a model in bf16 with only its step and tokens: to be measured, not resumed. A folder appears
whole or not at all; no file in it can carry code.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sounding.config import ModelConfig
from sounding.files import sync
from sounding.parallel.group import Group
from sounding.parallel.shards import FOLDER_NAME as SHARDS_NAME
from sounding.parallel.shards import read_whole, save_shards
from sounding.train.saved_models import MODEL_NAME, STATE_NAME, read_state_file, steps
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.layout import BF16, parameters
from sounding.weights.state_dict import read_state, stacks, write_state
from sounding.weights.tensors import TORCH_DTYPES
from sounding.weights.writing import recover, replacing

_OPTIMIZER = "optimizer.safetensors"
WEIGHTS, MOMENTS = "model.", "optimizer."
"""What begins the names of the tensors in shards."""


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint in memory; its tensors are views of the mapped files."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    shards: Path | None = None
    """Where several processes saved weights and moments; the others are then empty."""


def save(
    root: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    config: ModelConfig,
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    beside: Sequence[Path] = (),
) -> Path:
    """Write the folder of a step under `root`, then drop all but the last `keep`.

    Files `beside` (a tokenizer) are copied to the model. A step that is saved already is left
    alone. Raises ValueError when the disk is too small.
    """
    folder = root / f"step-{step:08d}"
    if folder.exists():
        return folder
    moments = {key: tensor.detach().contiguous().cpu() for key, tensor in optimizer.items()}
    num_bytes = sum(tensor.nbytes for tensor in (*moments.values(), *model.values()))
    with replacing(folder, num_bytes) as partial:
        _write_model(partial, model, config, beside)
        safetensors.torch.save_file(moments, partial / _OPTIMIZER)
        sync(partial / _OPTIMIZER)
        _write_state(partial, state)
    for old in steps(root)[:-keep]:
        shutil.rmtree(root / f"step-{old:08d}")
    return folder


def save_sharded(
    root: Path,
    step: int,
    *,
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Tensor] | None,
    config: ModelConfig,
    state: Callable[[], Mapping[str, Any]],
    keep: int,
    group: Group,
    beside: Sequence[Path] = (),
) -> None:
    """Write the folder of a step by all processes, then drop all but the last `keep`. Collective.

    `tensors` are weights and moments by the names of `WEIGHTS` and `MOMENTS`; the main process
    adds `model`, whole weights, unless None, and `state`.
    """
    folder = root / f"step-{step:08d}"
    if group.agree(str(folder.exists())) == "True":
        return
    num_bytes = sum(tensor.nbytes for tensor in (*tensors.values(), *(model or {}).values()))
    with replacing(folder, num_bytes) if group.is_main else nullcontext() as partial:
        shards = Path(group.agree(str(partial))) / SHARDS_NAME
        if group.is_main:
            shards.mkdir()
        group.wait()
        save_shards(shards, tensors, group)
        if partial is not None:
            if model is not None:
                _write_model(partial, model, config, beside)
            _write_state(partial, state())
    if group.is_main:
        for old in steps(root)[:-keep]:
            shutil.rmtree(root / f"step-{old:08d}")
    group.wait()


def save_milestone(
    root: Path,
    step: int,
    tokens: int,
    *,
    model: Mapping[str, Tensor],
    config: ModelConfig,
    beside: Sequence[Path] = (),
) -> Path:
    """Write the weights of a step under `root`, in bf16 but for what must not lose precision.

    A milestone of the same step is replaced: training may have gone back before it.
    """
    folder = root / f"step-{step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    kinds = {name: group[0].kind for name, group in stacks(parameters(config))}
    rounded = {name: x.to(TORCH_DTYPES[BF16.dtype(kinds[name])]) for name, x in model.items()}
    with replacing(folder, sum(tensor.nbytes for tensor in rounded.values())) as partial:
        _write_model(partial, rounded, config, beside)
        _write_state(partial, {"step": step, "tokens": tokens})
    return folder


def _write_model(
    folder: Path, model: Mapping[str, Tensor], config: ModelConfig, beside: Sequence[Path]
) -> None:
    write_state(model, config, folder / MODEL_NAME)
    for path in beside:
        shutil.copyfile(path, folder / MODEL_NAME / path.name)
        sync(folder / MODEL_NAME / path.name)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    (folder / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    sync(folder / STATE_NAME)


def load(root: Path, step: int) -> SavedStep:
    """Read a saved step. Raises ValueError or OSError naming the file that cannot be read."""
    folder = root / f"step-{step:08d}"
    if (folder / SHARDS_NAME).is_dir():
        return SavedStep({}, {}, _state_of(folder, step), folder / SHARDS_NAME)
    try:
        optimizer = safetensors.torch.load_file(folder / _OPTIMIZER)
    except SafetensorError as error:
        raise ValueError(f"{folder / _OPTIMIZER} is damaged: {error}") from None
    state = _state_of(folder, step)
    return SavedStep(read_state(Checkpoint(folder / MODEL_NAME)), optimizer, state)


def _state_of(folder: Path, step: int) -> dict[str, Any]:
    state = read_state_file(folder)
    if state.get("step") != step:
        raise ValueError(
            f"{folder / STATE_NAME} is of step {state.get('step')!r:.20}, not of {step}"
        )
    return state


def set_aside(root: Path, step: int) -> Path:
    """Rename the folder of a damaged step, so that it is neither found nor in the way."""
    places = (root / f"damaged-{number}-step-{step:08d}" for number in itertools.count(1))
    place = next(place for place in places if not place.exists())
    return (root / f"step-{step:08d}").rename(place)


def require_room(folder: Path, num_bytes: int, advice: str) -> None:
    """Raise ValueError where the disk of a folder lacks so many bytes."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"what the run will save in {folder} takes {num_bytes:,} bytes and the disk has "
            f"{free:,} free; make room, choose another disk, or {advice}"
        )


def model_of(folder: Path) -> Path:
    """The model folder of a saved step; any other folder is taken to be one itself."""
    return folder / MODEL_NAME if (folder / STATE_NAME).is_file() else folder


def moments_of(folder: Path) -> dict[str, Tensor]:
    """The moments of a saved step; none for the folder of a model.

    Raises ValueError for a milestone, which has no moments to go on with.
    """
    if not (folder / STATE_NAME).is_file():
        return {}
    if (folder / SHARDS_NAME).is_dir():
        found = read_whole(folder / SHARDS_NAME, MOMENTS)
        return {n: x.view(()) if n.endswith(".step") else x for n, x in found.items()}
    if not (folder / _OPTIMIZER).is_file():
        raise ValueError(
            f"{folder} is a milestone and has no moments: begin with a checkpoint, or with "
            f"{folder / MODEL_NAME}, which is weights alone"
        )
    return safetensors.torch.load_file(folder / _OPTIMIZER)


def clean(root: Path) -> None:
    """Finish or undo saves that were interrupted by the end of their process."""
    if not root.is_dir():
        return
    for path in list(root.iterdir()):
        match = re.match(r"\.(step-\d{8})\.", path.name)
        if match:
            recover(root / match[1])
