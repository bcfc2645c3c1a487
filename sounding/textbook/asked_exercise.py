"""An exercise as tasks use it: the question, the check, and the tests that are shown."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from sounding.tasks.chat_task import ChatProblem
from sounding.tasks.checks import Check, CodeCheck, distinct_values
from sounding.tasks.fences import fenced
from sounding.textbook.drawing import Draw
from sounding.textbook.examples import assertions, double_quoted, short_examples
from sounding.textbook.exercises import Exercise
from sounding.textbook.problems import check_function
from sounding.textbook.telling import wrapped

Message = Mapping[str, Any]
_MOST_CODE_CHARACTERS = 1600
_SHOWN_TESTS = 6
_TESTS_AT_LEAST = 3


class AskedExercise:
    """An exercise with the parts that all kinds of tasks share."""

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        test = check_function(exercise.cases) if exercise.entry_point else ""
        self.usable = bool(
            test
            and exercise.shape in ("function", "class", "module")
            and distinct_values(test) > 1
            and all("```" not in text for text in (*exercise.solutions, *exercise.descriptions))
            and len(exercise.solutions[0]) <= _MOST_CODE_CHARACTERS
        )
        inputs = _inputs(exercise)
        self.code = CodeCheck(
            solution=exercise.solutions[0],
            test=test or "assert None",
            entry_point=exercise.entry_point or "none",
            programs=exercise.solutions if inputs else (),
            inputs=inputs,
        )

    def told(self, draw: Draw) -> str:
        """The text of the question: one or two descriptions, sometimes with examples."""
        text, other = self.exercise.descriptions[0], draw.one(self.exercise.descriptions)
        if other != text and draw.chance(0.4):
            text = f"{text} {other}"
        style = draw.weighted([("", 0.5), ("==", 0.2), ("->", 0.15), (">>>", 0.15)])
        if not style:
            return text
        cases = draw.some(self.exercise.cases, 1 + draw.below(2))
        lines = short_examples(cases, style, self.exercise.solutions[0])
        return f"{text}\n\n{fenced(chr(10).join(lines))}" if lines else text

    def wrapped(self) -> list[str]:
        """The first description, wrapped into lines."""
        return wrapped(self.exercise.descriptions[0], 86)

    def test_file(self) -> str:
        """The shown tests as a file; "" if too few cases can be written as assertions."""
        name = self.exercise.entry_point
        chosen = [lines for case in self.exercise.cases if (lines := assertions(case))]
        if len(chosen) < _TESTS_AT_LEAST:
            return ""
        tests = [
            "\n".join([f"def test_{number}():", *(f"    {double_quoted(line)}" for line in lines)])
            for number, lines in enumerate(chosen[:_SHOWN_TESTS], 1)
        ]
        names = sorted({name, *self._used(chosen)})
        return "\n\n\n".join([f"from solution import {', '.join(names)}", *tests]) + "\n"

    def _used(self, chosen: Sequence[Sequence[str]]) -> set[str]:
        """Other names of the program that the tests use."""
        defined = set()
        for node in ast.parse(self.exercise.solutions[0]).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        text = "\n".join(line for lines in chosen for line in lines)
        return {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)} & defined

    def problem(
        self,
        kind: str,
        number: int,
        question: str,
        answer: str,
        check: Check,
        *,
        tools: Sequence[Message] = (),
        thinking: bool = False,
        difficulty: int | None = None,
    ) -> ChatProblem:
        """Return a task with a unique id."""
        return ChatProblem(
            task_id=f"{self.exercise.name}/{kind}/{number}",
            kind=kind,
            difficulty=difficulty or self.exercise.difficulty,
            messages=({"role": "user", "content": question},),
            tools=tuple(tools),
            thinking=thinking,
            answer=answer,
            check=check,
        )


def _inputs(exercise: Exercise) -> tuple[str, ...]:
    """Arguments of the plain calls in a function's tests, each as a tuple literal."""
    if exercise.shape != "function":
        return ()
    found: dict[str, None] = {}
    for case in exercise.cases:
        call = ast.parse(case.code).body[0]
        if case.before or not isinstance(call, ast.Expr) or not isinstance(call.value, ast.Call):
            continue
        node = call.value
        plain = isinstance(node.func, ast.Name) and node.func.id == exercise.entry_point
        if not plain or node.keywords or not node.args:
            continue
        text = ast.unparse(ast.Tuple(node.args, ast.Load()))
        try:
            ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError):
            continue
        found[text] = None
    return tuple(found) if len(found) > 1 else ()
