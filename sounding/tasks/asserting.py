"""Static checks of tests: a wrong answer must be able to fail them.

Running them (`code.py`, `fairness`) shows if wrong answers do fail; tests refused here would run
without testing anything, and the error names the reason.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator

_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
_WAY_OUT = "put the tests into `def check(candidate):` or let them stand as plain asserts"


def calls_check(test: str) -> bool:
    """True if the tests are a function `check`, called with the answer; False for a module.

    Raises ValueError, naming the line, for text that is not Python and for tests that would never
    be run: a `check` that is not a plain function of the outermost level, tests that wait for
    pytest or unittest, and no statement that asserts anything.
    """
    tree = parsed(test)
    for node in ast.walk(tree):
        _refuse_unittest(node)
    check = _check_of(tree)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    asserting = _asserting(functions)
    if check is not None:
        if not any(_asserts(node, asserting) for node in check.body):
            raise ValueError(f"line {check.lineno}: check asserts nothing")
        return True
    if any(_asserts(node, asserting) for node in tree.body):
        return False
    raise ValueError(f"nothing in it asserts anything; {_WAY_OUT}")


def parsed(text: str) -> ast.Module:
    """The tree of a text. Raises ValueError where it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except SyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"not Python: {error}") from None


def _refuse_unittest(node: ast.AST) -> None:
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            if ast.unparse(base).endswith("TestCase"):
                raise ValueError(f"line {node.lineno}: nothing runs a TestCase; {_WAY_OUT}")
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "unittest.main":
        raise ValueError(f"line {node.lineno}: unittest.main() ends the process; {_WAY_OUT}")
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
        raise ValueError(
            f"line {node.lineno}: nothing runs {node.name}, as pytest would; {_WAY_OUT}"
        )


def _check_of(tree: ast.Module) -> ast.FunctionDef | None:
    """The function `check` of the outermost level. Raises ValueError for any other `check`."""
    found: ast.FunctionDef | None = None
    for node in ast.walk(tree):
        if "check" not in _bound(node):
            continue
        line = getattr(node, "lineno", 1)
        if not isinstance(node, ast.FunctionDef):
            raise ValueError(f"line {line}: check must be a plain function, def check(candidate):")
        if node not in tree.body:
            raise ValueError(f"line {line}: check must stand at the outermost level of the text")
        if found is not None:
            raise ValueError(f"line {line}: check is defined twice, first in line {found.lineno}")
        found = node
    if found is None:
        return None
    where = f"line {found.lineno}"
    given = found.args
    positional = len(given.posonlyargs) + len(given.args)
    needed = positional - len(given.defaults)
    only = [default for default in given.kw_defaults if default is None]
    if needed > 1 or only or (positional < 1 and not given.vararg):
        raise ValueError(f"{where}: check must take one argument, the function under test")
    if found.decorator_list:
        raise ValueError(f"{where}: check must not be decorated, or it may be something else")
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _own(found.body)):
        raise ValueError(f"{where}: check is a generator, and calling it runs nothing of it")
    return found


def _bound(node: ast.AST) -> Iterable[str]:
    """The names that a node binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return (node.id,)
    if isinstance(node, ast.alias):
        return ((node.asname or node.name).partition(".")[0],)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return (node.name,)
    return ()


def _asserting(functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Names of the functions that assert something, themselves or through others."""
    found: set[str] = set()
    while True:
        more = {
            name
            for name, function in functions.items()
            if name not in found and any(_asserts(node, found) for node in function.body)
        }
        if not more:
            return found
        found |= more


def _asserts(node: ast.stmt, asserting: set[str]) -> bool:
    """True if running a statement can fail because an answer is wrong."""
    for one in _own([node]):
        if isinstance(one, ast.Assert | ast.Raise):
            return True
        if isinstance(one, ast.Call):
            if isinstance(one.func, ast.Name) and one.func.id in asserting:
                return True
            if isinstance(one.func, ast.Attribute) and one.func.attr.startswith("assert"):
                return True
    return False


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Nodes that run when these do: not the bodies of functions and classes defined among them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Scope):
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


# --------------------------------------------------------------------------------------------------
# The answer's part of a program


def names_of_answer(prompt: str, answer: str, suffix: str) -> tuple[set[str], set[str]]:
    """Names that a program defines with something of the answer in them, and classes without.

    A definition has something of the answer in it if part of it is the answer's text, or if it
    mentions a name that has. Both are empty for a program that is not Python.
    """
    try:
        tree = parsed(prompt + answer + suffix)
    except ValueError:
        return set(), set()
    first = _line_after(prompt)
    last = max(first, _line_after(re.sub(r"(\r\n|\r|\n)\Z", "", prompt + answer)))
    mentions: dict[str, set[str]] = {}
    answered: set[str] = set()
    classes: set[str] = set()
    for node in tree.body:
        names = {name for one in _outermost(node) for name in _bound(one)}
        begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        if begin <= last and (node.end_lineno or begin) >= first:
            answered |= names
        if isinstance(node, ast.ClassDef):
            classes.add(node.name)
        used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        for name in names:
            mentions.setdefault(name, set()).update(used)
    while more := {n for n, used in mentions.items() if n not in answered and used & answered}:
        answered |= more
    return answered, classes - answered


def _outermost(node: ast.stmt) -> Iterator[ast.AST]:
    """A statement's nodes that bind names of the module."""
    yield node
    if not isinstance(node, _Scope):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from _outermost(child)
            else:
                yield from (one for one in ast.walk(child))


def _line_after(text: str) -> int:
    """The line number of the next character."""
    return len(re.findall("\r\n|\r|\n", text)) + 1
