"""Options of evaluations: how answers are made, how programs are run, and where results go."""

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
    """Options that the evaluations share. Each reads those that apply to it."""

    seed: int = 0
    limit: int | None = None
    """Number of items to draw at random; None for all."""
    out: Path | None = None
    """JSONL file of results, from which the same evaluation resumes."""

    max_tokens: int = 64
    """Per answer."""
    context_tokens: int = 1024
    """Prompt and answer, or the window that is scored."""
    temperature: float = 0.0
    top_p: float = 1.0
    width: int = 16
    """Sequences at a time."""
    heal: bool = True
    """Whether the tokens of a begun word are chosen again."""
    copying: bool = True
    """Whether other lines of the file compete with the network."""
    candidates: int = 8
    """Lines sampled beside the likeliest where one line is missing; 0 for that one alone."""
    min_confidence: float = 0.0
    """Answers that are less sure are withheld."""
    syntax: bool | None = None
    """Whether an answer that breaks Python is tried again; None where that does not apply."""

    samples: int = 1
    """Per problem."""
    ks: Sequence[int] = (1,)
    """Of pass@k."""
    timeout: float = 10.0
    """Seconds per program."""
    workers: int = 2
    """Programs at a time."""
    unsafe: bool = False
    """Run generated code with limits but without isolation."""

    def __post_init__(self) -> None:
        """Raises ValueError for samples that cannot give what is asked."""
        if max(self.ks) > self.samples:
            raise ValueError(
                f"pass@{max(self.ks)} needs at least as many --samples; there are {self.samples}"
            )
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are all the same; set --temperature"
            )

    def answers(self) -> dict[str, Any]:
        """The options that decide answers, as they are kept with results."""
        values = {name: getattr(self, name) for name in _ANSWERS}
        return {name: value for name, value in values.items() if value is not None}
