"""The objective of pre-training and supervised fine-tuning; they differ in their targets only."""

import math
from collections.abc import Mapping

from torch import Tensor

from sounding.data.token_batch import TokenBatch
from sounding.model.transformer import Transformer
from sounding.parallel.context import least_tokens
from sounding.parallel.group import ALONE, Group
from sounding.train.expert_load import load_entropy, steer
from sounding.train.losses import count_targets, next_token_loss, sum_losses, weighted_loss
from sounding.train.metrics import MetricsRow
from sounding.train.objective import StepPlan
from sounding.train.optim import decay_progress, learning_rate
from sounding.train.phases import is_indexer, phase_of
from sounding.train.run_config import RunConfig
from sounding.train.source import HeldOut


class Supervised:
    """Next tokens, tokens after next, even expert load, and indexers that find what is read."""

    def __init__(
        self, run: RunConfig, held_out: HeldOut | None = None, group: Group = ALONE
    ) -> None:
        """`held_out` is what `validate` reads; without it nothing is validated.

        Raises ValueError for a network with a DSpark drafter, which belongs to these weights, and
        for batches too small to be cut over the processes of `group`.
        """
        if run.model.dspark is not None:
            raise ValueError(
                "training would change the network under its DSpark drafter: take the dspark_* "
                "keys out of the model's config, and train a drafter for the new network afterwards"
            )
        self._run, self._held_out, self._group = run, held_out, group
        _require_tokens(run, group)

    def plan(self, step: int) -> StepPlan:
        phase = phase_of(step, self._run.sparsity)
        if phase == "indexer":
            return StepPlan(phase, self._run.sparsity.indexer_lr, "index_loss", is_indexer)
        return StepPlan(phase, learning_rate(step, self._run.train))

    def counts(self, batch: TokenBatch) -> dict[str, int]:
        return count_targets(batch, self._run.model.num_mtp_layers)

    def losses(self, model: Transformer, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        return sum_losses(
            model,
            batch.padded(self._run.data.batch_tokens),
            phase_of(step, self._run.sparsity),
            mtp=self._mtp_weight(step) > 0,
            middles=self._weighs_middles,
            group=self._group,
        )

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int) -> Tensor:
        return weighted_loss(
            sums,
            counts,
            mtp_weight=self._mtp_weight(step),
            balance_weight=self._run.objective.balance_weight,
            middle_weight=self._run.objective.middle_weight,
        )

    def metrics(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, int], step: int
    ) -> MetricsRow:
        phase = phase_of(step, self._run.sparsity)
        row: MetricsRow = {}
        if phase != "indexer":
            row["loss"] = float(sums["next_token"]) / max(1, counts["targets"])
            if self._mtp_weight(step) > 0:
                row["mtp_loss"] = float(sums["mtp"]) / max(1, counts["mtp_targets"])
            if self._weighs_middles and counts["middles"]:
                row["middle_loss"] = float(sums["middles"]) / counts["middles"]
            row["balance_loss"] = float(sums["balance"]) / counts["tokens"]
            row["load_entropy"] = load_entropy(sums["loads"])
        if phase != "dense":
            row["index_loss"] = float(sums["index"]) / counts["tokens"]
        return row

    def after_step(self, model: Transformer, sums: Mapping[str, Tensor], step: int) -> None:
        if phase_of(step, self._run.sparsity) != "indexer":
            steer(model, sums["loads"], self._run.objective.bias_speed)

    def validate(self, model: Transformer, step: int) -> MetricsRow | None:
        """Bits per byte of the held-out text, read as the network would be used after `step`."""
        if self._held_out is None:
            return None
        dense = phase_of(step, self._run.sparsity) != "sparse"
        device = next(model.parameters()).device
        total, targets = 0.0, 0
        for batch in self._held_out.batches:
            padded = batch.padded(self._run.data.batch_tokens).to(device)
            own = next_token_loss(model, padded, dense=dense, group=self._group)
            total += float(self._group.sum_along("context", own))
            targets += count_targets(batch, 0)["targets"]
        return {
            "validation_loss": total / max(1, targets),
            "bits_per_byte": total / math.log(2) / self._held_out.num_bytes,
        }

    @property
    def _weighs_middles(self) -> bool:
        return self._run.objective.middle_weight != 1

    def _mtp_weight(self, step: int) -> float:
        objective = self._run.objective
        decaying = decay_progress(step, self._run.train) > 0
        return objective.mtp_weight_in_decay if decaying else objective.mtp_weight


def _require_tokens(run: RunConfig, group: Group) -> None:
    size, least = group.size("context"), least_tokens(run.model)
    if size > 1 and run.data.batch_tokens // size < least:
        raise ValueError(
            f"parallel.context = {size} leaves each process {run.data.batch_tokens // size} of "
            f"data.batch_tokens = {run.data.batch_tokens}, and the next one may need {least} of "
            f"them: raise data.batch_tokens to {size * least}, or lower parallel.context"
        )
