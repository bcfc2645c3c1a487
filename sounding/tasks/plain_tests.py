"""Tests that a model writes: functions of plain assertions about one function.

What a test may use is listed, not what it may not. That is so that tests are the same every time;
that they cannot deceive their grader is for the sandbox to see to.
"""

import ast

from sounding.tasks.asserting import parsed

_BUILTINS = frozenset(
    "abs all any bool bytes chr complex dict divmod enumerate filter float frozenset int isinstance"
    " iter len list map max min next ord pow range repr reversed round set sorted str sum tuple"
    " type zip True False None Exception AssertionError ValueError TypeError KeyError IndexError"
    " LookupError ZeroDivisionError ArithmeticError OverflowError AttributeError StopIteration"
    " NotImplementedError RuntimeError RecursionError".split()
)
_IMPORTS = {
    "math": None,  # all of it
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
}
_UNSTEADY = {"now", "today", "utcnow", "fromtimestamp"}


def test_program(text: str, entry_point: str) -> str:
    """The module that runs the tests of an answer: their functions, then a call of each.

    Raises ValueError, with the reason in a few words, for a text that is no such test.
    """
    try:
        tree = parsed(text)
    except ValueError:
        raise ValueError("not Python") from None
    nodes = list(ast.walk(tree))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tests = [node.name for node in functions if node.name.startswith("test")]
    for function in functions:
        if function.decorator_list or (function.name in tests and _takes(function)):
            raise ValueError(f"{function.name} must be a plain function without arguments")
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {
        n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ExceptHandler) and n.name
    }
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    if entry_point in bound:
        raise ValueError(f"defines {entry_point} itself")
    for node in nodes:
        bound |= _imported(node, entry_point)
    for node in nodes:
        _refuse(node, bound | {entry_point})
    if not any(isinstance(node, ast.Assert) for node in nodes):
        raise ValueError("asserts nothing")
    if not any(isinstance(node, ast.Name) and node.id == entry_point for node in nodes):
        raise ValueError(f"does not use {entry_point}")
    body = [n for n in tree.body if not _imports_subject(n, entry_point)]
    module = ast.unparse(ast.Module(body, []))
    return "\n".join([module, *(f"{name}()" for name in tests)]) + "\n"


def _takes(node: ast.FunctionDef) -> bool:
    given = node.args
    return bool(given.posonlyargs or given.args or given.kwonlyargs or given.vararg or given.kwarg)


def _imports_subject(node: ast.AST, entry_point: str) -> bool:
    """True for `from solution import NAME`, which the function under test already is."""
    return (
        isinstance(node, ast.ImportFrom)
        and node.module in ("solution", "subject")
        and [(alias.name, alias.asname) for alias in node.names] == [(entry_point, None)]
    )


def _imported(node: ast.AST, entry_point: str) -> set[str]:
    if isinstance(node, ast.Import):
        names = {alias.name: alias.asname or alias.name for alias in node.names}
        if any(_IMPORTS.get(name, ()) is not None for name in names):
            raise ValueError(f"imports {', '.join(names)}")
        return set(names.values())
    if isinstance(node, ast.ImportFrom) and not _imports_subject(node, entry_point):
        known = _IMPORTS.get(node.module or "", set())
        if known is None:
            return {alias.asname or alias.name for alias in node.names if alias.name != "*"}
        if not {alias.name for alias in node.names} <= known:
            raise ValueError(f"imports from {node.module}")
        return {alias.asname or alias.name for alias in node.names}
    return set()


def _refuse(node: ast.AST, known: set[str]) -> None:
    if isinstance(node, ast.Name) and node.id not in known | _BUILTINS:
        raise ValueError(f"uses {node.id}, which a test does not need")
    if isinstance(node, ast.Name) and node.id.startswith("__"):
        raise ValueError(f"uses {node.id}, which a test does not need")
    if isinstance(node, ast.Attribute):
        name = node.attr
        if name.startswith("_") or name in _UNSTEADY or name.startswith(("gi_", "f_", "co_")):
            raise ValueError(f"uses .{name}, which a test does not need")
    kinds = ast.ClassDef | ast.AsyncFunctionDef | ast.Global | ast.Nonlocal | ast.While | ast.Delete
    if isinstance(node, kinds):
        raise ValueError(f"has a {type(node).__name__.lower()}, which a test does not need")
