"""Problems from files, and answers judged by their tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from sounding.sandbox.run import Limits, Outcome, run_python
from sounding.tasks.code import CodeTask, Problem, grade, read_problems
from sounding.tasks.task import Task

ADD = Problem(
    task_id="add",
    prompt="def add(a, b):\n    ",
    suffix="\n",
    canonical_solution="return a + b",
    test="def check(candidate):\n    assert candidate(1, 2) == 3\n",
    entry_point="add",
)


def unsafe(program: str) -> Outcome:
    """What is run here was written here."""
    return run_python(program, Limits(wall_seconds=20.0), isolate=False)


@pytest.mark.parametrize(
    ("answer", "score", "reason"),
    [
        ("return a + b", 1, "passed"),
        ("return a - b", 0, "wrong answer"),
        ("return c", 0, "NameError"),
        ("return (", 0, "SyntaxError"),
        ("raise SystemExit(0)", 0, "ended early with exit code 0"),
        ("import os; os._exit(0)", 0, "ended early with exit code 0"),
        ("import os; os.abort()", 0, "signal 6"),
        # a function that redefines what graders like to use
        ("return a + b\nprint = exit = None", 1, "passed"),
    ],
)
def test_answers_are_judged_by_their_tests(answer: str, score: float, reason: str) -> None:
    assert grade(ADD, answer, unsafe) == (score, reason)


def test_a_limit_is_the_reason() -> None:
    def slow(program: str) -> Outcome:
        return Outcome("wall time", -9, "", "", 1.0)

    assert grade(ADD, "", slow) == (0, "wall time")


def test_a_test_without_check_is_run_as_it_is() -> None:
    problem = Problem(task_id="x", prompt="x = ", test="assert x == 1", entry_point="x")
    assert grade(problem, "1", unsafe).score == 1
    assert grade(problem, "2", unsafe).score == 0


def test_a_task_grades_by_number() -> None:
    task = CodeTask([ADD], unsafe)
    assert isinstance(task, Task)
    assert (len(task), task[0].task_id) == (1, "add")
    assert task.grade(0, "return b + a").score == 1


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {
    "task_id": "T/0",
    "prompt": "p",
    "suffix": "s",
    "canonical_solution": "c",
    "test": "t",
    "entry_point": "f",
    "note": "ignored",
}


def test_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", ROW, {**ROW, "task_id": 1})
    first, second = read_problems(path, infilling=True)
    assert first == Problem(
        task_id="T/0", prompt="p", suffix="s", canonical_solution="c", test="t", entry_point="f"
    )
    assert second.task_id == "1"
    assert read_problems(path, infilling=False)[0].suffix == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([ROW, ROW], "has the task_id 'T/0' twice"),
        ([[1]], "line 1 must be an object"),
        ([{**ROW, "test": 5}], "line 1 has 5 for 'test', which must be a string"),
        ([ROW, {"task_id": "x", "prompt": ""}], "line 2 lacks 'suffix'"),
        ([{**ROW, "entry_point": "f(); import os"}], "must be a name"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        read_problems(write(tmp_path / "rows", *rows), infilling=True)
    (tmp_path / "rows").write_text("{")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_problems(tmp_path / "rows", infilling=True)
