"""Distillation: the student moves to its teachers, one of which is in memory at a time."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sounding.config import ModelConfig
from sounding.model.from_checkpoint import save_model
from sounding.ops.divergence import divergence
from sounding.posttrain import distill as room
from sounding.posttrain.distill import HIDDEN, Distill, Teachers
from sounding.posttrain.frozen import load_frozen
from sounding.posttrain.open_runs import open_distill
from sounding.posttrain.run_configs import DistillRun, distill_recipe
from sounding.text.tokenizer import Tokenizer, train
from sounding.train.build_network import build_network
from sounding.train.metrics import MetricsRow
from sounding.train.run_config import RunConfig, TrainConfig
from tests.posttrain.conftest import rows, small, write_rows
from tests.train.test_trainer import assert_same_bits


def run_of(
    config: ModelConfig, begins: Path, teachers: list[Path], folder: Path, *settings: str
) -> DistillRun:
    prompts = write_rows(folder / "prompts.jsonl", rows(("yes",)))
    named = [
        {"name": str(n), "model": str(path), "prompts": str(prompts), "weight": n + 1.0}
        for n, path in enumerate(teachers)
    ]
    return small(
        distill_recipe(config),
        begins,
        f"distill.teachers={json.dumps(named)}",
        "rollouts.prompts=6",
        "rollouts.group=1",
        "rollouts.max_tokens=5",
        "rollouts.most_difference=0.1",
        *settings,
    )


def test_the_student_moves_to_its_teachers_and_a_killed_run_ends_in_the_same_bits(
    tmp_path: Path, start: Path, taught: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    def noted(folder: Path, run: RunConfig) -> Any:
        loaded.append(folder)
        return load_frozen(folder, run)

    monkeypatch.setattr(room, "load_frozen", noted)
    run = run_of(config, start, [taught, start], tmp_path, "train.steps=3")
    seen: list[MetricsRow] = []
    assert open_distill(run, tmp_path / "whole", report=seen.append).train()
    assert seen[-1]["divergence"] < seen[0]["divergence"]
    assert loaded == [taught, start] * 3  # in the order of the answers, once a round each
    killed = open_distill(run, tmp_path / "killed")
    for _ in range(2):
        killed._record(killed.take_step())
        if killed.step == 1:
            killed.save()
    again = open_distill(run, tmp_path / "killed")
    assert again.step == 1 and again.train()
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


def test_the_loss_is_the_weighted_divergence_from_live_teachers(
    tmp_path: Path, start: Path, taught: Path, config: ModelConfig
) -> None:
    """What is computed from cached states and heads is what whole teachers say."""
    run = run_of(config, start, [taught, start], tmp_path, "distill.cache_dtype=float32")
    trainer = open_distill(run, tmp_path / "run")
    batches = trainer._next_batches()
    objective = trainer.objective
    assert isinstance(objective, Distill)
    sums = [objective.losses(trainer.model, batch, 0) for batch in batches]
    expected = 0.0
    for number, batch in enumerate(batches):
        live = load_frozen([taught, start][number], run)
        with torch.no_grad():
            ours = trainer.model(batch.tokens, batch.lengths, replayed=list(batch.chosen.long()))
            student = trainer.model.hidden(ours.streams)[batch.rows]
            teacher = live.hidden(live(batch.tokens, batch.lengths).streams)[batch.rows]
            apart = divergence(student, trainer.model.head.weight, teacher, live.head.weight)
        assert batch.weight == number + 1
        expected += float(apart.sum()) * batch.weight
        assert batch.extra[HIDDEN].dtype == torch.float32
    found = sum(float(one["weighted"].detach()) for one in sums)
    assert found == pytest.approx(expected, rel=0.02)  # of training kernels in bf16


def test_a_teacher_that_is_the_student_says_nothing_new(
    tmp_path: Path, taught: Path, config: ModelConfig
) -> None:
    run = run_of(config, taught, [taught], tmp_path)
    row = open_distill(run, tmp_path / "run").take_step()
    assert row["divergence"] == pytest.approx(0, abs=2e-3)


def test_a_teacher_of_another_vocabulary_is_refused(
    tmp_path: Path, start: Path, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    other = tmp_path / "other"
    wider = dataclasses.replace(config, vocab_size=config.vocab_size + 8)
    plain = RunConfig(name="other", model=wider, train=TrainConfig(decay_steps=0))
    save_model(build_network(plain, torch.device("cpu")), other)
    tokenizer.save(other / "tokenizer.json")
    with pytest.raises(ValueError, match=r"vocabulary of 348, the student one of 340"):
        Teachers(run_of(config, start, [other], tmp_path), tokenizer)
    words = "quite other words that merge in another order of letters than those of questions do"
    foreign = train([words, "while numbers, classes and imports are left out here"] * 9, 340)
    with pytest.raises(ValueError, match="another tokenizer than the student"):
        Teachers(run_of(config, start, [start], tmp_path), foreign)
    with pytest.raises(ValueError, match=r"distill\.teachers is empty"):
        Teachers(run_of(config, start, [], tmp_path), tokenizer)
