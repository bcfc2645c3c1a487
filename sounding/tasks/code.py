"""Programming problems graded by running their tests, from their published files.

A problem is a text with a gap (or an open end) and tests that the completed text must pass: the
rows of HumanEval and of its infilling variants, and MBPP rows turned into that form.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sounding.files import read_json_lines
from sounding.sandbox.trial import Trial, Verdict
from sounding.tasks.asserting import calls_check, names_of_answer, parsed
from sounding.tasks.task import Grade

Judge = Callable[[Trial], Verdict]  # runs tests against an answer, in a sandbox

_ENTRY_POINT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_EMPTY_ANSWERS = ("pass", "raise Exception")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A gap to fill so that the tests pass.

    Raises ValueError for tests that would never be run, or that assert nothing.
    """

    task_id: str
    prompt: str
    suffix: str = ""
    canonical_solution: str
    """A right answer. Tests that use more of the program than `entry_point` get it from here."""
    test: str
    """Python that defines `check(candidate)`, or that tests when it is run."""
    entry_point: str
    """Name of the function that `check` is called with."""

    def __post_init__(self) -> None:
        calls_check(self.test)
        if not _ENTRY_POINT.fullmatch(self.entry_point):
            raise ValueError(f"entry_point = {self.entry_point!r} must be a name")

    def trial(self, answer: str) -> Trial:
        """The completed text before its tests."""
        return replace(_trial(self), program=self.prompt + answer + self.suffix + "\n")


@functools.lru_cache(4096)
def _trial(problem: Problem) -> Trial:
    """All of a trial but the answer, which is the canonical one here."""
    solution = problem.canonical_solution
    answered, given = names_of_answer(problem.prompt, solution, problem.suffix)
    used = {node.id for node in ast.walk(parsed(problem.test)) if isinstance(node, ast.Name)}
    program = problem.prompt + solution + problem.suffix + "\n"
    return Trial(
        program=program,
        reference=program,
        answered=tuple(sorted(answered & used | {problem.entry_point.partition(".")[0]})),
        given=tuple(sorted(given)),
        test=problem.test,
        entry_point=problem.entry_point,
        calls_check=calls_check(problem.test),
    )


class CodeTask:
    """Problems graded in a sandbox: 1 for an answer that passes all tests, else 0."""

    def __init__(self, problems: Sequence[Problem], judge: Judge) -> None:
        self.problems, self._judge = problems, judge
        self._unfairness: list[str] = []

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Problem:
        return self.problems[index]

    def grade(self, index: int, answer: str) -> Grade:
        """Run the tests on an answer. Raises NoIsolation where the sandbox cannot be built."""
        return grade(self.problems[index], answer, self._judge)

    def unfairness(self, workers: int) -> Iterator[str]:
        """The reason why each problem is unfair, "" if it is fair; computed once."""
        yield from self._unfairness
        left = self.problems[len(self._unfairness) :]
        with ThreadPoolExecutor(workers) as pool:
            try:
                for why in pool.map(lambda problem: unfairness(problem, self._judge), left):
                    self._unfairness.append(why)
                    yield why
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def grade(problem: Problem, answer: str, judge: Judge) -> Grade:
    """Run a problem's tests on an answer.

    Tests see what a call does to its arguments. An answer could empty the list that the expected
    value is made from, so where an answer has changed an argument, and the canonical solution does
    not need to, it must also pass when the tests do not see that.
    """
    trial = problem.trial(answer)
    verdict = judge(trial)
    if verdict.passed and verdict.changed and not judge(replace(trial, in_place=False)).passed:
        canonical = problem.trial(problem.canonical_solution)
        if judge(replace(canonical, in_place=False)).passed:
            return Grade(0.0, "passes only by changing its arguments")
    return Grade(1.0, "passed") if verdict.passed else Grade(0.0, verdict.reason)


def unfairness(problem: Problem, judge: Judge) -> str:
    """Return the reason why a problem is unfair; "" if it is fair.

    Its canonical solution must pass, and an answer that does nothing, or only raises, must not.
    """
    solution = problem.canonical_solution
    canonical = grade(problem, solution, judge)
    if not canonical.score:
        return f"its own solution fails: {canonical.reason}"
    before, after = re.match(r"\s*", solution), re.search(r"\s*$", solution)
    assert before and after
    for statement in _EMPTY_ANSWERS:
        if grade(problem, before[0] + statement + after[0], judge).score:
            return f"its tests pass with `{statement}` for an answer"
    return ""


# --------------------------------------------------------------------------------------------------
# Files


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines with their line numbers. Raises ValueError as it does."""
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be an object, not {row!r:.40}")
        yield number, row


def read_problems(path: Path, *, infilling: bool) -> list[Problem]:
    """Read rows of task_id, prompt, (suffix,) canonical_solution, test, entry_point.

    Other keys of a row are notes and ignored. Raises ValueError naming file, line and key for rows
    of another form, for tests that test nothing, for a task_id that comes twice, and for a file
    without rows.
    """
    wanted = ["task_id", "prompt", "canonical_solution", "test", "entry_point"]
    if infilling:
        wanted.insert(2, "suffix")
    problems: dict[str, Problem] = {}
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        values = {name: text_of(row, name, where) for name in wanted}
        name = values["task_id"]
        if name in problems:
            raise ValueError(f"{where} has the task_id {name!r} again; results would be mixed up")
        try:
            problems[name] = Problem(**values)
        except ValueError as error:
            key = "" if "entry_point" in str(error) else "in 'test', "
            raise ValueError(f"{where}: {key}{error}") from None
    if not problems:
        raise ValueError(f"{path} has no rows; give a JSONL file of problems")
    return list(problems.values())


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A string of a row. Raises ValueError saying where it should have been."""
    value = row.get(name)
    if type(value) is int and name == "task_id":
        return str(value)
    if not isinstance(value, str):
        lacks = "lacks" if name not in row else f"has {value!r:.40} for"
        raise ValueError(f"{where} {lacks} {name!r}, which must be a string")
    return whole_text(value, name, where)


def whole_text(value: str, name: str, where: str) -> str:
    """A text as it is. Raises ValueError for half of a surrogate pair, which is no character."""
    half = re.search("[\ud800-\udfff]", value)
    if half:
        raise ValueError(
            f"{where} has half a surrogate pair, \\u{ord(half[0]):04x}, in {name!r} at character "
            f"{half.start()}; no file can hold it"
        )
    return value
