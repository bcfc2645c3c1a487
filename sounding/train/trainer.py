"""The training loop: accumulate, clip, judge, step, record, validate, save, resume.

A `Trainer` is a run in progress. Its weights, moments and counters are everything that decides the
next step, and a checkpoint holds all of them: a run that was killed and resumed ends in the same
bits as one that was not (in one process, with `train.deterministic`). What is learned is the
objective's; see `objective.py`.
"""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from sounding.data.token_batch import StreamState
from sounding.model.transformer import Transformer
from sounding.parallel.group import ALONE, Axis, Group
from sounding.parallel.sharding import (
    clip,
    gradient_norms,
    logical,
    part_like,
    reshard,
    shard,
    whole,
)
from sounding.parallel.shards import load_shards, saved_shapes
from sounding.train.build_network import build_network, freeze_all_but
from sounding.train.guard import Guard
from sounding.train.initial_weights import load_initial_weights
from sounding.train.interrupt import Interrupt
from sounding.train.metrics import MetricsRow
from sounding.train.numerics import for_throughput, repeatable
from sounding.train.objective import B, BatchSource, Objective, StepPlan
from sounding.train.optim import Optimizers
from sounding.train.phases import is_indexer
from sounding.train.run_checkpoint import MOMENTS, WEIGHTS, SavedStep, moments_of
from sounding.train.run_config import RunConfig
from sounding.train.run_folder import RunFolder
from sounding.train.side_by_side import side_by_side

logger = logging.getLogger(__name__)


class Trainer(Generic[B]):
    """A run in a folder: new, or at the step where it stopped."""

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        source: BatchSource[B],
        objective: Objective[B],
        *,
        device: torch.device,
        network: Transformer | None = None,
        report: Callable[[MetricsRow], None] = lambda row: None,
        beside: Sequence[Path] = (),
        group: Group = ALONE,
        allow_change: bool = False,
    ) -> None:
        """Resume the folder's last checkpoint, or start at step 0 if it has none.

        By default the network is built as `run` says; one that is given, on `device`, is trained
        in place. `report` is called with every row of metrics; files `beside` (a tokenizer) are
        saved with every checkpoint's model. Raises ValueError when the folder holds a run with
        other settings, unless `allow_change`, and for settings that do not fit the network or the
        number of processes.
        """
        self.run_config, self.device, self.group = run, device, group
        self.objective = objective
        self.folder = RunFolder(folder, run, beside=beside, group=group)
        self.step, self.tokens = 0, 0
        self.model = build_network(run, device) if network is None else network
        initial = run.train.initial_weights
        begins = Path(initial) if initial and not self.folder.has_checkpoint else None
        if begins:
            load_initial_weights(self.model, begins, beside)
        shard(self.model, group)
        self.optimizers = Optimizers(self.model, run.optimizer, group)
        if begins:
            self.optimizers.load_state_tensors(moments_of(begins))
        freeze_all_but(self.model, run.train.only, group)
        self._trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.guard = Guard(run.guard, harmless=run.optimizer.clip_norm)
        self._data_state: StreamState | None = None
        self._report = report
        self._interrupt = Interrupt()
        _require_fitting(run, group)
        self.folder.claim(allow_change=allow_change)
        self._resume()
        weights = sum(logical(param, group).nbytes for param in self.model.parameters())
        if group.world > 1 and run.parallel.whole_models:
            weights *= 2  # in shards, and as a model
        self.folder.require_room(self.step, weights, self.optimizers.state_bytes)
        self._stream = source(self._data_state)

    # ----------------------------------------------------------------------------------------------
    # The loop

    def train(self) -> bool:
        """Take the remaining steps; returns whether the run is finished.

        An interrupt (Ctrl-C, or a request to terminate) ends it after the current step, saved; a
        second interrupt ends it at once.
        """
        run, log = self.run_config, self.run_config.log
        started, measured = time.monotonic(), self.tokens
        with repeatable(run.train.deterministic), self._interrupt.listening():
            while self.step < run.train.steps and not self.group.any(self._interrupt.requested):
                row = self.take_step()
                if self.guard.gives_up:
                    self._roll_back()
                    started, measured = time.monotonic(), self.tokens
                    continue
                if self.step % log.every == 0 or "event" in row:
                    now = time.monotonic()
                    row["tokens_per_second"] = (self.tokens - measured) / (now - started)
                    started, measured = now, self.tokens
                    self._record(row)
                if self.step % log.validate_every == 0 or self.step == run.train.steps:
                    self.validate()
                if log.milestone_every and self.step % log.milestone_every == 0:
                    self.folder.save_milestone(self.step, self.tokens, self._whole_weights())
                if self.step % log.checkpoint_every == 0 and self.guard.calm:
                    self.save()
            if self.step % log.checkpoint_every and self.guard.calm:
                self.save()
        return self.step >= run.train.steps

    def take_step(self) -> MetricsRow:
        """One update from `accumulation` batches, or none if the guard objects; its metrics."""
        batches = self._next_batches()
        counts = self._counts(batches)
        plan = self.objective.plan(self.step)
        sums = self._differentiate([batch.to(self.device) for batch in batches], counts, plan)
        norm = self._clip()
        row: MetricsRow = {
            "step": self.step + 1,
            "tokens": self.tokens + counts["tokens"],
            "phase": plan.phase,
            "learning_rate": plan.learning_rate,
            **self.objective.metrics(sums, counts, self.step),
            "gradient_norm": float(norm),
        }
        reason = self.guard.judge(row[plan.watched], row["gradient_norm"], plan.phase)
        if reason is None:
            with for_throughput(self.run_config.train.dtype):
                self.optimizers.step(plan.learning_rate)
            self.objective.after_step(self.model, sums, self.step)
        else:
            self.optimizers.zero_grad()
            row |= {"event": "skipped", "reason": reason}
            logger.warning("step %d skipped: %s", self.step + 1, reason)
        self.step += 1
        self.tokens += counts["tokens"]
        return row

    def _next_batches(self) -> list[B]:
        wanted = self.run_config.train.accumulation // self.group.batch_world
        pairs = list(itertools.islice(self._stream, wanted))
        if len(pairs) < wanted:
            raise ValueError(
                f"the data ended at step {self.step} of {self.run_config.train.steps}: lower "
                "train.steps, or let the source repeat"
            )
        self._data_state = pairs[-1][1]
        return [batch for batch, _ in pairs]

    def _counts(self, batches: Sequence[B]) -> dict[str, int]:
        """The objective's counts over all batches of the step, in all processes."""
        rows = [self.objective.counts(batch) for batch in batches]
        names = list(rows[0])
        own = torch.tensor([sum(row[name] for row in rows) for name in names], device=self.device)
        own = own if self.group.counts_batch else own.zero_()
        return dict(zip(names, map(int, self.group.sum(own).tolist()), strict=True))

    def _differentiate(
        self, batches: Sequence[B], counts: Mapping[str, int], plan: StepPlan
    ) -> dict[str, Tensor]:
        """Add every batch's share to the gradients; returns the sums over the whole step.

        A process alone works on as many batches at once as it has threads, one thread for each:
        two threads in one operation spend much of their time waiting for each other. Gradients are
        added in the order of the batches, so their bits do not depend on which ends first.
        """
        self._freeze(plan)
        trained = [param for param in self.model.parameters() if param.requires_grad]

        def run(batch: B) -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
            sums = self.objective.losses(self.model, batch, self.step)
            loss = self.objective.loss(sums, counts, self.step)
            gradients: Sequence[Tensor | None] = ()
            if loss.requires_grad and self.group.world > 1:
                loss.backward()  # sharded gradients are summed over processes on their way back
            elif loss.requires_grad:
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            return {name: value.detach() for name, value in sums.items()}, gradients

        threaded = self.group.world == 1 and self.device.type == "cpu"
        summed = []
        with for_throughput(self.run_config.train.dtype):
            for sums, gradients in side_by_side(run, batches, threaded=threaded):
                summed.append(sums)
                for param, gradient in zip(trained, gradients, strict=bool(gradients)):
                    if gradient is not None:
                        param.grad = gradient if param.grad is None else param.grad.add_(gradient)
        return {
            name: self.group.sum(torch.stack([sums[name] for sums in summed]).sum(0))
            for name in summed[0]
        }

    def _freeze(self, plan: StepPlan) -> None:
        """Let only what the plan trains take gradients, which saves the memory they would take.

        Sharded parameters cannot be switched; there the loss alone decides what moves.
        """
        if self.group.world > 1:
            return
        for name, param in self._trained.items():
            param.requires_grad_(plan.trains(name))

    def _clip(self) -> Tensor:
        """Clip the gradients, the indexers' apart so that they do not slow the network down.

        Returns the network's norm before clipping; the indexers' where nothing else trains.
        """
        limit = self.run_config.optimizer.clip_norm
        params = dict(self.model.named_parameters())
        norms = gradient_norms(params, self.group)
        indexers = [name for name in norms if is_indexer(name)]
        others = [name for name in norms if not is_indexer(name)]
        totals = [
            clip([params[name] for name in names], [norms[name] for name in names], limit)
            for names in (others, indexers)
            if names
        ]
        return totals[0] if totals else torch.zeros(())

    def validate(self) -> None:
        """Let the objective measure the network as it is, and record what it found."""
        with torch.no_grad(), for_throughput(self.run_config.train.dtype):
            row = self.objective.validate(self.model, self.step)
        reshard(self.model)
        if row is not None:
            self._record({"step": self.step, "tokens": self.tokens, **row})

    def _record(self, row: MetricsRow) -> None:
        if self.group.is_main:
            self.folder.record(row)
            self._report(row)

    # ----------------------------------------------------------------------------------------------
    # Saving and resuming

    def save(self) -> None:
        """Write a checkpoint of this step."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "data": self._data_state,
            "guard": self.guard.to_dict(),
        }
        if self.group.world == 1:
            moments = self.optimizers.state_tensors()
            self.folder.save(self.step, weights=self._whole_weights(), moments=moments, state=state)
            return
        whole_models = self.run_config.parallel.whole_models
        self.folder.save_sharded(
            self.step,
            tensors=self._own_parts(),
            weights=self._whole_weights() if whole_models else None,
            state=state,
        )

    def _whole_weights(self) -> dict[str, Tensor]:
        """The weights of the whole network, in the main process."""
        weights = {}
        for name, param in self.model.named_parameters():
            gathered = whole(param.detach(), self.group)
            if self.group.is_main:
                weights[name] = gathered.cpu() if self.group.world > 1 else gathered
        return weights

    def _own_parts(self) -> dict[str, Tensor]:
        """Weights and moments as they are sharded, by the names they have in checkpoints."""
        weights = {WEIGHTS + name: param for name, param in self.model.named_parameters()}
        moments = {MOMENTS + name: part for name, part in self.optimizers.named_state().items()}
        parts = {**weights, **moments}
        return {name: logical(tensor.detach(), self.group) for name, tensor in parts.items()}

    def _resume(self) -> None:
        saved = self.folder.restore_last(self._take_over)
        if saved is not None:
            self._data_state = saved.state["data"]
            logger.info("resumed at step %d", self.step)
        self.folder.cut_metrics(int(saved.state["metrics_bytes"]) if saved else 0)

    def _roll_back(self) -> None:
        """Back to the last checkpoint's weights, on with later data."""
        rollbacks = self.guard.rollbacks + 1
        reason = f"{self.guard.skipped_in_a_row} steps in a row were skipped"
        if not self.folder.has_checkpoint or rollbacks > self.run_config.guard.rollbacks:
            has = self.folder.has_checkpoint
            missing = "no rollback left" if has else "no checkpoint to go back to"
            raise ValueError(
                f"step {self.step}: {reason}, and there is {missing}; lower train.lr, or raise "
                "guard.rollbacks"
            )
        reason = f"at step {self.step}: {reason}"
        self.folder.restore_last(self._take_over)
        self.guard.rollbacks = rollbacks
        logger.warning("back to step %d: %s", self.step, reason)
        event = {"event": "rolled back", "reason": reason}
        self._record({"step": self.step, "tokens": self.tokens, **event})

    def _take_over(self, saved: SavedStep) -> None:
        """Copy all of a checkpoint but the place in the data into this run's own tensors.

        Copies, because sums depend on how memory is aligned, and a file's pages are aligned
        otherwise than a tensor of ours.
        """
        if saved.shards is None:
            with torch.no_grad():
                for name, param in self.model.named_parameters():
                    param.copy_(part_like(saved.model[name].to(param.device), param, self.group))
            self.optimizers.load_state_tensors(saved.optimizer)
        else:
            names = saved_shapes(saved.shards)
            moments = [name.removeprefix(MOMENTS) for name in names if name.startswith(MOMENTS)]
            self.optimizers.clear_state(moments)
            load_shards(saved.shards, self._own_parts(), self.group)
        self.guard.restore(saved.state["guard"])
        self.step, self.tokens = int(saved.state["step"]), int(saved.state["tokens"])


def _require_fitting(run: RunConfig, group: Group) -> None:
    """Raise ValueError for settings that do not fit the processes."""
    asked = run.parallel
    if group.world == 1 < (asked.data or 1) * asked.expert * asked.context:
        raise ValueError(
            f"parallel.data = {asked.data}, parallel.expert = {asked.expert}, parallel.context = "
            f"{asked.context} ask for several processes, and this run has one"
        )
    if run.train.accumulation % group.batch_world:
        raise ValueError(
            f"train.accumulation = {run.train.accumulation} must be a multiple of the "
            f"{group.batch_world} batches that the processes take at once (parallel.data x "
            "parallel.expert)"
        )
    if run.log.milestone_every and not run.parallel.whole_models:
        raise ValueError(
            f"log.milestone_every = {run.log.milestone_every} saves whole models, and "
            "parallel.whole_models = False says that no process can hold one: set either"
        )
    axes: tuple[Axis, ...] = ("expert", "context")
    for axis in axes:
        if run.train.compile and group.size(axis) > 1:
            raise ValueError(
                f"train.compile = True does not go with parallel.{axis} = {group.size(axis)}: "
                "compiled blocks cannot exchange rows in between"
            )
