"""MBPP rows as problems: functions to write from their descriptions, and lines to fill in.

A row has a description, a solution and a few `assert` lines, but no signature to complete; it is
taken from the solution. Source: Austin et al., "Program synthesis with large language models",
2021, for the rows and their split: ids 11 to 510 are for testing, 601 to 974 for training.
"""

import ast
import hashlib
import io
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sounding.tasks.code import Problem, Run, grade, read_rows, text_of

TEST_IDS = range(11, 511)
TRAIN_IDS = range(601, 975)
REPEATED_IDS = frozenset(
    (601, 602, 608, 625, 634, 699, 704, 767, 770, 831, 841, 842, 872, 927, 964)
)
"""Rows for training that repeat the description or, nearly, the solution of a row for testing or
validation (11 to 600), and two whose tests need a class that only their solution defines."""
_LETTERS = 4  # a line with fewer letters and digits asks for nothing


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published row, newlines and indentation made ordinary."""

    number: int
    text: str
    code: str
    setup: str
    tests: tuple[str, ...]


def read_mbpp(path: Path, ids: range = TEST_IDS) -> list[Row]:
    """The rows with these ids, in order of id.

    Raises ValueError naming the line for rows of another form, and when no id is there.
    """
    rows = []
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        number, tests = row.get("task_id"), row.get("test_list")
        if not isinstance(number, int):
            raise ValueError(f"{where}: task_id = {number!r} must be an integer")
        if not (isinstance(tests, list) and tests and all(isinstance(t, str) for t in tests)):
            raise ValueError(f"{where}: test_list must be a list of assert lines")
        if number in ids:
            code = "\n".join(part.rstrip() for part in text_of(row, "code", where).splitlines())
            setup = str(row.get("test_setup_code") or "")
            text = " ".join(text_of(row, "text", where).split())
            rows.append(
                Row(number=number, text=text, code=code, setup=setup, tests=tuple(tests))
            )  # fmt: skip
    if not rows:
        raise ValueError(f"{path} has no rows with ids from {ids.start} to {ids.stop - 1}")
    return sorted(rows, key=lambda row: row.number)


def training_text(row: Row) -> str:
    """A row as a text to train on: the description as a comment, and the solution below it."""
    return f"# {row.text}\n{row.code}\n"


def function_problem(row: Row, examples: int) -> Problem | None:
    """A function to write: imports, signature, and a docstring with `examples` of the tests.

    None where the tests call no function that the solution defines at its outermost level.
    """
    parsed = _parsed(row)
    if parsed is None:
        return None
    tree, function = parsed
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = [ast.unparse(node) for node in imports] + [""] * (2 * bool(imports))
    shown = "".join(f"\n    {test.strip()}" for test in row.tests[:examples])
    document = row.text + ("\n" + shown if shown else "")
    raw = "r" if "\\" in document else ""
    document = document.replace('"""', "'''")
    lines.append(f"def {function.name}({ast.unparse(function.args)}):")
    lines.append(f'    {raw}"""{document}\n    """')
    return Problem(
        task_id=f"MBPP/{row.number}",
        prompt="\n".join(lines) + "\n",
        test=_test(row),
        entry_point=function.name,
    )


def infilling_problems(row: Row) -> list[Problem]:
    """The solution with one line taken out, for each line that asks for something.

    These are lines inside of functions on which one whole statement stands, or the head of one:
    no `def`, import, comment, docstring or part of a longer statement, and at least four letters
    and digits. The gap goes from behind the indentation to the end of the line; the description
    stands above the solution as a comment.
    """
    parsed = _parsed(row)
    if parsed is None:
        return []
    tree, function = parsed
    lines = row.code.split("\n")
    problems = []
    for number in sorted(_statement_lines(tree, lines)):
        line = lines[number - 1]
        indent = line[: len(line) - len(line.lstrip())]
        above = [f"# {row.text}", *lines[: number - 1], indent]
        below = "".join(f"\n{later}" for later in lines[number:]) + "\n"
        problems.append(
            Problem(
                task_id=f"MBPP/{row.number}/L{number}",
                prompt="\n".join(above),
                suffix=below,
                canonical_solution=line.strip(),
                test=_test(row),
                entry_point=function.name,
            )
        )
    return problems


def fair_problems(row: Row, run: Run, per_row: int) -> tuple[list[Problem], str]:
    """At most `per_row` infilling problems of a row that are fair, or why there are none.

    Fair is a problem whose solution passes its tests, and whose tests notice when the line is
    `pass` instead. Which lines are tried first is decided by a hash of their names.
    """
    problems = infilling_problems(row)
    if not problems:
        return [], "no line that asks for something"
    if not grade(problems[0], problems[0].canonical_solution, run).score:
        return [], "its own solution fails"
    chosen: list[Problem] = []
    for problem in sorted(problems, key=_shuffled):
        if len(chosen) < per_row and not grade(problem, "pass", run).score:
            chosen.append(problem)
    return sorted(chosen, key=_line_number), "" if chosen else "its tests do not notice a gap"


def _shuffled(problem: Problem) -> str:
    return hashlib.sha256(problem.task_id.encode()).hexdigest()


def _line_number(problem: Problem) -> int:
    return int(problem.task_id.rpartition("/L")[2])


def _test(row: Row) -> str:
    body = "\n".join(f"    {line}" for test in row.tests for line in test.strip().splitlines())
    return f"{row.setup}\n\n\ndef check(candidate):\n{body}\n".lstrip("\n")


def _parsed(row: Row) -> tuple[ast.Module, ast.FunctionDef] | None:
    """The solution's tree, and the function of it that the tests call."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree, tests = ast.parse(row.code), ast.parse("\n".join(row.tests))
    except SyntaxError:
        return None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tests):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = functions.get(node.func.id)
            if function is not None:
                return tree, function
    return None


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
    """Whether a statement, or its head, is all that stands on its line, and is worth a gap."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Pass):
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False  # a docstring
    line = lines[node.lineno - 1]
    if line[: node.col_offset].strip() or not _ends_on(line):
        return False
    return sum(character.isalnum() for character in line) >= _LETTERS


def _ends_on(line: str) -> bool:
    """Whether brackets, strings and continuations opened on this line end on it."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return False
    broken = any(token.type == tokenize.ERRORTOKEN for token in tokens)
    return not broken and not line.rstrip().endswith("\\")
