"""What a trainer minimises, as the interface between it and pre-training, fine-tuning or RL.

The trainer owns the loop: batches, gradients, clipping, the guard, updates, metrics, checkpoints.
An `Objective` owns everything that depends on what is learned: what a batch means, the losses,
their weights and counts, what is recorded. The trainer only moves batches to a device.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from sounding.data.token_batch import StreamState
from sounding.model.transformer import Transformer
from sounding.train.metrics import MetricsRow

_T = TypeVar("_T")  # beartype knows Self only in classes, not in protocols


@runtime_checkable
class TrainingBatch(Protocol):
    """What the trainer does with a batch; everything else is between source and objective."""

    def to(self: _T, device: torch.device) -> _T:
        """The same batch on another device."""


B = TypeVar("B", bound=TrainingBatch)
BatchSource = Callable[[StreamState | None], Iterator[tuple[B, StreamState]]]
"""Opens a stream of batches from its beginning, or behind the batch that came with a state; every
batch comes with the state that resumes behind it."""

B_contra = TypeVar("B_contra", bound=TrainingBatch, contravariant=True)


@dataclass(frozen=True)
class StepPlan:
    """What the trainer must know of a step before it is taken."""

    phase: str
    """Recorded with the step. Losses of another phase are not compared: the guard starts anew."""
    learning_rate: float
    watched: str = "loss"
    """The metric in which the guard looks for spikes."""
    trains: Callable[[str], bool] = lambda name: True
    """Whether the parameter of this name takes a gradient; the others cost no memory for it."""


@runtime_checkable
class Objective(Protocol[B_contra]):
    """A loss over batches of one type. Steps are numbered from 0.

    A step sees `counts` of all its batches first, then `losses` and `loss` of each, possibly on
    several threads, then `metrics` of their sums, and `after_step` if the guard let it pass.
    """

    def plan(self, step: int) -> StepPlan:
        """What to train in this step, and how fast."""

    def counts(self, batch: B_contra) -> Mapping[str, int]:
        """What the sums of a step are divided by, the same names for every batch.

        `tokens` must be among them: the run's counter of tokens goes by it.
        """

    def losses(self, model: Transformer, batch: B_contra, step: int) -> Mapping[str, Tensor]:
        """Run a batch; named sums over it, the same names and shapes for every batch of a step.

        Values may be tensors of any shape and need no gradient: those that are only measured are
        summed over the step's batches and processes like the others.
        """

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int) -> Tensor:
        """The scalar to differentiate: one batch's share in a step with these counts."""

    def metrics(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
    ) -> MetricsRow:
        """What is recorded of a step, by name; both arguments are those of the whole step."""

    def after_step(self, model: Transformer, sums: Mapping[str, Tensor], step: int) -> None:
        """Change what no gradient reaches, after an update with these sums over the whole step."""

    def validate(self, model: Transformer, step: int) -> MetricsRow | None:
        """Measure the network after so many steps, without gradients; None if nothing is."""
