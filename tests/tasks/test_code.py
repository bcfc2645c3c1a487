"""Problems from files, and answers judged by their tests."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sounding.sandbox.run import Limits
from sounding.sandbox.trial import Trial, Verdict, judge
from sounding.tasks.code import CodeTask, Problem, grade, read_problems, unfairness
from sounding.tasks.task import Task

ADD = Problem(
    task_id="add",
    prompt="def add(a, b):\n    ",
    suffix="\n",
    canonical_solution="return a + b",
    test="def check(candidate):\n    assert candidate(1, 2) == 3\n",
    entry_point="add",
)


def unsafe(trial: Trial) -> Verdict:
    """What is run here was written here."""
    return judge(trial, Limits(wall_seconds=20.0), isolate=False)


@pytest.mark.parametrize(
    ("answer", "score", "reason"),
    [
        ("return a + b", 1, "passed"),
        ("return a - b", 0, "wrong answer"),
        ("return c", 0, "NameError"),
        ("return (", 0, "SyntaxError"),
        ("raise SystemExit(0)", 0, "SystemExit"),
        ("import os; os._exit(0)", 0, "ended early with exit code 0"),
        ("import os; os.abort()", 0, "signal 6"),
        # a function that redefines what graders like to use
        ("return a + b\nprint = exit = None", 1, "passed"),
        ("return a + b; \\", 1, "passed"),
        ("print('x' * 10**6); return a + b", 1, "passed"),
        ("return '\ud800'", 0, "UnicodeEncodeError"),
        ("return a + b # \0", 0, "SyntaxError"),
        ("return [a + b]", 0, "wrong answer"),
        ("return object()", 0, "not plain data"),
        ("return " + "[" * 90 + "3" + "]" * 90, 0, "wrong answer"),
        ("a = b = []\n    for _ in range(9999): a = [a]\n    return a", 0, "not plain data"),
        ("return b'' * b + bytes(10**9)", 0, "MemoryError"),
        ("raise ValueError('no')", 0, "ValueError"),
        ("raise type('Own', (LookupError,), {})()", 0, "LookupError"),
    ],
)
def test_answers_are_judged_by_their_tests(answer: str, score: float, reason: str) -> None:
    assert grade(ADD, answer, unsafe) == (score, reason)


def test_a_limit_is_the_reason() -> None:
    assert grade(ADD, "", lambda trial: Verdict("wall time", False)) == (0, "wall time")


def test_a_test_without_check_is_run_as_it_is() -> None:
    problem = Problem(
        task_id="x", prompt="x = ", canonical_solution="1", test="assert x == 1", entry_point="x"
    )
    assert grade(problem, "1", unsafe).score == 1
    assert grade(problem, "2", unsafe).score == 0
    assert grade(problem, "2; \\", unsafe).score == 0


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
    "test": "assert f",
    "entry_point": "f",
    "note": "ignored",
}


def test_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", ROW, {**ROW, "task_id": 1})
    first, second = read_problems(path, infilling=True)
    assert first == Problem(
        task_id="T/0",
        prompt="p",
        suffix="s",
        canonical_solution="c",
        test="assert f",
        entry_point="f",
    )
    assert second.task_id == "1"
    assert read_problems(path, infilling=False)[0].suffix == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([ROW, ROW], "line 2 has the task_id 'T/0' again"),
        ([[1]], "line 1 must be an object"),
        ([{**ROW, "test": 5}], "line 1 has 5 for 'test', which must be a string"),
        ([ROW, {"task_id": "x", "prompt": ""}], "line 2 lacks 'suffix'"),
        ([ROW, {**ROW, "task_id": True}], "line 2 has True for 'task_id'"),
        ([{**ROW, "entry_point": "f(); import os"}], "line 1: entry_point = .* must be a name"),
        ([{**ROW, "test": "x = 1"}], "line 1: in 'test', nothing in it asserts anything"),
        ([{**ROW, "prompt": "\ud800"}], r"line 1 has half a surrogate pair, .ud800, in 'prompt'"),
        ([ROW, {**ROW, "task_id": "b\udfff"}], "line 2 has half .* in 'task_id' at character 1"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_problems(write(tmp_path / "rows", *rows), infilling=True)
    (tmp_path / "rows").write_text("{")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_problems(tmp_path / "rows", infilling=True)


def test_problems_that_measure_nothing_are_found() -> None:
    def of(test: str, solution: str = "return a + b") -> str:
        problem = dataclasses.replace(ADD, test=test, canonical_solution=solution)
        return unfairness(problem, unsafe)

    assert of(ADD.test) == ""
    assert of(ADD.test, "return a - b") == "its own solution fails: wrong answer"
    assert of(ADD.test, "return (") == "its own solution fails: the reference raises SyntaxError"
    blind = "def check(candidate):\n    candidate(1, 2)\n    assert True\n"
    assert of(blind) == "its tests pass with `pass` for an answer"
    catches = "try:\n    n = add(1, 2)\nexcept Exception:\n    n = 3\nassert n == 3\n"
    assert of(catches) == "its tests pass with `raise Exception` for an answer"
    never = "def check(candidate):\n    if False:\n        assert candidate(1, 2) == 3\n"
    assert of(never) == "its tests pass with `pass` for an answer"


def test_a_task_looks_for_them_once() -> None:
    asked = []

    def note(trial: Trial) -> Verdict:
        asked.append(trial)
        return Verdict("" if "a + b" in trial.program else "wrong answer", False)

    task = CodeTask([ADD, dataclasses.replace(ADD, canonical_solution="return 3")], note)
    assert list(task.unfairness(2)) == ["", "its own solution fails: wrong answer"]
    assert len(asked) == 4
    assert len(list(task.unfairness(2))) == 2
    assert len(asked) == 4
