"""A task: examples to answer, and a grade for each answer. Evaluation and training share it."""

from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Example(Protocol):
    """One example of a task."""

    @property
    def task_id(self) -> str:
        """A permanent name of the example, for results."""

    @property
    def prompt(self) -> str:
        """The text the answer follows."""

    @property
    def suffix(self) -> str:
        """The text that follows the answer; "" where nothing does."""


class Grade(NamedTuple):
    """The score of an answer, and the reason."""

    score: float
    """From 0 to 1."""
    reason: str
    """One line, for a table of failures."""


@runtime_checkable
class Task(Protocol):
    """Examples with their grader."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Return example `index`."""

    def grade(self, index: int, answer: str) -> Grade:
        """Grade an answer to example `index`; safe to call from several threads."""
