"""A task: examples to answer, and a grade for each answer. Evaluation and training share it."""

from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Example(Protocol):
    """What a model is shown."""

    @property
    def task_id(self) -> str:
        """Names the example for ever: results refer to it."""

    @property
    def prompt(self) -> str:
        """The text the answer follows."""

    @property
    def suffix(self) -> str:
        """The text that follows the answer; "" where nothing does."""


class Grade(NamedTuple):
    """How good an answer is, and why."""

    score: float
    """From 0 to 1."""
    reason: str
    """One line, for a table of failures."""


@runtime_checkable
class Task(Protocol):
    """Examples with their grader."""

    def __len__(self) -> int:
        """How many examples there are."""

    def __getitem__(self, index: int) -> Example:
        """One of them."""

    def grade(self, index: int, answer: str) -> Grade:
        """Judge an answer to it; safe to call from several threads."""
