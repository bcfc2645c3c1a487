"""Problems from programs with one line removed, where the tests detect a wrong line."""

import ast
import hashlib
import io
import tokenize
from collections.abc import Sequence

from sounding.tasks.asserting import parsed
from sounding.tasks.code import Judge, Problem, unfairness

_LETTERS = 4  # a line with fewer letters and digits asks for nothing


def line_gaps(
    task_id: str, heading: str, code: str, *, test: str, entry_point: str
) -> list[Problem]:
    """Return a problem for each line of a program that is worth a gap.

    These are lines inside of functions that are one whole statement, or the head of one:
    no `def`, import, comment, docstring or part of a longer statement, and at least four letters
    and digits. The gap goes from behind the indentation to the end of the line; `heading` is put
    above the program.
    """
    lines = code.split("\n")
    problems = []
    for number in sorted(_statement_lines(parsed(code), lines)):
        line = lines[number - 1]
        indent = line[: len(line) - len(line.lstrip())]
        above = [heading, *lines[: number - 1], indent]
        below = "".join(f"\n{later}" for later in lines[number:]) + "\n"
        problems.append(
            Problem(
                task_id=f"{task_id}/L{number}",
                prompt="\n".join(above),
                suffix=below,
                canonical_solution=line.strip(),
                test=test,
                entry_point=entry_point,
            )
        )
    return problems


def fair(problems: Sequence[Problem], judge: Judge, most: int) -> tuple[list[Problem], str]:
    """Return at most `most` fair problems of a program, or the reason why there are none.

    A problem is fair if its solution passes its tests, and the tests fail if the line is `pass`
    or raises instead. The order of trials is by a hash of the names.
    """
    if not problems:
        return [], "no line that asks for something"
    chosen: list[Problem] = []
    reasons = []
    for problem in sorted(problems, key=_shuffled):
        if len(chosen) < most:
            why = unfairness(problem, judge)
            reasons.append(why)
            if not why:
                chosen.append(problem)
    if chosen:
        return sorted(chosen, key=_line_number), ""
    fails = all(why.startswith("its own solution fails") for why in reasons)
    return [], "its own solution fails" if fails else "its tests do not notice a gap"


def _shuffled(problem: Problem) -> str:
    return hashlib.sha256(problem.task_id.encode()).hexdigest()


def _line_number(problem: Problem) -> int:
    return int(problem.task_id.rpartition("/L")[2])


def _statement_lines(tree: ast.Module, lines: Sequence[str]) -> set[int]:
    found: set[int] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and node is not function and _asks(node, lines):
                found.add(node.lineno)
    return found


def _asks(node: ast.stmt, lines: Sequence[str]) -> bool:
    """True if a statement, or its head, is alone on its line and worth a gap."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Pass):
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False  # a docstring
    line = lines[node.lineno - 1]
    if line[: node.col_offset].strip() or not _ends_on(line):
        return False
    return sum(character.isalnum() for character in line) >= _LETTERS


def _ends_on(line: str) -> bool:
    """True if brackets, strings and continuations opened on this line end on it."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return False
    broken = any(token.type == tokenize.ERRORTOKEN for token in tokens)
    return not broken and not line.rstrip().endswith("\\")
