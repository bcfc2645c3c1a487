"""Skip steps whose loss or gradient norm is not a number or far above recent ones."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from sounding.train.run_config import GuardConfig


class Guard:
    """Compares the loss and gradient norm of each step with those of recent steps.

    A norm is compared with the largest recent one, not the median: when a network discovers a
    pattern its norms grow tenfold within a few steps, which is no spike. A norm up to `harmless` is
    never a spike, since late in training norms are tiny and vary by large factors.
    """

    def __init__(self, config: GuardConfig, harmless: float) -> None:
        self.config = config
        self.harmless = harmless
        self.skipped_in_a_row = 0
        self.rollbacks = 0
        self._kind = ""
        self._losses: list[float] = []
        self._norms: list[float] = []

    def judge(self, loss: float, norm: float, kind: str) -> str | None:
        """The reason to skip a step with this loss and gradient norm, or None to take it.

        Steps of another `kind` (a phase) have other losses: the history starts over.
        """
        if kind != self._kind:
            self._kind, self._losses, self._norms = kind, [], []
        reason = self._reason(loss, norm)
        if reason is None:
            kept = self.config.history_steps
            self._losses = [*self._losses, loss][-kept:]
            self._norms = [*self._norms, norm][-kept:]
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
        usual, largest = statistics.median(self._losses), max(self._norms)
        if loss > usual + self.config.loss_margin:
            return f"loss {loss:.3f} is {loss - usual:.2f} above the recent median"
        if norm > max(self.harmless, self.config.spike_factor * largest):
            return f"gradient norm {norm:.3g} is {norm / largest:.1f} times the largest recent one"
        return None

    @property
    def calm(self) -> bool:
        """Whether the last step was taken; otherwise its state is not worth saving."""
        return self.skipped_in_a_row == 0

    @property
    def gives_up(self) -> bool:
        """Whether `patience` steps in a row were skipped, so that training should roll back."""
        return self.skipped_in_a_row >= self.config.patience

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": self._kind,
            "losses": self._losses,
            "norms": self._norms,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollbacks": self.rollbacks,
        }

    def restore(self, raw: Mapping[str, Any]) -> None:
        """Restore the state that `to_dict` returned."""
        self._kind = str(raw["kind"])
        self._losses = [float(loss) for loss in raw["losses"]]
        self._norms = [float(norm) for norm in raw["norms"]]
        self.skipped_in_a_row = int(raw["skipped_in_a_row"])
        self.rollbacks = int(raw["rollbacks"])
