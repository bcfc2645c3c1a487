"""Training conversations: solved tasks, explanations of lines, and declined small talk.

A row has `messages` (the last one is an answer), `tools` and `thinking`, in the form that the
prompt encoder takes; `id`, `kind` and `difficulty` are metadata. Every task's answer scored 1.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sounding.tasks.chat_task import KINDS, ChatProblem
from sounding.tasks.code import Judge
from sounding.tasks.fences import fenced
from sounding.textbook import asking
from sounding.textbook.asking import asked
from sounding.textbook.chat_problems import ChatProblems, printing_programs
from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Exercise
from sounding.textbook.explaining import explained
from sounding.textbook.running import Run
from sounding.textbook.small_talk import small_talk
from sounding.textbook.tool_repairs import Solved
from sounding.textbook.tracing import traces

ALL_KINDS = (*KINDS, "explain", "talk")
TALK_SHARE = 0.02
Row = dict[str, Any]
NumTokens = Callable[[Row], int]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Settings: which kinds of conversations to make, and how many."""

    kinds: tuple[str, ...] = ALL_KINDS
    each: int = 1
    """Most conversations of each kind per exercise."""
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in ALL_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kind {unknown!r} must be one of {', '.join(ALL_KINDS)}")
        if self.each < 1:
            raise ValueError(f"each = {self.each} must be at least 1")


@dataclass(frozen=True)
class Made:
    """The tasks and conversations made from one exercise."""

    problems: list[ChatProblem]
    rows: list[Row]
    """Solved tasks, perhaps an explanation of a line, perhaps declined small talk."""


def conversations(
    exercises: Sequence[Exercise], wanted: Wanted, judge: Judge, run: Run, workers: int
) -> Iterator[Made]:
    """Yield tasks and conversations per exercise, in order, with declined small talk between."""
    maker = ChatProblems(judge, run, wanted.seed)
    kinds = [kind for kind in KINDS if kind in wanted.kinds]

    def make(exercise: Exercise) -> Made:
        found = list(maker.solved(exercise, kinds, wanted.each))
        rows = [_row(solved) for solved in found]
        if "explain" in wanted.kinds and exercise.shape == "function":
            rows += _explained(exercise, run, wanted)
        return Made([solved.problem for solved in found], rows)

    talked = 0.0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for exercise, made in zip(exercises, pool.map(make, exercises), strict=True):
                talked += TALK_SHARE * len(made.rows) * ("talk" in wanted.kinds)
                if talked >= 1:
                    talked -= 1
                    name = f"{exercise.name}/talk/0"
                    said, answer = small_talk(Draw(f"{wanted.seed}/{name}"))
                    made.rows.append(_plain_row(name, "talk", 1, said, answer))
                yield made
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _row(solved: Solved) -> Row:
    problem = solved.problem
    row: Row = {
        "id": problem.task_id,
        "kind": problem.kind,
        "difficulty": problem.difficulty,
        "messages": [*problem.messages, *solved.reply],
        "thinking": problem.thinking,
    }
    return row | ({"tools": list(problem.tools)} if problem.tools else {})


def _plain_row(name: str, kind: str, difficulty: int, question: str, answer: str) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "id": name,
        "kind": kind,
        "difficulty": difficulty,
        "messages": messages,
        "thinking": False,
    }


def _explained(exercise: Exercise, run: Run, wanted: Wanted) -> list[Row]:
    draw = Draw(f"{wanted.seed}/{exercise.name}/explain")
    for traced in traces(printing_programs(exercise, draw), run):
        found = explained(traced, draw) if traced else None
        if traced is None or found is None or "```" in traced.program:
            continue
        question = asked(
            asking.EXPLAIN,
            draw,
            number=str(found.number),
            line=found.line,
            code=fenced(traced.program),
        )
        name = f"{exercise.name}/explain/0"
        return [_plain_row(name, "explain", exercise.difficulty, question, found.text)]
    return []
