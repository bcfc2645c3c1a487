"""Another objective than the supervised one, with batches, losses and metrics of its own.

Catches: a trainer that knows what a batch or a loss is, counts or sums by position, guards a metric
that the objective does not name, or moves parameters that the plan leaves out.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sounding.data.token_batch import StreamState
from sounding.model.transformer import Transformer
from sounding.train.build_network import build_network
from sounding.train.metrics import MetricsRow
from sounding.train.objective import StepPlan
from sounding.train.trainer import Trainer
from tests.train.test_trainer import CPU, measured, small


@dataclasses.dataclass(frozen=True)
class Answer:
    """A rollout: tokens, which of them the policy wrote, and how much better than others it was."""

    tokens: Tensor
    written: Tensor
    advantage: float

    def to(self, device: torch.device) -> "Answer":
        return Answer(self.tokens.to(device), self.written.to(device), self.advantage)


class PolicyGradient:
    """-advantage log p of what was written, over the written tokens of the whole step."""

    def __init__(self) -> None:
        self.updates: list[int] = []

    def plan(self, step: int) -> StepPlan:
        return StepPlan("rl", 0.01, "policy_loss", lambda name: not name.startswith("mtp."))

    def counts(self, batch: Answer) -> dict[str, int]:
        return {"written": int(batch.written.sum()), "tokens": len(batch.tokens), "answers": 1}

    def losses(self, model: Transformer, batch: Answer, step: int) -> dict[str, Tensor]:
        output = model(batch.tokens)
        logits = model.logits(model.hidden(output.streams))[:-1].log_softmax(-1)
        logprobs = logits.gather(-1, batch.tokens[1:, None])[:, 0][batch.written[1:]]
        return {
            "policy": -batch.advantage * logprobs.sum(),
            "logprob": logprobs.detach().sum(),
            "rewarded": torch.tensor(int(batch.advantage > 0)),
        }

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int) -> Tensor:
        return sums["policy"] / counts["written"]

    def metrics(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
    ) -> MetricsRow:
        return {
            "policy_loss": float(sums["policy"]) / counts["written"],
            "logprob": float(sums["logprob"]) / counts["written"],
            "rewarded": int(sums["rewarded"]) / counts["answers"],
        }

    def after_step(self, model: Transformer, sums: Mapping[str, Tensor], step: int) -> None:
        self.updates.append(step)

    def validate(self, model: Transformer, step: int) -> MetricsRow | None:
        return {"pass_rate": step / 10}


def rollouts(state: StreamState | None) -> Iterator[tuple[Answer, StreamState]]:
    """In turn a good and a bad answer, of different length."""
    index = 0 if state is None else int(state["answer"])
    while True:
        good = index % 2 == 0
        tokens = torch.arange(2, 22 if good else 15)
        tokens = tokens if good else tokens.flip(0)
        written = torch.arange(len(tokens)) >= 5
        index += 1
        yield Answer(tokens, written, 1.0 if good else -0.5), {"answer": index}


def test_the_trainer_takes_another_objective(tmp_path: Path) -> None:
    run = small("train.accumulation=2", "train.dtype=float32", "log.validate_every=4")
    network, objective = build_network(run, CPU), PolicyGradient()
    one: Trainer[Answer] = Trainer(run, tmp_path, rollouts, objective, device=CPU, network=network)
    assert one.model is network
    before = {name: param.detach().clone() for name, param in network.named_parameters()}
    assert one.train()
    rows = measured(tmp_path)
    steps = [row for row in rows if "policy_loss" in row]
    assert [row["pass_rate"] for row in rows if "pass_rate" in row] == [0.4, 0.8]
    assert len(steps) == 8 and objective.updates == list(range(8))
    assert {"loss", "mtp_loss", "load_entropy"}.isdisjoint(steps[0])
    assert all(row["phase"] == "rl" and row["learning_rate"] == 0.01 for row in steps)
    assert all(row["rewarded"] == 0.5 for row in steps)
    assert steps[0]["tokens"] == 20 + 13
    assert steps[-1]["policy_loss"] < steps[0]["policy_loss"] - 0.5
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(name.startswith("mtp.") for name in moved)


def test_the_first_loss_is_that_of_the_whole_step(tmp_path: Path) -> None:
    run = small("train.accumulation=2", "train.dtype=float32")
    network = build_network(run, CPU)
    expected, count = 0.0, 0
    for (answer, _), _ in zip(rollouts(None), range(2)):  # noqa: B905 -- the first never ends
        hidden = network.hidden(network(answer.tokens).streams)
        logits = network.logits(hidden).log_softmax(-1)
        for place in range(5, len(answer.tokens)):
            token = int(answer.tokens[place])
            expected -= answer.advantage * float(logits[place - 1, token].detach())
            count += 1
    one = Trainer(run, tmp_path, rollouts, PolicyGradient(), device=CPU, network=network)
    assert one.take_step()["policy_loss"] == pytest.approx(expected / count, rel=1e-4)


def test_the_guard_watches_what_the_plan_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PolicyGradient):
        def metrics(
            self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
        ) -> MetricsRow:
            return {**super().metrics(sums, counts, step), "policy_loss": float("nan")}

    objective = Broken()
    one = Trainer(small("train.accumulation=2"), tmp_path, rollouts, objective, device=CPU)
    row = one.take_step()
    assert row["event"] == "skipped" and row["reason"] == "loss is nan"
    assert objective.updates == []
