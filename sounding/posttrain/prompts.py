"""What rollouts are asked, in which order, and how their answers are graded as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sounding.files import read_json_lines
from sounding.posttrain.conversations import Conversation, conversation_of, prompt_of
from sounding.posttrain.rollouts import Grader
from sounding.tasks.task import Grade
from sounding.text import Malformed, parse
from sounding.text.tokenizer import Tokenizer


@runtime_checkable
class ChatTask(Protocol):
    """Examples that are conversations to answer, with their grader.

    `row(index)` has `messages`, and may have `tools` and `thinking`, as a conversation to train on.
    """

    def __len__(self) -> int:
        """Number of examples."""

    def row(self, index: int) -> Mapping[str, Any]:
        """The conversation up to the answer."""

    def grade(self, index: int, answer: str) -> Grade:
        """Grade the content of an answer; safe to call from several threads."""


@dataclass(frozen=True)
class ExactAnswers:
    """Tasks with one right answer each, compared as text without the white space around it."""

    rows: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]

    def grade(self, index: int, answer: str) -> Grade:
        if answer.strip() == str(self.rows[index]["answer"]).strip():
            return Grade(1.0, "right")
        return Grade(0.0, "another answer")


def read_tasks(path: Path) -> ExactAnswers:
    """Tasks from JSON lines of `messages`, `answer`, and what conversations may have.

    Raises ValueError naming file, line and rule.
    """
    rows: list[Mapping[str, Any]] = []
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        if not isinstance(row, Mapping) or not isinstance(row.get("answer"), str):
            raise ValueError(f'{where} is no task: it needs messages, and the "answer" as a string')
        rows.append(row)
    if not rows:
        raise ValueError(f'{path} has no tasks; give rows like {{"messages": [...], "answer": ""}}')
    return ExactAnswers(rows)


def task_prompts(
    task: ChatTask, tokenizer: Tokenizer, *, effort_scheme: str, where: str = "task"
) -> tuple[list[Conversation], list[list[int]]]:
    """The conversations of a task and the tokens that their answers follow."""
    conversations = [
        conversation_of(task.row(index), f"{where} {index}", effort_scheme=effort_scheme)
        for index in range(len(task))
    ]
    return conversations, [prompt_of(one, tokenizer) for one in conversations]


def drawn(count: int, number: int, wanted: int, seed: int) -> list[int]:
    """Which of `count` prompts round `number` asks: all come up once, then again in another order.

    A function of its arguments alone, so that it needs no state to resume.
    """
    found = []
    for place in range(number * wanted, (number + 1) * wanted):
        epoch, at = divmod(place, count)
        found.append(int(np.random.default_rng((seed, epoch)).permutation(count)[at]))
    return found


def answer_text(
    tokens: Sequence[int], tokenizer: Tokenizer, mode: str, eos: int
) -> tuple[str | None, str]:
    """The content of an answer as text; None, and why, where it has none that could be graded."""
    if not tokens or tokens[-1] != eos:
        return None, "not finished"
    if max(tokens) >= tokenizer.num_tokens:
        return None, "a token without text"
    try:
        return parse(tokenizer.decode(tokens), mode).content, ""
    except Malformed as error:
        return None, f"malformed: {error}"


def grader(
    task: ChatTask,
    examples: Sequence[int],
    conversations: Sequence[Conversation],
    tokenizer: Tokenizer,
    eos: int,
) -> Grader:
    """Grades answer i to example examples[i]; what is not an answer scores 0."""

    def grade(slot: int, tokens: Sequence[int]) -> Grade:
        index = examples[slot]
        text, why = answer_text(tokens, tokenizer, conversations[index].mode, eos)
        return Grade(0.0, why) if text is None else task.grade(index, text)

    return grade
