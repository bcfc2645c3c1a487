"""Programming problems graded by running their tests, from the files they are published in.

A problem is a text with a gap (or an open end) and tests that the completed text must pass: the
rows of HumanEval and of its infilling variants, and MBPP rows turned into that form.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sounding.sandbox.run import Outcome
from sounding.tasks.task import Grade

Run = Callable[[str], Outcome]  # a program in a sandbox

_ENTRY_POINT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A gap to fill so that the tests pass."""

    task_id: str
    prompt: str
    suffix: str = ""
    canonical_solution: str = ""
    test: str
    """Python that defines `check(candidate)`, or that tests when it is run."""
    entry_point: str
    """What `check` is called with."""

    def program(self, answer: str, mark: str) -> str:
        """The completed text and its tests; writes `mark` after the last one has passed.

        Ending before that, even with success, is no pass.
        """
        lines = [self.prompt + answer + self.suffix, self.test]
        if re.search(r"^def check\(", self.test, re.MULTILINE):
            lines.append(f"check({self.entry_point})")
        lines.append(f"__import__('os').write(1, {mark.encode()!r})")
        return "\n".join(lines) + "\n"


class CodeTask:
    """Problems graded in a sandbox: 1 for an answer that passes all tests, else 0."""

    def __init__(self, problems: Sequence[Problem], run: Run) -> None:
        self.problems, self._run = problems, run

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Problem:
        return self.problems[index]

    def grade(self, index: int, answer: str) -> Grade:
        """Run the tests on an answer. Raises NoIsolation where the sandbox cannot be built."""
        return grade(self.problems[index], answer, self._run)


def grade(problem: Problem, answer: str, run: Run) -> Grade:
    """Run a problem's tests on an answer."""
    mark = f"\nall tests passed {secrets.token_hex(8)}\n"
    outcome = run(problem.program(answer, mark))
    if outcome.ok and mark in outcome.stdout:
        return Grade(1.0, "passed")
    return Grade(0.0, _reason(outcome))


def _reason(outcome: Outcome) -> str:
    if outcome.ended == "signal":
        return f"signal {-outcome.code}"
    if outcome.ended != "exit":
        return outcome.ended
    last = outcome.stderr.strip().rpartition("\n")[2]
    name = re.match(r"([\w.]+)(:|$)", last)
    if outcome.code and name:
        return "wrong answer" if name[1] == "AssertionError" else name[1]
    return f"ended early with exit code {outcome.code}"


# --------------------------------------------------------------------------------------------------
# Files


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with their line numbers. Raises ValueError naming a bad line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} must be an object, not {row!r:.40}")
            yield number, row


def read_problems(path: Path, *, infilling: bool) -> list[Problem]:
    """Read rows of task_id, prompt, (suffix,) canonical_solution, test, entry_point.

    Other keys of a row are notes and ignored. Raises ValueError naming file, line and key for rows
    of another form, for a task_id that comes twice, and for a file without rows.
    """
    wanted = ["task_id", "prompt", "canonical_solution", "test", "entry_point"]
    if infilling:
        wanted.insert(2, "suffix")
    problems = []
    for number, row in read_rows(path):
        values = {name: text_of(row, name, f"{path}, line {number}") for name in wanted}
        if not _ENTRY_POINT.fullmatch(values["entry_point"]):
            raise ValueError(
                f"{path}, line {number}: entry_point = {values['entry_point']!r} must be a name"
            )
        problems.append(Problem(**values))
    if not problems:
        raise ValueError(f"{path} has no rows; give a JSONL file of problems")
    _require_unique(path, [problem.task_id for problem in problems])
    return problems


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A string of a row. Raises ValueError saying where it should have been."""
    value = row.get(name)
    if isinstance(value, int) and name == "task_id":
        return str(value)
    if not isinstance(value, str):
        lacks = "lacks" if name not in row else f"has {value!r:.40} for"
        raise ValueError(f"{where} {lacks} {name!r}, which must be a string")
    return value


def _require_unique(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{path} has the task_id {name!r} twice; results would be mixed up")
        seen.add(name)
