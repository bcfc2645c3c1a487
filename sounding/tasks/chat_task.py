"""Tasks asked in a conversation: their rows in a file, and their grades.

A row is a conversation to answer, `messages` with perhaps `tools` and `thinking`, and says by
`check` how answers are graded. Evaluation and training read the same files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sounding.tasks import checks
from sounding.tasks.checks import Check, CodeCheck, FilesCheck, MutationCheck, TextCheck
from sounding.tasks.code import Judge, read_rows
from sounding.tasks.task import Grade
from sounding.tasks.workspace import RunProgram, Workspace, replayed

Message = Mapping[str, Any]
KINDS = ("write", "fill", "trace", "repair", "tools", "test")
_CHECKS: dict[str, type[Any]] = {
    "code": CodeCheck,
    "text": TextCheck,
    "tests": MutationCheck,
    "files": FilesCheck,
}


@dataclass(frozen=True, kw_only=True)
class ChatProblem:
    """One thing to do, asked in a conversation."""

    task_id: str
    kind: str
    difficulty: int
    """1 to 5."""
    messages: tuple[Message, ...]
    check: Check
    answer: str
    """A right answer, as text; the program in the editable file where there are files."""
    tools: tuple[Message, ...] = ()
    thinking: bool = False

    def row(self) -> dict[str, Any]:
        """The problem as a row of a file."""
        names = {kind: name for name, kind in _CHECKS.items()}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "check"}
        values |= {"messages": list(self.messages), "tools": list(self.tools)}
        if not self.tools:
            del values["tools"]
        return {**values, "check": {"type": names[type(self.check)], **asdict(self.check)}}


class ChatTask:
    """Problems with their grader; safe to call from several threads."""

    def __init__(
        self, problems: Sequence[ChatProblem], judge: Judge, run: RunProgram | None = None
    ) -> None:
        """`judge` tries answers, `run` runs the tests that a model asks for by a tool."""
        self.problems, self._judge, self._run = problems, judge, run
        self._rows = [problem.row() for problem in problems]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> ChatProblem:
        return self.problems[index]

    def row(self, index: int) -> Mapping[str, Any]:
        """A problem as a conversation to be answered: `messages`, `tools` and `thinking`."""
        return self._rows[index]

    def grade(self, index: int, answer: str) -> Grade:
        """Grade the content of an answer to a problem without files."""
        return checks.grade_answer(self.problems[index].check, answer, self._judge)

    def grade_conversation(self, index: int, messages: Sequence[Message]) -> Grade:
        """Grade what follows the problem's messages: the answer, or calls of tools and an answer.

        Edits are made again on a fresh copy of the files.
        """
        check = self.problems[index].check
        if isinstance(check, FilesCheck):
            return checks.grade_files(check, replayed(check, messages), self._judge)
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant" or last.get("tool_calls"):
            return Grade(0.0, "no answer")
        return self.grade(index, last.get("content") or "")

    def open(self, index: int, said: Sequence[Message] = ()) -> Workspace | None:
        """The files of a problem as the model's tools see them, after the edits of what was said.

        None where the problem has no tools.
        """
        check = self.problems[index].check
        if not isinstance(check, FilesCheck):
            return None
        workspace = Workspace(check, self._run)
        workspace.files = replayed(check, said)
        return workspace


# --------------------------------------------------------------------------------------------------
# Files


def read_chat_problems(path: Path) -> list[ChatProblem]:
    """Read problems. Raises ValueError naming file, line and key for rows of another form."""
    found: dict[str, ChatProblem] = {}
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        problem = _problem(row, where)
        if problem.task_id in found:
            raise ValueError(
                f"{where} has the task_id {problem.task_id!r} again; results would mix"
            )
        found[problem.task_id] = problem
    if not found:
        raise ValueError(f"{path} has no tasks; `data textbook tasks` makes some")
    return list(found.values())


def _problem(row: Mapping[str, Any], where: str) -> ChatProblem:
    kinds = {
        "task_id": str, "kind": str, "difficulty": int, "messages": list, "answer": str,
        "check": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(row.get(key), kind):
            raise ValueError(
                f"{where} has {key} = {row.get(key)!r:.40}, which must be of type {kind.__name__}; "
                "`data textbook tasks` makes such rows"
            )
    thinking = row.get("thinking", False)
    if not isinstance(thinking, bool):
        raise ValueError(f"{where} has thinking = {thinking!r:.40}; it is true or false")
    try:
        check = _check(row["check"])
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} has a check that cannot be read: {error}") from None
    return ChatProblem(
        task_id=row["task_id"],
        kind=row["kind"],
        difficulty=row["difficulty"],
        messages=tuple(row["messages"]),
        tools=tuple(row.get("tools") or ()),
        thinking=thinking,
        answer=row["answer"],
        check=check,
    )


def _check(values: Mapping[str, Any]) -> Check:
    name = values.get("type")
    if name not in _CHECKS:
        raise ValueError(f"its type {name!r} must be one of {', '.join(_CHECKS)}")
    kind = _CHECKS[name]
    given = {key: value for key, value in values.items() if key != "type"}
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
    missing = [f.name for f in known.values() if f.default is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    check: Check = kind(**{key: _value(key, value) for key, value in given.items()})
    return check


def _value(key: str, value: Any) -> Any:
    """A value of a check, as its type wants it."""
    if key == "code" and isinstance(value, dict):
        return _check({"type": "code", **value})
    texts = value if isinstance(value, list) else value.values() if key == "files" else [value]
    wanted = int if key == "needed" else str
    if not all(type(one) is wanted for one in texts):
        raise ValueError(f"{key} = {value!r:.60} must be of type {wanted.__name__}")
    return tuple(value) if isinstance(value, list) else value
