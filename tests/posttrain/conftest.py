"""What the tests of post-training share: a tiny model with a tokenizer, and its runs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sounding.config import ModelConfig
from sounding.model.from_checkpoint import build_model, save_model
from sounding.model.transformer import Transformer
from sounding.posttrain.open_runs import open_sft
from sounding.posttrain.run_configs import SftRun
from sounding.presets import tiny
from sounding.simulation import QUANTIZATION_AWARE, Simulation
from sounding.text.tokenizer import Tokenizer, train
from sounding.train.build_network import build_network
from sounding.train.run_config import DataConfig, LogConfig, RunConfig, TrainConfig
from sounding.train.runs import R, change
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.state_dict import read_state

ANSWERS = ("yes", "no", "maybe")
QUESTIONS = [f"Is {thing} good?" for thing in ("tea", "rain", "code", "sleep", "music", "snow")]


def rows(answers: Sequence[str] = ANSWERS) -> list[dict[str, Any]]:
    """Every question with every answer."""
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": one}]}
        for question in QUESTIONS
        for one in answers
    ]


def write_rows(path: Path, given: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [*QUESTIONS, *ANSWERS, "def f(x):\n    return x + 1\n", "print(f(2))\n"] * 4
    return train(texts, 340)


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> ModelConfig:
    return dataclasses.replace(tiny(), vocab_size=tokenizer.num_tokens, index_topk=8)


@pytest.fixture(scope="session")
def start(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, config: ModelConfig
) -> Path:
    """A model folder with random weights."""
    folder = tmp_path_factory.mktemp("start") / "model"
    run = RunConfig(name="start", model=config, train=TrainConfig(decay_steps=0))
    save_model(build_network(run, torch.device("cpu")), folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def masters(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    simulation: Simulation = QUANTIZATION_AWARE,
) -> Transformer:
    """The float32 weights in a folder as training computes with them; float64 for that dtype."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state = read_state(Checkpoint(folder), wide)
    return build_model(state, config, simulation=simulation, dtype=dtype)


_SETTINGS = """data.sequence_tokens=64 data.batch_tokens=256 train.steps=3 train.decay_steps=0
train.warmup_steps=1 train.accumulation=2 train.lr=2e-3 train.final_lr=2e-3 log.checkpoint_every=1
log.validate_every=1000"""


def small(run: R, begins: Path, *settings: str) -> R:
    """A run of few, short steps that begins with the weights in a folder."""
    begin = f"train.initial_weights={begins}"
    data, log = DataConfig(sequence_tokens=64, batch_tokens=256), LogConfig()
    return change(
        dataclasses.replace(run, data=data, train=TrainConfig(qat=run.train.qat), log=log),
        [*_SETTINGS.split(), begin, *settings],
    )


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, start: Path, config: ModelConfig) -> Path:
    """The same after fine-tuning: it answers yes, no or maybe, and ends its turn."""
    folder = tmp_path_factory.mktemp("taught")
    path = write_rows(folder / "rows.jsonl", rows())
    run = small(
        SftRun(name="sft", model=config),
        start,
        f"conversations.path={path}",
        "train.steps=25",
        "train.accumulation=1",
        "train.qat=true",
        "log.checkpoint_every=25",
    )
    open_sft(run, folder / "run").train()
    return folder / "run" / "checkpoints" / "step-00000025" / "model"
