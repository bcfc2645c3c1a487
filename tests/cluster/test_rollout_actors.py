"""Rollouts by actors of Ray, one killed at random: the run ends in the bits of one without."""

import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sounding.config import ModelConfig
from sounding.posttrain.open_runs import open_grpo
from sounding.posttrain.task_prompts import ExactAnswers
from sounding.text.tokenizer import Tokenizer
from tests.cluster.conftest import processes_of_ray
from tests.posttrain.conftest import config, start, taught, tokenizer
from tests.posttrain.test_grpo import TASKS, run_of
from tests.train.test_trainer import assert_same_bits

__all__ = ["config", "start", "taught", "tokenizer"]  # fixtures of post-training

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray meets deprecations of its own


@pytest.fixture
def folder_of_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sounding[cluster]'")
    folder = tempfile.mkdtemp(prefix="ray")  # its sockets allow short paths only
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)
    psutil.wait_procs(processes_of_ray(), timeout=30)
    assert processes_of_ray() == []


@pytest.mark.slow
@pytest.mark.usefixtures("folder_of_ray")
def test_grpo_with_actors_that_are_killed_ends_in_the_same_bits(
    tmp_path: Path, taught: Path, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    from sounding.cluster.rollout_actors import rollout_actors

    run = run_of(config, taught, "train.steps=3")
    assert open_grpo(run, tmp_path / "alone", ExactAnswers(TASKS)).train()
    with rollout_actors(2) as make_sampler:
        killer = Killer()
        trainer = open_grpo(
            run, tmp_path / "killed", killer.of(ExactAnswers(TASKS)), make_sampler=make_sampler
        )
        assert trainer.train()
    assert killer.killed >= 2
    assert_same_bits(tmp_path / "alone", tmp_path / "killed")
    rounds = sorted((tmp_path / "alone/rollouts").iterdir())
    assert len(rounds) == 3
    for one in rounds:  # the ledger: every token, once
        assert one.read_bytes() == (tmp_path / "killed/rollouts" / one.name).read_bytes()


class Killer:
    """Kills an actor, chosen at random, whenever some answers have been graded."""

    def __init__(self, every: int = 12) -> None:
        self._every, self._graded, self.killed = every, 0, 0
        self._choose, self._lock = random.Random(0), threading.Lock()

    def of(self, task: ExactAnswers) -> ExactAnswers:
        grade = task.grade_conversation

        def graded(index: int, messages: object) -> object:
            with self._lock:
                self._graded += 1
                if self._graded % self._every == 0:
                    self._kill()
            return grade(index, messages)  # type: ignore[arg-type]

        task.grade_conversation = graded  # type: ignore[method-assign, assignment]
        return task

    def _kill(self) -> None:
        actors = [one for one in processes_of_ray() if "RolloutActor" in " ".join(one.cmdline())]
        if actors:
            self._choose.choice(actors).send_signal(signal.SIGKILL)
            self.killed += 1
