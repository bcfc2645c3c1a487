"""What rollouts are asked, in which order, and how their answers are graded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sounding.agent.loop import Tools
from sounding.files import read_json_lines
from sounding.posttrain.conversations import ConversationRow, conversation_of, prompt_of
from sounding.sandbox.run import Limits, require_isolation
from sounding.sandbox.trial import judge
from sounding.tasks.chat_task import ChatTask, read_chat_problems
from sounding.tasks.task import Grade
from sounding.text.encoding import Message
from sounding.text.tokenizer import Tokenizer
from sounding.textbook.running import sandboxed


@runtime_checkable
class GradedChats(Protocol):
    """Conversations to answer, with their grader; safe to call from several threads."""

    def __len__(self) -> int:
        """How many there are."""

    def row(self, index: int) -> Mapping[str, Any]:
        """A conversation up to the answer: `messages`, perhaps `tools` and `thinking`."""

    def open(self, index: int) -> Tools | None:
        """The tools of one attempt; None for a conversation without."""

    def grade_conversation(self, index: int, messages: Sequence[Message]) -> Grade:
        """Grade what was said behind the first messages."""


@dataclass(frozen=True)
class ExactAnswers:
    """Tasks with one right answer each, compared as text without the white space around it."""

    rows: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]

    def open(self, index: int) -> Tools | None:
        return None

    def grade_conversation(self, index: int, messages: Sequence[Message]) -> Grade:
        said = messages[-1].get("content") or "" if messages else ""
        if said.strip() == str(self.rows[index]["answer"]).strip():
            return Grade(1.0, "right")
        return Grade(0.0, "another answer")


def read_tasks(path: Path, seconds: float) -> GradedChats:
    """Tasks from JSON lines: those of `data textbook tasks`, or rows of `messages` and `answer`.

    Programs run in the sandbox for at most `seconds`. Raises ValueError naming file, line and rule,
    and NoIsolation where there is no sandbox.
    """
    rows: list[Mapping[str, Any]] = []
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        if not isinstance(row, Mapping) or not isinstance(row.get("answer"), str):
            raise ValueError(f'{where} is no task: it needs messages, and the "answer" as a string')
        rows.append(row)
    if not rows:
        raise ValueError(f'{path} has no tasks; give rows like {{"messages": [...], "answer": ""}}')
    if not any("check" in row for row in rows):
        return ExactAnswers(rows)
    require_isolation()
    limits = Limits(wall_seconds=seconds, cpu_seconds=max(1, math.ceil(seconds)))
    return ChatTask(
        read_chat_problems(path),
        lambda trial: judge(trial, limits, isolate=True),
        sandboxed(seconds, isolate=True),
    )


def task_prompts(
    task: GradedChats, tokenizer: Tokenizer, *, effort_scheme: str, where: str = "task"
) -> tuple[list[ConversationRow], list[list[int]]]:
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
