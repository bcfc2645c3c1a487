"""What the textbook is made of: topics of exercises, with their solutions and tests.

The format is told in textbook/README.md; `reading` reads it.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["function", "class", "module", "script", "tests"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test: statements, then an expression with its value, or code with the error it raises."""

    text: str
    before: tuple[str, ...]
    code: str
    expected: str | None
    """The literal that `code` must be equal to."""
    raises: str | None
    """The name of the exception that `code` must raise."""


@dataclass(frozen=True, kw_only=True)
class ScriptCase:
    """One run of a script: what it is given and what it must print."""

    stdin: str = ""
    args: tuple[str, ...] = ()
    files: Mapping[str, str]
    """Texts of the files in its working folder."""
    stdout: str
    exit: int = 0


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """Something to write, told in several ways, with solutions that pass its tests."""

    name: str
    area: str
    topic: str
    title: str
    """Of the topic."""
    held_out: bool
    shape: Shape
    difficulty: int
    """1 (first week) to 5 (a good interview question)."""
    signature: str
    """The head of the function or class that the tests call; empty for scripts and tests."""
    descriptions: tuple[str, ...]
    solutions: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    script_cases: tuple[ScriptCase, ...] = ()
    subject: str = ""
    """Shape "tests": the module that the solution tests."""
    mutants: tuple[str, ...] = ()
    """Shape "tests": broken versions of the subject, which the solution must notice."""

    @property
    def entry_point(self) -> str:
        """The name that the signature defines, or ""."""
        node = signature_node(self.signature)
        return node.name if node else ""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """The exercises of one file."""

    topic: str
    area: str
    title: str
    held_out: bool
    exercises: tuple[Exercise, ...]


def signature_node(signature: str) -> Definition | None:
    """The definition of which this is the head, or None."""
    if not signature:
        return None
    try:
        body = ast.parse(signature + " ...").body
    except SyntaxError:
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], Definition) else None
