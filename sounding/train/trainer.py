"""The loop: accumulate, clip, judge, step, log, validate, save, resume.

A `Trainer` is one run on its way. Its weights, moments and counters are everything that decides the
next step, and a checkpoint holds all of them: a run that was killed and resumed ends in the same
bits as one that was not (in one process, with `train.deterministic`).
"""

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sounding.train import run_checkpoint, supervised
from sounding.train.build_network import build_network
from sounding.train.guard import Guard
from sounding.train.interrupt import Interrupt
from sounding.train.metrics import Metrics, Row
from sounding.train.numerics import for_throughput, repeatable
from sounding.train.optim import Optimizers, decay_progress, learning_rate
from sounding.train.parallel import ALONE, Group, clip, part_like, whole
from sounding.train.run_checkpoint import CHECKPOINTS_NAME, MILESTONES_NAME
from sounding.train.run_config import RunConfig
from sounding.train.runs import differences, parse_run
from sounding.train.side_by_side import side_by_side
from sounding.train.source import Batch, HeldOut, Source, State, Tokens, filled
from sounding.train.start import start_from
from sounding.train.supervised import Counts, Losses, Phase, phase_of

logger = logging.getLogger(__name__)

RUN_NAME, METRICS_NAME = "run.json", "metrics.jsonl"


class Trainer:
    """A run in a folder: made new, or found where it stopped."""

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        source: Source,
        *,
        device: torch.device,
        held_out: HeldOut | None = None,
        report: Callable[[Row], None] = lambda row: None,
        beside: Sequence[Path] = (),
        group: Group = ALONE,
        allow_change: bool = False,
    ) -> None:
        """Go on from the folder's last checkpoint, or begin at step 0 if it has none.

        `report` is given every row of metrics; files `beside` (a tokenizer) are saved with every
        checkpoint's model. Raises ValueError when the folder holds a run with
        another configuration, unless `allow_change`.
        """
        self.run_config, self.folder, self.device = run, folder, device
        self.group = group
        self.step, self.tokens = 0, 0
        self.model = build_network(run, device)
        if run.train.initial_weights and not run_checkpoint.steps(folder / CHECKPOINTS_NAME):
            start_from(self.model, Path(run.train.initial_weights), beside)
        group.shard(self.model)
        self.optimizers = Optimizers(self.model, run.optimizer)
        self.guard = Guard(run.guard, harmless=run.optimizer.clip_norm)
        self.metrics = Metrics(folder / METRICS_NAME)
        self._data_state: State | None = None
        self._held_out, self._report, self._beside = held_out, report, beside
        self._interrupt = Interrupt()
        only = run.train.only
        if only and not any(name.startswith(only) for name, _ in self.model.named_parameters()):
            raise ValueError(
                f"train.only = {only!r} begins no parameter's name; they begin with 'layers.0.', "
                "'mtp.0.', 'embed.', 'head.' and the like"
            )
        if only and group.world > 1:
            raise ValueError("train.only needs a single process: sharded weights learn together")
        if run.train.accumulation % group.world:
            raise ValueError(
                f"train.accumulation = {run.train.accumulation} must be a multiple of the "
                f"{group.world} processes, which share a step's batches"
            )
        if group.is_main:
            self._claim(allow_change)
        group.wait()
        self._resume()
        if group.is_main:
            self._require_room()
        self._stream = source(self._data_state)

    # ----------------------------------------------------------------------------------------------
    # The loop

    def train(self) -> bool:
        """Take the steps that are left; returns whether the run is finished.

        Interrupting (Ctrl-C, or a request to terminate) ends it after the current step, saved; a
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
                    self._validate()
                if log.milestone_every and self.step % log.milestone_every == 0:
                    self._save_milestone()
                if self.step % log.checkpoint_every == 0 and self.guard.calm:
                    self.save()
            if self.step % log.checkpoint_every and self.guard.calm:
                self.save()
        return self.step >= run.train.steps

    def take_step(self) -> Row:
        """One update from `accumulation` batches, or none if the guard objects; its metrics."""
        run = self.run_config
        batches = self._next_batches()
        depth = len(self.model.mtp)
        mine = sum((supervised.count(batch, depth) for batch in batches), Counts())
        counts = Counts(*self.group.sum(torch.tensor([*mine], device=self.device)).tolist())
        phase = phase_of(self.step, run.sparsity)
        self._freeze(phase)
        sums = self._differentiate([self._to_device(batch) for batch in batches], counts, phase)
        total = Losses(
            *(self.group.sum(torch.stack(part).sum(0)) for part in zip(*sums, strict=True))
        )
        norm = self._clip()
        row = self._row(total, counts, norm, phase)
        learned = row["index_loss" if phase is Phase.INDEXER else "loss"]
        reason = self.guard.judge(learned, row["gradient_norm"], phase.name)
        if reason is None:
            with for_throughput(run.train.dtype):
                self.optimizers.step(row["learning_rate"])
            if phase is not Phase.INDEXER:
                supervised.steer(self.model, total.loads, run.objective.bias_speed)
        else:
            self.optimizers.zero_grad()
            row |= {"event": "skipped", "reason": reason}
            logger.warning("step %d skipped: %s", self.step + 1, reason)
        self.step += 1
        self.tokens += counts.tokens
        return row

    def _next_batches(self) -> list[Batch]:
        wanted = self.run_config.train.accumulation // self.group.world
        pairs = list(itertools.islice(self._stream, wanted))
        if len(pairs) < wanted:
            raise ValueError(
                f"the data ended at step {self.step} of {self.run_config.train.steps}: lower "
                "train.steps, or let the source repeat"
            )
        self._data_state = pairs[-1][1]
        return [batch for batch, _ in pairs]

    def _to_device(self, batch: Batch) -> Batch:
        batch = filled(batch, self.run_config.data.batch_tokens)
        tokens, targets = (x.to(self.device) for x in (batch.tokens, batch.targets))
        return Tokens(tokens, targets, list(batch.lengths), batch.middles)

    def _freeze(self, phase: Phase) -> None:
        """While only the indexer learns, or what `train.only` names, nothing else takes a gradient.

        While the indexer learns nothing else would get one anyway; this saves keeping what they
        would be computed from. Sharded parameters cannot be switched so.
        """
        only = self.run_config.train.only or ""
        if self.group.world > 1:
            return
        for name, param in self.model.named_parameters():
            if param.is_floating_point() and not name.endswith("gate.bias"):
                learns = phase is not Phase.INDEXER or ".indexer." in name
                param.requires_grad_(learns and name.startswith(only))

    def _differentiate(self, batches: list[Batch], counts: Counts, phase: Phase) -> list[Losses]:
        """Add every batch's share to the gradients, and return what was summed in each.

        A process alone works on as many batches at once as it has threads, one thread for each:
        two threads in one operation spend much of their time waiting for each other. Gradients are
        added in the order of the batches, so their bits do not depend on who is first.
        """
        objective = self.run_config.objective
        trained = [param for param in self.model.parameters() if param.requires_grad]

        def run(batch: Batch) -> tuple[Losses, Sequence[Tensor | None]]:
            sums = supervised.losses(
                self.model,
                batch,
                phase,
                mtp=self._mtp_weight > 0,
                middles=objective.middle_weight != 1,
            )
            loss = supervised.total_loss(
                sums,
                counts,
                mtp_weight=self._mtp_weight,
                balance_weight=objective.balance_weight,
                middle_weight=objective.middle_weight,
            )
            gradients: Sequence[Tensor | None] = ()
            if loss.requires_grad and self.group.world > 1:
                # Sharded gradients are gathered on their way back, and averaged: we want sums.
                (loss * self.group.world).backward()
            elif loss.requires_grad:
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            return Losses(*(value.detach() for value in sums)), gradients

        threaded = self.group.world == 1 and self.device.type == "cpu"
        summed = []
        with for_throughput(self.run_config.train.dtype):
            for sums, gradients in side_by_side(run, batches, threaded=threaded):
                summed.append(sums)
                for param, gradient in zip(trained, gradients, strict=bool(gradients)):
                    if gradient is not None:
                        param.grad = gradient if param.grad is None else param.grad.add_(gradient)
        return summed

    @property
    def _mtp_weight(self) -> float:
        objective = self.run_config.objective
        decaying = decay_progress(self.step, self.run_config.train) > 0
        return objective.mtp_weight_in_decay if decaying else objective.mtp_weight

    def _clip(self) -> Tensor:
        """Clip the gradients, the indexer's apart so that it does not slow the network down.

        Returns the network's norm before clipping; the indexer's while only that learns.
        """
        limit = self.run_config.optimizer.clip_norm
        named = [(n, p) for n, p in self.model.named_parameters() if p.grad is not None]
        indexers = [param for name, param in named if ".indexer." in name]
        others = [param for name, param in named if ".indexer." not in name]
        norms = [clip(group, limit) for group in (others, indexers) if group]
        return norms[0] if norms else torch.zeros(())

    def _row(self, total: Losses, counts: Counts, norm: Tensor, phase: Phase) -> Row:
        run = self.run_config
        scalars = torch.stack([*(value.float() for value in total[:5]), norm.float()]).tolist()
        next_token, mtp, balance, indexer, middles, gradient_norm = scalars
        row: Row = {"step": self.step + 1, "tokens": self.tokens + counts.tokens}
        row["phase"] = phase.name.lower()
        row["learning_rate"] = learning_rate(self.step, run.train)
        if phase is Phase.INDEXER:
            row["learning_rate"] = run.sparsity.indexer_lr
        else:
            row["loss"] = next_token / max(1, counts.targets)
            if self._mtp_weight > 0:
                row["mtp_loss"] = mtp / max(1, counts.mtp_targets)
            if run.objective.middle_weight != 1 and counts.middles:
                row["middle_loss"] = middles / counts.middles
            row["balance_loss"] = balance / counts.tokens
            row["load_entropy"] = supervised.load_entropy(total.loads)
        if phase is not Phase.DENSE:
            row["index_loss"] = indexer / counts.tokens
        return row | {"gradient_norm": gradient_norm}

    @torch.no_grad()
    def _validate(self) -> None:
        """Bits per byte of the held-out text, read as the network would now be used."""
        if self._held_out is None:
            return
        phase = phase_of(self.step, self.run_config.sparsity)
        phase = Phase.DENSE if phase is not Phase.SPARSE else Phase.SPARSE
        total, counts = 0.0, Counts()
        for batch in self._held_out.batches:
            with for_throughput(self.run_config.train.dtype):
                moved = self._to_device(batch)
                total += float(supervised.next_token_loss(self.model, moved, phase))
            counts += supervised.count(batch, 0)
        self.group.reshard(self.model)
        self._record(
            {
                "step": self.step,
                "tokens": self.tokens,
                "validation_loss": total / max(1, counts.targets),
                "bits_per_byte": total / math.log(2) / self._held_out.num_bytes,
            }
        )

    def _record(self, row: Row) -> None:
        if not self.group.is_main:
            return
        self.metrics.append(row)
        self._report(row)

    # ----------------------------------------------------------------------------------------------
    # Stopping and going on

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        weights = self._whole_weights()
        moments = self.optimizers.state_tensors()
        if self.group.is_main:
            state = {
                "run": self.run_config.to_dict(),
                "step": self.step,
                "tokens": self.tokens,
                "data": self._data_state,
                "guard": self.guard.to_dict(),
                "metrics_bytes": self.metrics.sync(),
            }
            run_checkpoint.save(
                self.folder / CHECKPOINTS_NAME,
                self.step,
                model=weights,
                config=self.run_config.model,
                optimizer=moments,
                state=state,
                keep=self.run_config.log.keep_checkpoints,
                beside=self._beside,
            )
        self.group.wait()

    def _save_milestone(self) -> None:
        weights = self._whole_weights()
        if self.group.is_main:
            run_checkpoint.save_milestone(
                self.folder / MILESTONES_NAME,
                self.step,
                self.tokens,
                model=weights,
                config=self.run_config.model,
                beside=self._beside,
            )
        self.group.wait()

    def _whole_weights(self) -> dict[str, Tensor]:
        return {name: whole(param.detach()) for name, param in self.model.named_parameters()}

    def _claim(self, allow_change: bool) -> None:
        """Make the folder this run's, or check that it is, and tidy up what was killed in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINTS_NAME, MILESTONES_NAME):
            run_checkpoint.clean(self.folder / name)
        path = self.folder / RUN_NAME
        if path.exists():
            old = parse_run(json.loads(path.read_text(encoding="utf-8")))
            changed = differences(old, self.run_config)
            if changed and not allow_change:
                raise ValueError(
                    f"{self.folder} holds a run with other settings ({'; '.join(changed)}): give "
                    "the same ones, choose another folder, or allow the change"
                )
            for line in changed:
                logger.warning("changed from here on: %s", line)
        path.write_text(json.dumps(self.run_config.to_dict(), indent=2) + "\n", encoding="utf-8")

    def _resume(self) -> None:
        known_bytes = 0
        if run_checkpoint.steps(self.folder / CHECKPOINTS_NAME):
            state = self._take_over_last()
            self._data_state, known_bytes = state["data"], int(state["metrics_bytes"])
            logger.info("resumed at step %d", self.step)
        if self.group.is_main:
            self.metrics.cut(known_bytes)

    def _require_room(self) -> None:
        """Raise ValueError where the disk is too small for what is still to be saved."""
        log, left = self.run_config.log, self.run_config.train.steps - self.step
        weights = sum(param.nbytes for param in self.model.parameters())
        saves = math.ceil(left / log.checkpoint_every)
        # A new one is written before an old one goes.
        room = log.keep_checkpoints + 1 - len(run_checkpoint.steps(self.folder / CHECKPOINTS_NAME))
        needed = min(saves, max(1, room)) * (weights + self.optimizers.state_bytes)
        if log.milestone_every:
            ends = (self.step, self.run_config.train.steps)
            before, after = (step // log.milestone_every for step in ends)
            needed += (after - before) * weights // 2  # in bf16
        advice = "lower log.keep_checkpoints, or save fewer milestones with log.milestone_every"
        run_checkpoint.require_room(self.folder, needed, advice)

    def _roll_back(self) -> None:
        """Back to the last checkpoint's weights, on with later data."""
        saved_steps = run_checkpoint.steps(self.folder / CHECKPOINTS_NAME)
        rollbacks = self.guard.rollbacks + 1
        reason = f"{self.guard.skipped_in_a_row} steps in a row were skipped"
        if not saved_steps or rollbacks > self.run_config.guard.rollbacks:
            raise ValueError(
                f"step {self.step}: {reason}, and there is "
                f"{'no checkpoint to go back to' if not saved_steps else 'no rollback left'}; "
                "lower train.lr, or raise guard.rollbacks"
            )
        gone = self.step
        state = self._take_over_last()
        self.guard.restore({**state["guard"], "rollbacks": rollbacks})
        reason = f"at step {gone}: {reason}"
        logger.warning("back to step %d: %s", self.step, reason)
        event = {"event": "rolled back", "reason": reason}
        self._record({"step": self.step, "tokens": self.tokens, **event})

    def _take_over_last(self) -> State:
        """Take over the last checkpoint; where that is damaged, the one before, with a warning.

        Damaged ones are set aside once a whole one is found. Raises ValueError if there is none.
        """
        root = self.folder / CHECKPOINTS_NAME
        damaged: list[int] = []
        for step in reversed(run_checkpoint.steps(root)):
            state, reason = self._try_to_take_over(root, step)
            if not self.group.any(state is None):
                break
            damaged.append(step)
            logger.warning("the checkpoint of step %d cannot be used: %s", step, reason)
        else:
            raise ValueError(
                f"no checkpoint in {root} can be used ({reason}); move that folder away to begin "
                "anew, or choose another --out"
            )
        assert state is not None
        if self.group.is_main:
            for gone in damaged:
                place = run_checkpoint.set_aside(root, gone)
                logger.warning("it is kept as %s; the run goes on from step %d", place, step)
        self.group.wait()
        return state

    def _try_to_take_over(self, root: Path, step: int) -> tuple[State | None, str]:
        """The state of a saved step, or None and why it cannot be used."""
        try:
            saved = run_checkpoint.load(root, step)
            missing = {"tokens", "data", "guard", "metrics_bytes"} - saved.state.keys()
            if missing:
                return None, f"its state lacks {min(missing)!r}"
            self.guard.restore(saved.state["guard"])
            return self._take_over(saved), ""
        except (ValueError, OSError) as error:
            return None, str(error)
        except (KeyError, TypeError, RuntimeError) as error:  # of another form than ours
            return None, f"{type(error).__name__}: {error}"

    def _take_over(self, saved: run_checkpoint.Saved) -> State:
        """Copy weights and moments of a checkpoint into this run's own tensors.

        Copies, because sums depend on how memory is aligned, and a file's pages are not as a
        tensor of ours is.
        """
        with torch.no_grad():
            for name, param in self.model.named_parameters():
                param.copy_(part_like(saved.model[name].to(param.device), param))
        self.optimizers.load_state_tensors(saved.optimizer)
        self.step, self.tokens = int(saved.state["step"]), int(saved.state["tokens"])
        return saved.state
