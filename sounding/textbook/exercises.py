"""Data types of the textbook: topics of exercises, with their solutions and tests.

textbook/README.md describes the file format; `reading` reads it.
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
    """One test: statements, then an expression and its value, or code and the error it raises."""

    text: str
    before: tuple[str, ...]
    code: str
    expected: str | None
    """The literal that `code` must equal."""
    raises: str | None
    """The name of the exception that `code` must raise."""


@dataclass(frozen=True, kw_only=True)
class ScriptCase:
    """One run of a script: its input and the output it must print."""

    stdin: str = ""
    args: tuple[str, ...] = ()
    files: Mapping[str, str]
    """Contents of the files in its working folder, by name."""
    stdout: str
    exit: int = 0


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A program to write, described in several ways, with solutions that pass its tests."""

    name: str
    area: str
    topic: str
    title: str
    """Title of the topic."""
    held_out: bool
    shape: Shape
    difficulty: int
    """1 (first week) to 5 (a good interview question)."""
    signature: str
    """Head of the function or class that the tests call; empty for shapes script and tests."""
    descriptions: tuple[str, ...]
    solutions: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    script_cases: tuple[ScriptCase, ...] = ()
    subject: str = ""
    """Shape "tests": the module that the solution tests."""
    mutants: tuple[str, ...] = ()
    """Shape "tests": faulty versions of the subject, which the solution must fail."""

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
    """The definition that has this head, or None if it is not a head."""
    if not signature:
        return None
    try:
        body = ast.parse(signature + " ...").body
    except SyntaxError:
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], Definition) else None
