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


def references() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Module and definition of each op."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("sounding", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(map(is_op, node.decorator_list)):
                yield module, node


def is_op(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "op"


def declared() -> Iterator[tuple[str, str, str]]:
    """Module and name of each op, and the path of each of its twins."""
    for module, node in references():
        for made in node.decorator_list:
            if isinstance(made, ast.Call) and is_op(made):
                for given in made.keywords:
                    if given.arg in ("twins", "training"):
                        for twin in ast.literal_eval(given.value).values():
                            yield module, node.name, twin


TWINS = list(declared())


def test_there_are_twins() -> None:
    assert len({name for _, name, _ in TWINS}) > 10


@pytest.mark.parametrize(("module", "name", "twin"), TWINS, ids=[twin for *_, twin in TWINS])
def test_a_twin_takes_what_its_reference_takes(module: str, name: str, twin: str) -> None:
    reference = getattr(importlib.import_module(module), name)
    where, _, function = twin.partition(":")
    assert where.startswith("sounding.ops."), "ops know no room above them"
    found = getattr(importlib.import_module(where), function)
    parameters, expected = (
        [
            (each.name, each.kind, each.default)
            for each in inspect.signature(one).parameters.values()
        ]
        for one in (found, reference)
    )
    assert parameters == expected


@pytest.mark.parametrize(
    ("module", "node"), list(references()), ids=[node.name for _, node in references()]
)
def test_a_reference_reads_all_its_parameters(module: str, node: ast.FunctionDef) -> None:
    """Catches: a parameter that is there for the dispatch alone."""
    given = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
    read = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    assert not set(given) - read, module
