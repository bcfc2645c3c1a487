"""What an answer to a task is graded by: programs run, text compared, tests tried on mutants.

A check is plain data, so that a file of tasks holds it. Programs of answers run in sandboxes of
their own and only send values (`sandbox/trial.py`); comparisons are made here, or in a process that
never runs code of the answer.
"""

import ast
import functools
import hashlib
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sounding.sandbox.trial import Trial
from sounding.tasks.asserting import parsed
from sounding.tasks.code import Judge, Problem
from sounding.tasks.code import grade as grade_problem
from sounding.tasks.fences import code_of
from sounding.tasks.plain_tests import test_program
from sounding.tasks.task import Grade

HIDDEN_CALLS = 12  # of inputs drawn anew
_KILLED = re.compile(r"wrong answer|[A-Z]\w*(Error|Exception|Iteration)")


@dataclass(frozen=True, kw_only=True)
class CodeCheck:
    """A program, or the missing part of one, that must pass tests."""

    solution: str
    """A right answer."""
    test: str
    """Defines `check(candidate)`."""
    entry_point: str
    prefix: str = ""
    suffix: str = ""
    indent: str = ""
    """Blanks that each line of an answer gets, however far the answer itself is indented."""
    programs: tuple[str, ...] = ()
    """Whole right programs, which say what is expected for inputs drawn anew."""
    inputs: tuple[str, ...] = ()
    """Arguments of calls, as literals of tuples, that these inputs are made of; none are drawn
    where this is empty."""

    def problem(self) -> Problem:
        """The published tests."""
        return Problem(
            task_id="",
            prompt=self.prefix,
            suffix=self.suffix,
            canonical_solution=self.solution,
            test=self.test,
            entry_point=self.entry_point,
        )


@dataclass(frozen=True, kw_only=True)
class TextCheck:
    """A text that must be given exactly, but for blanks at the ends of lines."""

    expected: str


@dataclass(frozen=True, kw_only=True)
class MutationCheck:
    """Tests that right programs must pass and that wrong ones must fail."""

    entry_point: str
    subjects: tuple[str, ...]
    """Right programs; the first is the one shown."""
    mutants: tuple[str, ...]
    """Wrong ones, which are not shown."""
    needed: int
    """How many of them the tests must notice."""


@dataclass(frozen=True, kw_only=True)
class FilesCheck:
    """Files to be edited by tools until a program in one of them is right."""

    files: Mapping[str, str]
    editable: str
    """The only file that may be changed; it holds the program."""
    code: CodeCheck


Check = CodeCheck | TextCheck | MutationCheck | FilesCheck


def grade_answer(check: Check, answer: str, judge: Judge) -> Grade:
    """Grade the text of an answer. Raises ValueError for files, which `grade_files` grades."""
    if isinstance(check, CodeCheck):
        return grade_code(check, code_of(answer), judge)
    if isinstance(check, TextCheck):
        return _grade_text(check, code_of(answer))
    if isinstance(check, MutationCheck):
        return grade_tests(check, code_of(answer), judge)
    raise ValueError("a task with files is graded by the files, not by what is said about them")


def grade_code(check: CodeCheck, code: str, judge: Judge) -> Grade:
    """Run the published tests, then the same function on inputs drawn anew.

    Inputs follow from the text of the program, so that a grade can be repeated, while an answer
    cannot be made for its own inputs.
    """
    if not code.strip():
        return Grade(0.0, "no code")
    if check.indent:
        code = textwrap.indent(textwrap.dedent(code).strip("\n"), check.indent)
    try:
        parsed(check.prefix + code + check.suffix)
    except ValueError:
        return Grade(0.0, "not Python")
    problem = check.problem()
    found = grade_problem(problem, code, judge)
    if not found.score or not check.inputs:
        return found
    program = problem.trial(code).program.strip()
    hidden = replace(problem, test=hidden_test(check, int(_digest(program)[:12], 16)))
    again = grade_problem(hidden, code, judge)
    return again if again.score else Grade(0.0, f"{again.reason} on other inputs")


def hidden_test(check: CodeCheck, seed: int, count: int = HIDDEN_CALLS) -> str:
    """A test that compares a function with right programs on inputs drawn by a seed."""
    programs = check.programs or (check.prefix + check.solution + check.suffix,)
    return f"""{_source("hidden_inputs.py")}

def check(candidate):
    programs = [load(text, {check.entry_point!r}) for text in {list(programs)!r}]
    seen = [{", ".join(check.inputs)}]
    for arguments in drawn_inputs(seen, {seed}, {count}):
        for expected in agreed(programs, arguments):
            assert same_value(candidate(*arguments), expected)
"""


def _grade_text(check: TextCheck, text: str) -> Grade:
    def lines(one: str) -> list[str]:
        return [line.rstrip() for line in one.strip("\n").split("\n")]

    if lines(text) == lines(check.expected):
        return Grade(1.0, "passed")
    return Grade(0.0, "another text" if text.strip() else "no text")


def grade_tests(check: MutationCheck, text: str, judge: Judge) -> Grade:
    """Run tests against right programs and wrong ones, each in a sandbox of its own.

    The tests have the function as something that can only be called, so they learn nothing of it
    but values. Right programs come twice: tests that are not the same every time are no tests.
    """
    try:
        test = test_program(text, check.entry_point)
    except ValueError as error:
        return Grade(0.0, str(error))
    for number, subject in enumerate((*check.subjects, *check.subjects)):
        reason = judge(_tests_trial(check, subject, test)).reason
        if reason:
            which = "the function" if number % len(check.subjects) == 0 else "another right program"
            return Grade(0.0, f"fails {which}: {reason}")
    killed = 0
    for left, mutant in zip(range(len(check.mutants), 0, -1), check.mutants, strict=True):
        if killed + left < check.needed:
            break
        reason = judge(_tests_trial(check, mutant, test)).reason
        killed += bool(_KILLED.fullmatch(reason))
        if killed >= check.needed:
            return Grade(1.0, "passed")
    return Grade(0.0, f"notices {killed} faults, {check.needed} are needed")


def _tests_trial(check: MutationCheck, subject: str, test: str) -> Trial:
    return Trial(
        program=subject,
        reference="",  # or tests could read what is right
        answered=(check.entry_point,),
        given=(),
        test=test,
        entry_point=check.entry_point,
        calls_check=False,
    )


def grade_files(check: FilesCheck, files: Mapping[str, str], judge: Judge) -> Grade:
    """Grade files as they were left: only the editable one may differ, and only it is run."""
    for name in sorted({*files, *check.files} - {check.editable}):
        given, kept = files.get(name), check.files.get(name)
        if given is None or kept is None or _digest(given) != _digest(kept):
            return Grade(0.0, f"changed {name}, which is protected")
    return grade_code(check.code, files.get(check.editable, ""), judge)


def distinct_values(test: str) -> int:
    """How many different literals a test compares with: with one, a constant would pass."""
    found: set[str] = set()
    for node in ast.walk(parsed(test)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            found.add(ast.unparse(node.comparators[0]))
        elif isinstance(node, ast.Assert):
            found.add("not" if isinstance(node.test, ast.UnaryOp) else "true")
    return len(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
