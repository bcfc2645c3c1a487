"""Options of evaluations: generation of answers, execution of programs, files of results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ANSWERS = (
    *("max_tokens", "context_tokens", "temperature", "top_p"),
    *("width", "heal", "copying", "candidates", "min_confidence", "syntax"),
)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options shared by the evaluations. Each reads those that apply to it."""

    seed: int = 0
    limit: int | None = None
    """Number of items to draw at random; None for all."""
    out: Path | None = None
    """JSONL file of results, from which the same evaluation can resume."""

    max_tokens: int = 64
    """Token limit per answer."""
    context_tokens: int = 1024
    """Tokens of prompt and answer together, or of a scoring window."""
    temperature: float = 0.0
    top_p: float = 1.0
    width: int = 16
    """Number of concurrent sequences."""
    heal: bool = True
    """Choose the tokens of an unfinished word again (token healing)."""
    copying: bool = True
    """Let copies of other lines of the file compete with the network's lines."""
    candidates: int = 8
    """Lines sampled in addition to the likeliest one if one line is missing; 0 samples none."""
    min_confidence: float = 0.0
    """Withhold answers with a lower confidence."""
    syntax: bool | None = None
    """Retry an answer that breaks Python; None if that does not apply."""

    samples: int = 1
    """Samples per problem."""
    ks: Sequence[int] = (1,)
    """Values of k in pass@k."""
    timeout: float = 10.0
    """Time limit per program, in seconds."""
    workers: int = 2
    """Number of concurrent programs."""
    unsafe: bool = False
    """Run generated code with limits but without isolation."""

    def __post_init__(self) -> None:
        """Raises ValueError if the samples do not suffice for the metrics."""
        if max(self.ks) > self.samples:
            raise ValueError(
                f"pass@{max(self.ks)} needs at least as many --samples; there are {self.samples}"
            )
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are all the same; set --temperature"
            )

    def answers(self) -> dict[str, Any]:
        """The options that determine answers, as stored with the results."""
        values = {name: getattr(self, name) for name in _ANSWERS}
        return {name: value for name, value in values.items() if value is not None}
