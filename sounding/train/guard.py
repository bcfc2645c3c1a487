"""When a step must not be taken: its loss or gradient is not a number, or far from recent ones."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from sounding.train.run_config import GuardConfig


class Guard:
    """Remembers recent gradient norms and judges the next one against them.

    The norm, not the loss, is watched: it jumps a step before the loss does, and a hard batch
    raises it far less than a diverging network. A norm up to `harmless` never counts as a spike:
    late in training, or when a batch is known by heart, norms are tiny and vary by large factors.
    """

    def __init__(self, config: GuardConfig, harmless: float) -> None:
        self.config = config
        self.harmless = harmless
        self.skipped_in_a_row = 0
        self.rollbacks = 0
        self._norms: list[float] = []

    def judge(self, loss: float, norm: float) -> str | None:
        """Why a step with this loss and gradient norm must be skipped, or None."""
        reason = self._reason(loss, norm)
        if reason is None:
            self._norms = [*self._norms, norm][-self.config.history_steps :]
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
        return reason

    def _reason(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(norm):
            return f"gradient norm is {norm}"
        if 2 * len(self._norms) < self.config.history_steps:
            return None
        usual = statistics.median(self._norms)
        if norm > max(self.harmless, self.config.spike_factor * usual):
            return f"gradient norm {norm:.3g} is {norm / usual:.1f} times the recent median"
        return None

    @property
    def calm(self) -> bool:
        """Whether the last step was taken, so that its result is worth saving."""
        return self.skipped_in_a_row == 0

    @property
    def gives_up(self) -> bool:
        """Whether so many steps were skipped in a row that training should go back."""
        return self.skipped_in_a_row >= self.config.patience

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "norms": self._norms,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollbacks": self.rollbacks,
        }

    def restore(self, raw: Mapping[str, Any]) -> None:
        """Take over what `to_dict` gave."""
        self._norms = [float(norm) for norm in raw["norms"]]
        self.skipped_in_a_row = int(raw["skipped_in_a_row"])
        self.rollbacks = int(raw["rollbacks"])
