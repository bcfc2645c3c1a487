"""Every op's twin is there, under the name that its declaration gives, and takes what the op takes.

Catches: a twin that was moved or renamed, which would be noticed at its first call only, and
arguments that another order would swap in silence.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import sounding

ROOT = Path(sounding.__file__).parent


def declared() -> Iterator[tuple[str, str, str]]:
    """Module and name of each op, and the path of each of its twins."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("sounding", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for made in node.decorator_list:
                if isinstance(made, ast.Call) and ast.unparse(made.func) == "op":
                    for given in made.keywords:
                        yield module, node.name, ast.literal_eval(given.value)


TWINS = list(declared())


def test_there_are_twins() -> None:
    assert len({name for _, name, _ in TWINS}) > 10


@pytest.mark.parametrize(("module", "name", "twin"), TWINS, ids=[twin for *_, twin in TWINS])
def test_a_twin_takes_what_its_reference_takes(module: str, name: str, twin: str) -> None:
    reference = getattr(importlib.import_module(module), name)
    where, _, function = twin.partition(":")
    found = getattr(importlib.import_module(where), function)
    parameters, expected = (
        [
            (each.name, each.kind, each.default)
            for each in inspect.signature(one).parameters.values()
        ]
        for one in (found, reference)
    )
    assert parameters == expected
