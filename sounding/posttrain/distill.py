"""On-policy distillation: a student's own answers, every token of them compared with a teacher.

The loss is the divergence over the whole vocabulary. Of a teacher its last hidden states are kept,
and logits are made of them a few rows at a time; answers come in the order of their teachers, so
that one teacher, and one head, is in memory at a time. Source: docs/post-training.md 4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sounding.data.packing import best_fit
from sounding.model.transformer import Transformer
from sounding.ops.divergence import divergence
from sounding.ops.token_logprobs import token_logprobs
from sounding.posttrain.frozen import hidden_states, load_frozen, split_rows
from sounding.posttrain.grpo import (
    Largest,
    counts_of,
    difference_row,
    is_policy,
    read_answers,
)
from sounding.posttrain.rollout_batch import RolloutBatch, batch_of, empty_like
from sounding.posttrain.rounds import Answer, Round
from sounding.posttrain.run_configs import DistillRun, Teacher
from sounding.text.tokenizer import Tokenizer
from sounding.train.metrics import MetricsRow
from sounding.train.objective import StepPlan
from sounding.train.optim import learning_rate
from sounding.train.run_checkpoint import model_of
from sounding.weights.checkpoint import Checkpoint

HIDDEN, TEACHER = "hidden", "teacher"  # what a round is enriched with


class Distill:
    """The objective: the mean divergence of the student from its teachers."""

    def __init__(
        self, run: DistillRun, round_metrics: Callable[[], MetricsRow] = lambda: {}
    ) -> None:
        """`round_metrics` is what is recorded of the round that a step belongs to."""
        self._run, self._round_metrics = run, round_metrics
        self._largest = Largest()

    def plan(self, step: int) -> StepPlan:
        rate = learning_rate(step, self._run.train)
        return StepPlan("distill", rate, "divergence", is_policy)

    def counts(self, batch: RolloutBatch) -> dict[str, int]:
        return counts_of(batch)

    def losses(self, model: Transformer, batch: RolloutBatch, step: int) -> dict[str, Tensor]:
        zero = torch.zeros((), device=batch.tokens.device)
        if not batch.num_answers:
            return dict.fromkeys(("weighted", "divergence", "difference", "changed"), zero)
        found = read_answers(model, batch.padded(self._run.data.batch_tokens))
        assert batch.head is not None, "batches of distillation carry their teacher's head"
        apart = divergence(
            found.hidden,
            model.head.weight,
            batch.extra[HIDDEN].to(found.hidden.dtype),
            batch.head,
            forward_weight=self._run.distill.forward_weight,
        ).sum()
        return {
            "weighted": batch.weight * apart,
            "divergence": apart.detach(),
            "difference": self._difference(model, found.hidden, batch),
            "changed": found.changed,
        }

    def _difference(self, model: Transformer, hidden: Tensor, batch: RolloutBatch) -> Tensor:
        """What the student's log-probabilities differ by from those of sampling."""
        if not batch.fresh:
            return torch.zeros((), device=hidden.device)
        with torch.no_grad():
            logprobs = token_logprobs(
                hidden.detach(),
                model.head.weight,
                batch.tokens[batch.sampled],
                temperature=self._run.rollouts.temperature,
                kept=batch.kept,
            ).logprobs
        return self._largest.note(logprobs, batch)

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int) -> Tensor:
        return sums["weighted"] / max(1, counts["sampled"])

    def metrics(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
    ) -> MetricsRow:
        """Raises ValueError where the trainer's forward differs too much from the sampler's."""
        row: MetricsRow = {
            "divergence": float(sums["divergence"]) / max(1, counts["sampled"]),
            "changed_routings": float(sums["changed"]) / max(1, counts["routings"]),
        }
        row |= difference_row(sums, counts, self._largest, self._run.rollouts.most_difference)
        return row | (self._round_metrics() if counts["fresh"] else {})

    def after_step(self, model: Transformer, sums: Mapping[str, Tensor], step: int) -> None:
        """Nothing moves but by gradients."""

    def validate(self, model: Transformer, step: int) -> MetricsRow | None:
        """Nothing: `eval` measures checkpoints on tasks held out."""
        return None


# --------------------------------------------------------------------------------------------------
# Teachers


class Teachers:
    """The specialists of a run; none is held in memory for longer than its answers take."""

    def __init__(self, run: DistillRun, tokenizer: Tokenizer) -> None:
        """Raises ValueError where there is none, and for one of another vocabulary."""
        if not run.distill.teachers:
            raise ValueError(
                "distill.teachers is empty: name at least one, with --teacher or as JSON "
                '[{"name": "...", "model": "FOLDER", "prompts": "FILE.jsonl"}]'
            )
        self._run = run
        self._head: tuple[int, Tensor] | None = None
        for teacher in run.distill.teachers:
            _require_same_vocabulary(teacher, run, tokenizer)

    def enrich(self, answers: Sequence[Answer], owners: Sequence[int]) -> list[dict[str, Tensor]]:
        """The hidden states of each answer's teacher, in the dtype they are kept in."""
        dtype = getattr(torch, self._run.distill.cache_dtype)
        made: list[dict[str, Tensor]] = [{} for _ in answers]
        for number in sorted(set(owners)):
            own = [index for index, owner in enumerate(owners) if owner == number]
            model = load_frozen(Path(self._run.distill.teachers[number].model), self._run)
            taught = [answers[index] for index in own]
            parts = [hidden.to(dtype) for _, hidden in hidden_states(model, taught, self._run)]
            rows = split_rows(torch.cat(parts), taught)
            for index, hidden in zip(own, rows, strict=True):
                made[index] = {HIDDEN: hidden, TEACHER: torch.full((len(hidden),), number)}
            del model  # before the next one is loaded
        return made

    def head(self, number: int) -> Tensor:
        """A teacher's head, [v, d]; the last one asked for is kept."""
        if self._head is None or self._head[0] != number:
            self._head = None
            folder = Path(self._run.distill.teachers[number].model)
            self._head = number, Checkpoint(model_of(folder)).read("head.weight").float()
        return self._head[1]

    def weight(self, number: int) -> float:
        return self._run.distill.teachers[number].weight


def _require_same_vocabulary(teacher: Teacher, run: DistillRun, tokenizer: Tokenizer) -> None:
    folder = model_of(Path(teacher.model))
    config = Checkpoint(folder).config
    where = f"teacher {teacher.name!r} in {teacher.model}"
    if config.vocab_size != run.model.vocab_size:
        raise ValueError(
            f"{where} has a vocabulary of {config.vocab_size}, the student one of "
            f"{run.model.vocab_size}: a divergence over all tokens needs the same; distil from a "
            "model of the same tokenizer"
        )
    file = folder / "tokenizer.json"
    if file.is_file() and Tokenizer.from_file(file).token_bytes != tokenizer.token_bytes:
        raise ValueError(
            f"{where} has another tokenizer than the student: its tokens mean other texts; distil "
            "from a model of the same tokenizer"
        )


# --------------------------------------------------------------------------------------------------
# Batches


class TaughtBatches(Sequence[RolloutBatch]):
    """The batches of a round in the order of their teachers; heads are added one at a time."""

    def __init__(self, found: Round, run: DistillRun, teachers: Teachers) -> None:
        self._teachers = teachers
        self._batches: list[tuple[int, RolloutBatch]] = []
        owners = [_teacher_of(answer) for answer in found.answers]
        for number in sorted(set(owners)):
            own = [a for a, owner in zip(found.answers, owners, strict=True) if owner == number]
            rows = best_fit([len(answer.tokens) for answer in own], run.data.batch_tokens)
            for row in rows:
                batch = batch_of([own[index] for index in row], [0.0] * len(row))
                self._batches.append((number, batch))
        number, batch = self._batches[-1]
        while len(self._batches) % run.train.accumulation:
            self._batches.append((number, empty_like(batch)))
        self._accumulation = run.train.accumulation

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, at: int) -> RolloutBatch:  # type: ignore[override]
        number, batch = self._batches[at]
        return replace(
            batch,
            head=self._teachers.head(number),
            weight=self._teachers.weight(number),
            fresh=at < self._accumulation,
        )


def _teacher_of(answer: Answer) -> int:
    """The number of the teacher of an answer, which has at least one sampled token."""
    return int(answer.extra[TEACHER][0])
