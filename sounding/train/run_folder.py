"""The folder of a run: its settings, metrics, checkpoints and milestones.

A folder belongs to one run. Everything is written by the main process of a group; all processes
read, and those that save must all ask, because sharded weights are put together first.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sounding.config import ModelConfig
from sounding.files import write_file
from sounding.parallel.group import ALONE, Group
from sounding.train import run_checkpoint
from sounding.train.metrics import METRICS_NAME, MetricsFile, MetricsRow
from sounding.train.resolve import RUN_NAME, read_run_as
from sounding.train.run_checkpoint import SavedStep
from sounding.train.run_config import RunConfig
from sounding.train.runs import differences
from sounding.train.saved_models import CHECKPOINTS_NAME, MILESTONES_NAME, steps

logger = logging.getLogger(__name__)


class RunFolder:
    """Where a run writes, and where it goes on from."""

    def __init__(
        self, path: Path, run: RunConfig, *, beside: Sequence[Path] = (), group: Group = ALONE
    ) -> None:
        """Files `beside` (a tokenizer) are copied to every model that is saved."""
        self.path = path
        self.metrics = MetricsFile(path / METRICS_NAME)
        self._run, self._beside, self._group = run, beside, group

    def claim(self, *, allow_change: bool = False) -> None:
        """Make the folder this run's, and finish or undo what killed saves left in it.

        Raises ValueError when it holds a run with other settings, unless `allow_change`.
        """
        if self._group.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (CHECKPOINTS_NAME, MILESTONES_NAME):
                run_checkpoint.clean(self.path / name)
            self._claim_settings(allow_change)
        self._group.wait()

    def _claim_settings(self, allow_change: bool) -> None:
        path = self.path / RUN_NAME
        if path.exists():
            found = differences(read_run_as(type(self._run), self.path), self._run)
            # How processes share the work is not part of what a run computes.
            changed = [line for line in found if not line.startswith("parallel.")]
            if changed and not allow_change:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({'; '.join(changed)}): give "
                    "the same ones, choose another folder (--out), or change the run from here on "
                    "(--change)"
                )
            for line in found:
                logger.warning("changed from here on: %s", line)
        write_file(path, json.dumps(self._run.to_dict(), indent=2).encode() + b"\n")

    # ----------------------------------------------------------------------------------------------
    # Checkpoints

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a step to go on from."""
        return bool(steps(self.path / CHECKPOINTS_NAME))

    def restore_last(self, take_over: Callable[[SavedStep], None]) -> SavedStep | None:
        """Hand the last checkpoint to `take_over` and return it; None if there is none.

        One that is damaged gives way to the one before, with a warning; it is set aside once a
        whole one is found. Raises ValueError where all are damaged.
        """
        root = self.path / CHECKPOINTS_NAME
        damaged: list[int] = []
        reason = ""
        for step in reversed(steps(root)):
            saved, reason = _try_to_restore(root, step, take_over)
            if not self._group.any(saved is None):
                self._set_aside(damaged, step)
                return saved
            damaged.append(step)
            logger.warning("the checkpoint of step %d cannot be used: %s", step, reason)
        if damaged:
            raise ValueError(
                f"no checkpoint in {root} can be used ({reason}); move that folder away to begin "
                "anew, or choose another --out"
            )
        return None

    def _set_aside(self, damaged: Sequence[int], whole: int) -> None:
        if self._group.is_main:
            for step in damaged:
                place = run_checkpoint.set_aside(self.path / CHECKPOINTS_NAME, step)
                logger.warning("it is kept as %s; the run goes on from step %d", place, whole)
        self._group.wait()

    def require_room(self, step: int, weight_bytes: int, moment_bytes: int) -> None:
        """Raise ValueError where the disk is too small for what is saved after `step`."""
        log, last = self._run.log, self._run.train.steps
        if not self._group.is_main:
            return
        saves = math.ceil((last - step) / log.checkpoint_every)
        # A new one is written before an old one goes.
        room = log.keep_checkpoints + 1 - len(steps(self.path / CHECKPOINTS_NAME))
        needed = min(saves, max(1, room)) * (weight_bytes + moment_bytes)
        if log.milestone_every:
            milestones = last // log.milestone_every - step // log.milestone_every
            needed += milestones * weight_bytes // 2  # in bf16
        advice = "lower log.keep_checkpoints, or save fewer milestones with log.milestone_every"
        run_checkpoint.require_room(self.path, needed, advice)

    def cut_metrics(self, num_bytes: int) -> None:
        """Drop the rows behind the first `num_bytes`: their steps are taken again."""
        if self._group.is_main:
            self.metrics.cut(num_bytes)

    def record(self, row: MetricsRow) -> None:
        """Append a row to the metrics."""
        if self._group.is_main:
            self.metrics.append(row)

    def save(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint; `state` is everything but tensors, settings and metrics."""
        run_checkpoint.save(
            self.path / CHECKPOINTS_NAME,
            step,
            model=weights,
            config=self._model_config,
            optimizer=moments,
            state=self._whole_state(state),
            keep=self._run.log.keep_checkpoints,
            beside=self._beside,
        )

    def save_sharded(
        self,
        step: int,
        *,
        tensors: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None,
        state: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint by all processes; `weights`, whole, are those of the model beside it,
        which `parallel.whole_models` asks for."""
        run_checkpoint.save_sharded(
            self.path / CHECKPOINTS_NAME,
            step,
            tensors=tensors,
            model=weights,
            config=self._model_config,
            state=lambda: self._whole_state(state),
            keep=self._run.log.keep_checkpoints,
            group=self._group,
            beside=self._beside,
        )

    def _whole_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {"run": self._run.to_dict(), **state, "metrics_bytes": self.metrics.sync()}

    def save_milestone(self, step: int, tokens: int, weights: Mapping[str, Tensor]) -> None:
        """Write weights that stay for good, in bf16."""
        if self._group.is_main:
            run_checkpoint.save_milestone(
                self.path / MILESTONES_NAME,
                step,
                tokens,
                model=weights,
                config=self._model_config,
                beside=self._beside,
            )
        self._group.wait()

    @property
    def _model_config(self) -> ModelConfig:
        return self._run.model


def _try_to_restore(
    root: Path, step: int, take_over: Callable[[SavedStep], None]
) -> tuple[SavedStep | None, str]:
    """A saved step that was taken over, or None and why it cannot be."""
    try:
        saved = run_checkpoint.load(root, step)
        missing = {"tokens", "data", "guard", "metrics_bytes"} - saved.state.keys()
        if missing:
            return None, f"its state lacks {min(missing)!r}"
        take_over(saved)
        return saved, ""
    except (ValueError, OSError) as error:
        return None, str(error)
    except (KeyError, TypeError, RuntimeError) as error:  # of another form than ours
        return None, f"{type(error).__name__}: {error}"
