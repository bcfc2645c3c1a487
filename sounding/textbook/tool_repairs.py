"""Conversations that repair a program with tools: read, run the tests, edit, run them again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sounding.tasks.chat_task import ChatProblem
from sounding.tasks.checks import FilesCheck, grade_files
from sounding.tasks.code import Judge
from sounding.tasks.workspace import TOOLS, Workspace
from sounding.textbook import asking
from sounding.textbook.asked_exercise import AskedExercise, Message
from sounding.textbook.asking import asked
from sounding.textbook.drawing import Draw
from sounding.textbook.failed_mutants import Fault
from sounding.textbook.mutations import Mutant
from sounding.textbook.running import Run

SOLUTION, TESTS = "solution.py", "test_solution.py"


@dataclass(frozen=True)
class Solved:
    """A task and a conversation that solves it."""

    problem: ChatProblem
    reply: tuple[Message, ...]
    """Messages that follow those of the task; the last one is the answer."""


def repaired_by_tools(
    book: AskedExercise,
    draw: Draw,
    fault: Fault,
    number: int,
    others: Sequence[Fault],
    run: Run,
    judge: Judge,
) -> Solved | None:
    """A repair with real tool results; about one in four makes a wrong edit first.

    None if the shown tests do not catch the fault or its line is not unique.
    """
    tests = book.test_file()
    if not tests:
        return None
    told = "\n".join(f"# {line}" for line in book.wrapped())
    check = FilesCheck(
        files={SOLUTION: f"{told}\n{fault.mutant.text}", TESTS: tests},
        editable=SOLUTION,
        code=book.code,
    )
    right = f"{told}\n{book.code.solution}"
    question = asked(asking.TOOLS, draw, file=SOLUTION, tests=TESTS)
    problem = book.problem("tools", number, question, right, check, tools=TOOLS)
    session = _Session(Workspace(check, run), draw)
    if "tests failed" not in session.look():
        return None
    same_line = [f for f in others if f.mutant.line == fault.mutant.line and f != fault]
    if same_line and draw.chance(0.25):
        wrong = draw.one(same_line).mutant.wrong
        if session.edit(fault.mutant, wrong, loss=False) and "passed" not in session.test():
            session.read(SOLUTION)
            if not session.edit_line(wrong, fault.mutant.right):
                return None
        else:
            return None
    elif not session.edit(fault.mutant, fault.mutant.right):
        return None
    if "passed" not in session.test():
        return None
    wrong, better = fault.mutant.wrong, fault.mutant.right
    session.say(asked(asking.MENDED, draw, wrong=wrong, right=better))
    if grade_files(check, session.workspace.files, judge).score < 1:
        return None
    return Solved(problem, tuple(session.messages))


class _Session:
    """Calls tools and records the conversation."""

    def __init__(self, workspace: Workspace, draw: Draw) -> None:
        self.workspace, self._draw = workspace, draw
        self.messages: list[Message] = []
        self.results: list[str] = []

    def look(self) -> str:
        """Read the program and run the tests, in random order; returns the tests' output."""
        read_first = self._draw.chance(0.5)
        if read_first:
            self.read(SOLUTION)
        said = self.test()
        if not read_first:
            self.read(SOLUTION)
        return said

    def read(self, path: str) -> str:
        return self._call("read_file", {"path": path})

    def test(self) -> str:
        return self._call("run_tests", {})

    def edit(self, mutant: Mutant, new: str, *, loss: bool = True) -> bool:
        """Replace the faulty line; True if it was replaced."""
        return self.edit_line(mutant.wrong, new, loss=loss)

    def edit_line(self, old: str, new: str, *, loss: bool = True) -> bool:
        """Replace a line; False if it is not unique."""
        said = self._call("edit", {"path": SOLUTION, "old": old, "new": new}, loss=loss)
        return said.startswith("edited")

    def say(self, text: str) -> None:
        """Record the answer that ends the conversation."""
        self.messages.append({"role": "assistant", "content": text})

    def _call(self, name: str, arguments: Mapping[str, str], *, loss: bool = True) -> str:
        text = json.dumps(arguments, ensure_ascii=False)
        call_id = f"call_{len(self.results) + 1}"
        function = {"name": name, "arguments": text}
        call = {"id": call_id, "type": "function", "function": function}
        message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        if not loss:
            message["loss"] = False  # a wrong edit is context, not a training target
        result = self.workspace.call(name, text)
        self.results.append(result)
        self.messages += [
            message,
            {"role": "tool", "tool_call_id": call_id, "content": result},
        ]
        return result
