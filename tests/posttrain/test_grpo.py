"""GRPO: the loss is the formula, rewards teach, and a killed run ends in the same bits."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sounding.config import ModelConfig
from sounding.posttrain.grpo import REFERENCE, advantages_of, batches_of_rounds, policy_terms
from sounding.posttrain.open_runs import open_grpo
from sounding.posttrain.rollout_batch import RolloutBatch, shares_of
from sounding.posttrain.run_configs import GrpoConfig, GrpoRun, grpo_recipe
from sounding.posttrain.task_prompts import ExactAnswers
from sounding.tasks.task import Grade
from sounding.text.encoding import Message
from sounding.train.metrics import MetricsRow
from tests.posttrain.conftest import QUESTIONS, small, write_rows
from tests.train.test_trainer import assert_same_bits

TASKS = [
    {"messages": [{"role": "user", "content": question}], "answer": "yes"} for question in QUESTIONS
]


def batch(
    advantages: list[float], sizes: list[int], mu: torch.Tensor, **extra: Any
) -> RolloutBatch:
    """Answers of `sizes` sampled tokens behind prompts of one token."""
    lengths = [size + 1 for size in sizes]
    sampled = torch.tensor([at > 0 for length in lengths for at in range(length)])
    count = sum(lengths)
    return RolloutBatch(
        torch.zeros(count, dtype=torch.int64), lengths, sampled, mu.float(),
        torch.tensor(advantages), torch.zeros(1, count, 2, dtype=torch.int16), None, extra,
    )  # fmt: skip


def test_advantages_are_rewards_less_the_mean_of_their_group() -> None:
    assert advantages_of([1.0, 0.0, 0.0, 1.0, 5.0, 5.0], 2) == [0.5, -0.5, -0.5, 0.5, 0, 0]


@pytest.mark.parametrize("high", [0.2, 0.28])
def test_the_terms_are_the_formula_token_by_token(high: float) -> None:
    torch.manual_seed(5)
    sizes, advantages = [3, 4, 2], [0.75, -0.5, -0.25]
    mu = -torch.rand(9) * 3
    pi = mu + torch.tensor([0.3, -0.4, 0.0, -0.3, -0.3, 0.1, -0.2, 0.4, -0.1])
    reference = mu + torch.randn(9) * 0.3
    config = GrpoConfig(clip_low=0.2, clip_high=high, off_policy_limit=0.03)
    found = policy_terms(pi, batch(advantages, sizes, mu, **{REFERENCE: reference}), config)
    at = 0
    for size, advantage in zip(sizes, advantages, strict=True):
        here = range(at, at + size)
        drift = sum(float(mu[t] - pi[t]) for t in here) / size
        mask = 0.0 if advantage < 0 and drift > 0.03 else 1.0
        for t in here:
            ratio = math.exp(float(pi[t] - mu[t]))
            clipped = min(max(ratio, 0.8), 1 + high)
            gain = mask * min(ratio * advantage, clipped * advantage)
            assert float(found["policy"][t]) == pytest.approx(-gain, rel=1e-5, abs=1e-7)
            x = math.exp(float(reference[t] - pi[t]))
            kl = ratio * (x - math.log(x) - 1)
            assert float(found["kl"][t]) == pytest.approx(kl, rel=1e-4, abs=1e-6)
        at += size
    assert found["masked"].tolist() == [0.0] * 3 + [1.0] * 4 + [0.0] * 2
    assert found["clipped"][0] == (1.0 if math.exp(0.3) > 1 + high else 0.0)


def test_the_estimate_of_the_divergence_is_unbiased_off_policy() -> None:
    """Its mean over samples of mu is KL(pi || ref), and its gradient that of the divergence."""
    torch.manual_seed(6)
    scores = torch.randn(3, 5, dtype=torch.float64)
    logits = scores[0].clone().requires_grad_(True)
    mu, reference = scores[1].log_softmax(-1), scores[2].log_softmax(-1)
    pi = logits.log_softmax(-1)
    everything = batch([0.0], [5], mu, **{REFERENCE: reference})
    object.__setattr__(everything, "logprobs", mu)
    terms = policy_terms(pi, everything, GrpoConfig())
    estimate = (mu.exp() * terms["kl"]).sum()
    exact = (pi.exp() * (pi - reference)).sum()
    torch.testing.assert_close(estimate, exact)
    (ours,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(ours, theirs)


def test_answers_are_spread_evenly_and_never_beyond_a_batch() -> None:
    shares = shares_of([5, 9, 3, 8, 2, 6, 7], 16, accumulation=2, updates=1)
    assert len(shares) == 4 and sorted(i for share in shares for i in share) == list(range(7))
    lengths = [5, 9, 3, 8, 2, 6, 7]
    assert max(sum(lengths[i] for i in share) for share in shares) <= 16
    assert len(shares_of([4, 4], 16, accumulation=2, updates=3)) == 6
    with pytest.raises(ValueError, match=r"17 tokens, and data.batch_tokens = 16"):
        shares_of([17], 16, accumulation=1, updates=1)


def test_rounds_without_spread_end_the_run_after_a_while() -> None:
    seen = []

    def nothing(number: int, begun: bool) -> list[RolloutBatch]:
        seen.append(number)
        return []

    with pytest.raises(ValueError, match="the last 3 rounds, up to round 2, had no group"):
        next(batches_of_rounds(nothing, 3)(None))
    assert seen == [0, 1, 2]


def run_of(config: ModelConfig, begins: Path, *settings: str) -> GrpoRun:
    return small(
        grpo_recipe(config),
        begins,
        "rollouts.prompts=4",
        "rollouts.group=4",
        "rollouts.max_tokens=8",
        "rollouts.most_difference=0.01",
        *settings,
    )


class Counting(ExactAnswers):
    """Counts how often each answer is graded."""

    graded = 0

    def grade_conversation(self, index: int, messages: Sequence[Message]) -> Grade:
        Counting.graded += 1
        return super().grade_conversation(index, messages)


def test_rewards_teach_and_a_killed_run_ends_in_the_same_bits(
    tmp_path: Path, taught: Path, config: ModelConfig
) -> None:
    """Two updates a round, and a checkpoint between them: a resumed run reads its round."""
    run = run_of(config, taught, "train.steps=4", "rollouts.updates=2", "grpo.kl_weight=0.01")
    seen: list[MetricsRow] = []
    assert open_grpo(run, tmp_path / "whole", Counting(TASKS), report=seen.append).train()
    first = seen[0]
    assert 0 < first["pass_at_1"] < first["pass_at_4"] <= 1
    assert first["kl"] == pytest.approx(0, abs=1e-4)  # it begins as the reference
    assert first["difference"] < 0.01 and "difference" not in seen[1]  # updated in between
    assert seen[-1]["entropy"] < first["entropy"]
    Counting.graded = 0
    killed = open_grpo(run, tmp_path / "killed", Counting(TASKS))
    for _ in range(2):
        killed._record(killed.take_step())
        if killed.step == 1:
            killed.save()  # in the middle of the round; the second step is lost
    graded = Counting.graded
    again = open_grpo(run, tmp_path / "killed", Counting(TASKS))
    assert again.step == 1 and again.train()
    assert Counting.graded == 2 * graded  # the second round's, and none of the first again
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


def test_what_cannot_be_trained_is_refused_with_the_way_out(
    tmp_path: Path, taught: Path, config: ModelConfig
) -> None:
    def opened(*settings: str, tasks: Path | None = None) -> None:
        given = [] if tasks is None else [f"rollouts.tasks={tasks}"]
        open_grpo(run_of(config, taught, *given, *settings), tmp_path / "run")

    with pytest.raises(ValueError, match="--tasks"):
        opened()
    tasks = write_rows(tmp_path / "tasks.jsonl", TASKS)
    with pytest.raises(ValueError, match=r"rollouts.group = 1 must be at least 2"):
        opened("rollouts.group=1", tasks=tasks)
    with pytest.raises(ValueError, match=r"rollouts.max_tokens is 250, where 256 fit a batch"):
        opened("rollouts.max_tokens=250", tasks=tasks)
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 1 is no task"):
        opened(tasks=write_rows(tmp_path / "tasks.jsonl", [{"messages": []}]))
    one = open_grpo(
        run_of(config, taught, "rollouts.most_difference=1e-9"), tmp_path / "far",
        ExactAnswers(TASKS),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"where rollouts.most_difference = 1e-09"):
        one.take_step()
    hard = [{**task, "answer": json.dumps(task)} for task in TASKS]
    never = open_grpo(
        run_of(config, taught, "grpo.patience_rounds=2"), tmp_path / "hard", ExactAnswers(hard)
    )
    with pytest.raises(ValueError, match="the last 2 rounds, up to round 1, had no group"):
        never.take_step()
