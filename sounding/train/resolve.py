"""Which run a command names: a recipe with changes, or the run that a folder holds.

Knows no tensors, so settings are checked and printed without loading PyTorch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sounding.config import ModelConfig
from sounding.config_file import parse_config
from sounding.files import parse_json
from sounding.train.run_config import RunConfig
from sounding.train.runs import RUNS, R, change, named_run, parse_run_as

RUN_NAME = "run.json"
_RUNS_FOLDER = Path("runs")


@dataclass(frozen=True)
class ResolvedRun:
    """A run with all its settings, and where it is kept."""

    config: RunConfig
    folder: Path
    notes: tuple[str, ...] = ()
    """What a user should know about settings that were not given, as sentences."""


def read_run(folder: Path) -> RunConfig:
    """The settings of the run in a folder. Raises ValueError where they cannot be read."""
    return read_run_as(RunConfig, folder)


def read_run_as(kind: type[R], folder: Path) -> R:
    """The settings of a run with the fields of `kind`; raises ValueError as `read_run` does."""
    path = folder / RUN_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return parse_run_as(kind, raw)


def read_run_model(folder: Path) -> ModelConfig:
    """The model of a run in a folder, whatever else its settings are."""
    path = folder / RUN_NAME
    raw = parse_json(path.read_bytes(), str(path))
    return parse_config(raw["model"])


def resolve_run(name: str, settings: Sequence[str] = (), out: Path | None = None) -> ResolvedRun:
    """The run that `name` means, a recipe or the folder of a run, with `settings` applied.

    A folder that holds a run already goes on with its saved settings; only what `settings` names
    differs. A new run with another `train.steps` has its schedule scaled, unless that is set too.
    Raises ValueError for an unknown name, a setting that does not hold, and a folder that holds
    the run of another recipe.
    """
    if name not in RUNS and (Path(name) / RUN_NAME).is_file():
        if out is not None and out.resolve() != Path(name).resolve():
            raise ValueError(
                f"{name} is the folder of a run, which goes on where it is: leave out --out, or "
                "name a recipe"
            )
        return ResolvedRun(change(read_run(Path(name)), settings), Path(name))
    recipe = named_run(name)
    scaled = scaled_schedule(recipe, settings)
    config = change(recipe, [*scaled, *settings])
    folder = out or _RUNS_FOLDER / config.name
    if (folder / RUN_NAME).is_file():
        saved = read_run(folder)
        if saved.name != config.name:
            raise ValueError(
                f"{folder} holds a run of {saved.name!r}: choose another folder (--out), or go on "
                f"with it by `train {folder}`"
            )
        return ResolvedRun(change(saved, settings), folder)
    notes = []
    if scaled:
        notes.append(
            f"train.steps = {config.train.steps} instead of {recipe.train.steps} scales the "
            f"schedule: {' '.join(scaled)}; set these to choose otherwise"
        )
    if _sparse_steps(recipe) > 0 >= _sparse_steps(config):
        notes.append(
            "this run has no sparse phase, so its indexers will not be trained: "
            f"sparsity.dense_steps = {config.sparsity.dense_steps} and sparsity.indexer_steps = "
            f"{config.sparsity.indexer_steps} leave nothing of train.steps = {config.train.steps}"
        )
    return ResolvedRun(config, folder, tuple(notes))


def scaled_schedule(recipe: RunConfig, settings: Sequence[str]) -> list[str]:
    """Settings that scale a recipe's schedule to the `train.steps` among `settings`.

    Warm-up, decay and phases keep their share of the run; what `settings` names is left alone, and
    a phase of the recipe keeps a step at least.
    """
    given = dict(setting.partition("=")[::2] for setting in settings)
    given = {name.strip(): value.strip() for name, value in given.items()}
    try:
        steps = int(given["train.steps"])
    except (KeyError, ValueError):  # `change` refuses what is no number
        return []
    if steps < 1 or steps == recipe.train.steps:
        return []
    share = steps / recipe.train.steps

    def scaled(steps: int) -> int:
        return max(1, round(steps * share)) if steps else 0

    train, sparsity = recipe.train, recipe.sparsity
    indexer = scaled(sparsity.indexer_steps)
    dense = scaled(sparsity.dense_steps)
    if _sparse_steps(recipe) > 0:
        dense = max(0, min(dense, steps - indexer - 1))
    values = {
        "train.warmup_steps": scaled(train.warmup_steps),
        "train.decay_steps": min(scaled(train.decay_steps), steps),
        "sparsity.dense_steps": dense,
        "sparsity.indexer_steps": indexer,
    }
    before = {
        "train.warmup_steps": train.warmup_steps,
        "train.decay_steps": train.decay_steps,
        "sparsity.dense_steps": sparsity.dense_steps,
        "sparsity.indexer_steps": sparsity.indexer_steps,
    }
    return [
        f"{name}={value}"
        for name, value in values.items()
        if name not in given and value != before[name]
    ]


def _sparse_steps(run: RunConfig) -> int:
    return run.train.steps - run.sparsity.dense_steps - run.sparsity.indexer_steps
