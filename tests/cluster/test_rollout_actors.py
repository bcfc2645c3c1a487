"""Rollouts by actors of Ray, one killed at random: the run ends in the bits of one without."""

import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from sounding.config import ModelConfig
from sounding.posttrain.open_runs import open_grpo
from sounding.posttrain.rollout_log import RolloutLog
from sounding.posttrain.run_configs import RolloutsConfig
from sounding.posttrain.sampler import Sampler
from sounding.posttrain.task_prompts import ExactAnswers
from sounding.text.tokenizer import Tokenizer
from tests.cluster.conftest import processes_of_ray
from tests.posttrain.conftest import config, masters, start, taught, tokenizer
from tests.posttrain.test_grpo import TASKS, run_of
from tests.posttrain.test_rollouts import one_round, settings
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


@pytest.mark.long
@pytest.mark.usefixtures("folder_of_ray")
def test_grpo_with_actors_that_are_killed_ends_in_the_same_bits(
    tmp_path: Path, taught: Path, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    from sounding.cluster.rollout_actors import rollout_actors

    run = run_of(config, taught, "train.steps=3")
    assert open_grpo(run, tmp_path / "alone", ExactAnswers(TASKS)).train()
    with rollout_actors(2) as make_sampler, killing(every=40) as killed:
        task = ExactAnswers(TASKS)
        trainer = open_grpo(run, tmp_path / "killed", task, make_sampler=make_sampler)
        assert trainer.train()
    assert len(killed) >= 2
    assert_same_bits(tmp_path / "alone", tmp_path / "killed")
    rounds = sorted((tmp_path / "alone/rollouts").iterdir())
    assert len(rounds) == 3
    for one in rounds:  # the ledger: every token, once
        assert one.read_bytes() == (tmp_path / "killed/rollouts" / one.name).read_bytes()


@pytest.mark.usefixtures("folder_of_ray")
def test_a_round_whose_actors_are_killed_has_the_tokens_of_one_engine(
    tmp_path: Path, start: Path, config: ModelConfig
) -> None:
    """In mid-sample: an actor is killed whenever so many tokens have been logged."""
    from sounding.cluster.rollout_actors import rollout_actors

    model = masters(start, config, torch.bfloat16)
    alone = one_round(tmp_path / "alone", Sampler(model, width=3), model, settings())
    with rollout_actors(2) as make_sampler, killing(every=30) as killed:
        sampler = make_sampler(model, RolloutsConfig(width=6))
        found = one_round(tmp_path / "killed", sampler, model, settings())
    assert len(killed) >= 2
    for one, other in zip(alone, found, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.logprobs, other.logprobs)


@contextmanager
def killing(every: int) -> Iterator[list[int]]:
    """Kills an actor, chosen at random, after every so many logged tokens; yields their ids."""
    choose, lock, add = random.Random(0), threading.Lock(), RolloutLog.add
    killed: list[int] = []
    tokens = 0

    def added(log: RolloutLog, slot: int, token: int, logprob: float) -> None:
        nonlocal tokens
        add(log, slot, token, logprob)
        with lock:
            tokens += 1
            running = [one for one in processes_of_ray() if _is_actor(one)]
            if tokens % every == 0 and running:
                unlucky = choose.choice(running)
                unlucky.send_signal(signal.SIGKILL)
                killed.append(unlucky.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RolloutLog, "add", added)
        yield killed


def _is_actor(process: psutil.Process) -> bool:
    try:
        return any("RolloutActor" in part for part in process.cmdline())
    except psutil.Error:
        return False
