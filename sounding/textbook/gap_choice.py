"""Choose a statement to remove from a program, as a gap to fill."""

import ast
import textwrap
from dataclasses import dataclass

from sounding.textbook.drawing import Draw
from sounding.textbook.programs import FUNCTIONS

_MOST_LINES = 4


@dataclass(frozen=True)
class ChosenGap:
    """A statement and the text around it."""

    prefix: str
    code: str
    """The statement, indented."""
    suffix: str
    indent: str

    @property
    def answer(self) -> str:
        """The statement without its indentation."""
        return textwrap.dedent(self.code)


def gap(program: str, draw: Draw) -> ChosenGap | None:
    """Choose a statement of one to four lines inside a function; None if there is none.

    It has a name or a call in it, and is not all of a body of several lines.
    """
    lines = program.split("\n")
    found = [
        (node.lineno, node.end_lineno)
        for function in ast.walk(ast.parse(program))
        if isinstance(function, FUNCTIONS)
        for node in ast.walk(function)
        if isinstance(node, ast.stmt)
        and node is not function
        and node.end_lineno is not None
        and node.end_lineno - node.lineno < _MOST_LINES
        and not isinstance(node, ast.Pass | ast.Continue | ast.Break | FUNCTIONS | ast.Import)
        and not lines[node.lineno - 1][: node.col_offset].strip()
    ]
    if not found:
        return None
    first, last = draw.one(found)
    line = lines[first - 1]
    indent = line[: len(line) - len(line.lstrip())]
    return ChosenGap(
        prefix="\n".join(lines[: first - 1]) + "\n",
        code="\n".join(lines[first - 1 : last]),
        suffix="\n" + "\n".join(lines[last:]),
        indent=indent,
    )
