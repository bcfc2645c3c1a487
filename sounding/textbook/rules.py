"""Rules for the programs of an exercise: solutions, subjects, mutants, and the signature."""

import ast
import sys
from collections.abc import Iterator

from sounding.textbook.exercises import Definition, Shape, signature_node

MAX_LINE_CHARACTERS = 100
PYTEST = "pytest"
"""`small_pytest` has the parts of pytest that a test file may use."""
_UNSTEADY = {"secrets", "uuid", "socket", "subprocess", "urllib.request"}


def check_solution(text: str, shape: Shape, signature: str) -> None:
    """Raise ValueError if a solution does not fit its shape or has another head."""
    tree = check_code(text, "solution", docstrings=False)
    if shape == "tests":
        _test_file(tree)
    elif PYTEST in _imported(tree):
        raise ValueError('a solution imports pytest; only shape "tests" may')
    if signature:
        wanted = signature_node(signature)
        assert wanted is not None
        heads = [_head(node) for node in tree.body if _named(node) == wanted.name]
        if not heads:
            raise ValueError(f"a solution does not define {wanted.name}, which signature names")
        if _head(wanted) not in heads:
            raise ValueError(
                f"a solution has the head {heads[0]!r}, which differs from signature = "
                f"{signature!r}"
            )


def _test_file(tree: ast.Module) -> None:
    names = [_named(node) for node in tree.body]
    if not any(name and name.startswith("test_") for name in names):
        raise ValueError('a solution of shape "tests" must have functions test_*')
    if "subject" not in _imported(tree):
        raise ValueError('a solution of shape "tests" must import from subject')


def check_code(text: str, what: str, *, docstrings: bool) -> ast.Module:
    """Parse a program and check it. Raises ValueError naming the rule that it breaks."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{what} is not Python: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise ValueError(f"{what}, line {number} is longer than {MAX_LINE_CHARACTERS}")
        if "\t" in line or line != line.rstrip():
            raise ValueError(f"{what}, line {number} has a tab or trailing white space")
    if not docstrings:
        for node in ast.walk(tree):
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, kinds) and ast.get_docstring(node) is not None:
                raise ValueError(f"{what} has a docstring; put it in descriptions instead")
    for module in _imported(tree):
        top = module.partition(".")[0]
        if module in _UNSTEADY:
            raise ValueError(f"{what} imports {module}, which is not deterministic")
        if top not in sys.stdlib_module_names and top not in ("subject", PYTEST):
            raise ValueError(f"{what} imports {module}, which is not in the standard library")
    return tree


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def check_signature(signature: str, shape: Shape) -> str:
    """Return the signature. Raises ValueError if it is not a head that the shape requires."""
    if shape in ("script", "tests"):
        if signature:
            raise ValueError(f"signature = {signature!r} must be empty for shape {shape}")
        return ""
    node = signature_node(signature)
    if node is None or "\n" in signature:
        raise ValueError(
            f"signature = {signature!r} must be the head of a function or class on one line"
        )
    if shape == "function" and isinstance(node, ast.ClassDef):
        raise ValueError(f"signature = {signature!r} must be a function's for shape function")
    if shape == "class" and not isinstance(node, ast.ClassDef):
        raise ValueError(f"signature = {signature!r} must be a class's for shape class")
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None]
        if bare or node.returns is None:
            raise ValueError(f"signature = {signature!r} must be typed ({bare or 'result'})")
    return signature


def _named(node: ast.stmt) -> str | None:
    return node.name if isinstance(node, Definition) else None


def _head(node: ast.stmt) -> str:
    """`def name(arguments) -> result` or `class Name(bases)`, normalized."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{kind} {node.name}({ast.unparse(node.args)}){result}"
