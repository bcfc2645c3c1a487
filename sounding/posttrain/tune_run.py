"""The settings of a tuning: those of `nano`'s training, for a folder's data."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path

import torch

from sounding.posttrain.tune_data import TuneData
from sounding.text.fim_format import FimFormat
from sounding.train.numerics import repeatable
from sounding.train.run_config import RunConfig, SparsityConfig, TrainConfig
from sounding.train.runs import nano
from sounding.train.source import open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer
from sounding.weights.checkpoint import read_config

MOST_EPOCHS = 4
"""More passes over little text make a model recite it."""
_LEAST_STEPS = 20
_ROWS, _BATCHES = 2, 2  # sequences of a batch, batches of a step
_VALIDATION_TOKENS = 16_384


def tune_run(name: str, model: Path, data: TuneData, *, steps: int) -> RunConfig:
    """The settings of a run that trains all weights of `model` further: those of `nano`, at a
    quarter of its rate.

    Attention is sparse from the start, as the model will be used.
    """
    recipe = nano()
    suffix_first = 1.0 if FimFormat.from_folder(model).suffix_first else 0.0
    warmup = min(10, steps // 4)
    return RunConfig(
        name=name,
        model=read_config(model)[1],
        data=dataclasses.replace(
            recipe.data,
            mixture=data.shares,
            held_out=None if data.held_out is None else str(data.held_out.resolve()),
            batch_tokens=_ROWS * recipe.data.sequence_tokens,
            validation_tokens=_VALIDATION_TOKENS,
            fim=dataclasses.replace(recipe.data.fim, suffix_first=suffix_first),
        ),
        train=TrainConfig(
            steps=steps,
            lr=recipe.train.lr / 4,
            final_lr=recipe.train.final_lr / 4,
            warmup_steps=warmup,
            decay_steps=steps - warmup,
            accumulation=_BATCHES,
            initial_weights=str(model.resolve()),
            dtype="bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32",
        ),
        optimizer=recipe.optimizer,
        objective=recipe.objective,
        sparsity=SparsityConfig(),
        log=dataclasses.replace(
            recipe.log,
            validate_every=steps,
            checkpoint_every=25,
            keep_checkpoints=1,
            milestone_every=0,
        ),
    )


def useful_steps(run: RunConfig, data: TuneData) -> int:
    """Steps of `MOST_EPOCHS` passes over the folder's code, and at least a few."""
    share = sum(share.weight for share in data.shares if share.name != "general")
    step_tokens = run.data.batch_tokens * run.train.accumulation * share
    return max(_LEAST_STEPS, math.ceil(MOST_EPOCHS * data.tokens / step_tokens))


def affordable_steps(run: RunConfig, data: TuneData, seconds: float) -> tuple[int, float]:
    """How many steps of a run over all weights take `seconds` here, by the time that one takes, and
    the seconds they take: at most the useful steps, and at least a few, whatever they take."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trainer(
            run, Path(folder), open_source(run), Supervised(run), device=torch.device("cpu")
        )
        with repeatable(run.train.deterministic):
            trial.take_step()  # the first one also allocates and compiles
            start = time.monotonic()
            trial.take_step()
        step_seconds = time.monotonic() - start
    fitting = int(seconds / step_seconds)
    steps = max(_LEAST_STEPS, min(fitting, useful_steps(run, data)))
    return steps, steps * step_seconds
