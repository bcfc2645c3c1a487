"""MBPP rows as problems: functions to write from their descriptions, and lines to fill in.

A row has a description, a solution and a few `assert` lines, but no signature to complete; it is
taken from the solution. Source: Austin et al., "Program synthesis with large language models",
2021, for the rows and their split: ids 11 to 510 are for testing, 601 to 974 for training.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sounding.tasks import gaps
from sounding.tasks.asserting import calls_check, parsed
from sounding.tasks.code import Judge, Problem, read_rows, text_of, whole_text

TEST_IDS = range(11, 511)
TRAIN_IDS = range(601, 975)
REPEATED_IDS = frozenset(
    (601, 602, 608, 625, 634, 699, 704, 767, 770, 831, 841, 842, 872, 927, 964)
)
"""Rows for training that repeat the description or, nearly, the solution of a row for testing or
validation (11 to 600), and two whose tests need a class that only their solution defines."""


@dataclass(frozen=True, kw_only=True)
class MBPPRow:
    """A published row, newlines and indentation made ordinary."""

    number: int
    text: str
    code: str
    setup: str
    tests: tuple[str, ...]


def read_mbpp(path: Path, ids: range = TEST_IDS) -> list[MBPPRow]:
    """The rows with these ids, in order of id.

    Raises ValueError naming file, line and key for rows of another form, for tests that assert
    nothing, for an id that comes twice, and when no id is there.
    """
    rows: dict[int, MBPPRow] = {}
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        number = row.get("task_id")
        if type(number) is not int:
            raise ValueError(f"{where}: task_id = {number!r} must be an integer")
        if number in rows:
            raise ValueError(f"{where} has the task_id {number} again; results would be mixed up")
        one = _row(number, row, where)
        if number in ids:
            rows[number] = one
    if not rows:
        raise ValueError(f"{path} has no rows with ids from {ids.start} to {ids.stop - 1}")
    return [rows[number] for number in sorted(rows)]


def _row(number: int, row: dict[str, Any], where: str) -> MBPPRow:
    tests = row.get("test_list")
    if not (isinstance(tests, list) and tests and all(isinstance(t, str) for t in tests)):
        raise ValueError(f"{where}: test_list must be a list of assert lines")
    for at, test in enumerate(tests):
        whole_text(test, f"test_list[{at}]", where)
        try:
            calls_check(_newlines(test).strip())
        except ValueError as error:
            raise ValueError(f"{where}: test_list[{at}] = {test!r:.60}: {error}") from None
    setup = "" if row.get("test_setup_code") is None else text_of(row, "test_setup_code", where)
    made = MBPPRow(
        number=number,
        text=" ".join(text_of(row, "text", where).split()),
        code=_without_trailing_spaces(_newlines(text_of(row, "code", where))),
        setup=_newlines(setup),
        tests=tuple(map(_newlines, tests)),
    )
    try:
        calls_check(_test(made))
    except ValueError as error:
        raise ValueError(f"{where}: test_setup_code with the tests: {error}") from None
    return made


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _without_trailing_spaces(code: str) -> str:
    """The code without white space at the ends of lines, unless that is part of a string."""
    code = code.removesuffix("\n")
    stripped = "\n".join(line.rstrip() for line in code.split("\n"))
    try:
        same = ast.dump(parsed(stripped)) == ast.dump(parsed(code))
    except ValueError:
        return code
    return stripped if same else code


def training_text(row: MBPPRow) -> str:
    """A row as a text to train on: the description as a comment, and the solution below it."""
    return f"# {row.text}\n{row.code}\n"


def function_problem(row: MBPPRow, examples: int) -> Problem | None:
    """A function to write: imports, signature, and a docstring with `examples` of the tests.

    Classes of the solution that the tests use are included. None if the tests call no function
    that the solution defines at its outermost level.
    """
    found = _parsed(row)
    if found is None:
        return None
    tree, function = found
    used = {n.id for n in ast.walk(parsed(_test(row))) if isinstance(n, ast.Name)}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in used]
    lines = [ast.unparse(node) for node in imports] + [""] * (2 * bool(imports))
    for node in classes:
        lines += [ast.unparse(node), "", ""]
    shown = "".join(f"\n    {test.strip()}" for test in row.tests[:examples])
    document = row.text + ("\n" + shown if shown else "")
    raw = "r" if "\\" in document else ""
    document = document.replace('"""', "'''")
    lines.append(f"def {function.name}({ast.unparse(function.args)}):")
    lines.append(f'    {raw}"""{document}\n    """')
    rest = [node for node in tree.body if node not in (*imports, *classes, function)]
    return Problem(
        task_id=f"MBPP/{row.number}",
        prompt="\n".join(lines) + "\n",
        canonical_solution=_indented(function.body) + "".join(map(_outermost, rest)),
        test=_test(row),
        entry_point=function.name,
    )


def _indented(body: Sequence[ast.stmt]) -> str:
    """Statements as the body of a function; strings in them keep their lines."""
    module = ast.Module([ast.If(ast.Constant(1), list(body), [])], [])
    return ast.unparse(ast.fix_missing_locations(module)).partition("\n")[2] + "\n"


def _outermost(node: ast.stmt) -> str:
    return f"\n\n{ast.unparse(node)}\n"


def infilling_problems(row: MBPPRow) -> list[Problem]:
    """Return a problem for each line of the solution that is worth a gap.

    The description is put above the solution as a comment.
    """
    found = _parsed(row)
    if found is None:
        return []
    return gaps.line_gaps(
        f"MBPP/{row.number}",
        f"# {row.text}",
        row.code,
        test=_test(row),
        entry_point=found[1].name,
    )


def fair_problems(row: MBPPRow, judge: Judge, per_row: int) -> tuple[list[Problem], str]:
    """At most `per_row` infilling problems of a row that are fair, or why there are none."""
    return gaps.fair(infilling_problems(row), judge, per_row)


def _test(row: MBPPRow) -> str:
    lines = [line for test in row.tests for line in _single_lines(test.strip())]
    head = "def check(candidate):\n"
    if any(isinstance(n, ast.Name) and n.id == "check" for n in ast.walk(parsed("\n".join(lines)))):
        head = ""  # the function under test has this name
    indent = "    " * bool(head)
    body = "\n".join(indent + line for line in lines)
    return f"{row.setup}\n\n\n{head}{body}\n".lstrip("\n")


def _single_lines(test: str) -> Iterator[str]:
    """A test in lines that can be indented: a string over several lines becomes one line."""
    if "\n" in test:
        yield from (line for node in parsed(test).body for line in ast.unparse(node).split("\n"))
    else:
        yield test


def _parsed(row: MBPPRow) -> tuple[ast.Module, ast.FunctionDef] | None:
    """The solution's tree, and the function of it that the tests call."""
    try:
        tree, tests = parsed(row.code), parsed("\n".join(row.tests))
    except ValueError:
        return None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tests):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = functions.get(node.func.id)
            if function is not None:
                return tree, function
    return None
