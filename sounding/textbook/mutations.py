"""Mutate one line of a program the way people make mistakes.

Each mutation changes an operator, bound, constant, variable, condition or call. Some mutants are
still correct programs; tests decide which ones are faulty (`running.py`).
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sounding.textbook.programs import FUNCTIONS, Edit, ProgramSource

_COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
_OPERATORS: dict[type[ast.operator], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("+",)),
    ast.FloorDiv: ("//", ("%", "*")),
    ast.Div: ("/", ("*",)),
    ast.Mod: ("%", ("//",)),
    ast.Pow: ("**", ("*",)),
    ast.BitAnd: ("&", ("|",)),
    ast.BitOr: ("|", ("&",)),
    ast.LShift: ("<<", (">>",)),
    ast.RShift: (">>", ("<<",)),
}
_TWINS = (
    ("min", "max"), ("any", "all"), ("startswith", "endswith"), ("lstrip", "rstrip"),
    ("upper", "lower"), ("find", "rfind"), ("floor", "ceil"), ("keys", "values"),
    ("ljust", "rjust"), ("append", "extend"), ("isalpha", "isdigit"), ("popleft", "pop"),
    ("removeprefix", "removesuffix"), ("heappush", "heappop"), ("bisect_left", "bisect_right"),
    ("split", "rsplit"), ("partition", "rpartition"), ("union", "intersection"),
)  # fmt: skip
_OTHER_CALL = {a: b for pair in _TWINS for a, b in (pair, pair[::-1])}
_WRAPPERS = {"sorted", "abs", "reversed", "list", "set", "round"}  # f(x) becomes x
_METHODS = {"strip", "lower", "upper", "casefold", "copy", "rstrip", "lstrip"}  # x.f() becomes x


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A program with one line changed."""

    text: str
    kind: str
    line: int
    """Line number, from 1."""
    right: str
    wrong: str
    """The line before (`right`) and after (`wrong`) the change, without indentation."""


def mutants(program: str) -> list[Mutant]:
    """All syntactically valid mutants of a program, in order of their lines, without duplicates."""
    source = ProgramSource(program)
    lines = program.split("\n")
    found: dict[str, Mutant] = {}
    for kind, edit in _edits(ast.parse(program), source):
        text = source.edited([edit])
        changed = text.split("\n")
        pairs = enumerate(zip(lines, changed, strict=False))
        numbers = [number for number, (before, after) in pairs if before != after]
        if len(changed) != len(lines) or len(numbers) != 1 or text in found:
            continue
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        at = numbers[0]
        found[text] = Mutant(
            text=text,
            kind=kind,
            line=at + 1,
            right=lines[at].strip(),
            wrong=changed[at].strip(),
        )
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.wrong))


def _edits(tree: ast.Module, source: ProgramSource) -> Iterator[tuple[str, Edit]]:
    for function in ast.walk(tree):
        if not isinstance(function, FUNCTIONS):
            continue
        known = _variables(function)
        for statement in function.body:
            for node in _own(statement):
                yield from _of_node(node, source, known)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a statement, without annotations, docstrings, f-strings and inner functions."""
    if isinstance(node, ast.JoinedStr | ast.Raise | FUNCTIONS | ast.ClassDef):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    yield node
    skipped = getattr(node, "annotation", None)
    for child in ast.iter_child_nodes(node):
        if child is not skipped:
            yield from _own(child)


def _variables(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Arguments and local variables, in order of appearance."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    inner = set()
    for node in ast.walk(function):
        if isinstance(node, ast.comprehension | ast.Lambda):
            inner |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
    return list(dict.fromkeys(n for n in names if n not in inner and n not in ("self", "_")))


def _of_node(node: ast.AST, source: ProgramSource, known: list[str]) -> Iterator[tuple[str, Edit]]:
    if isinstance(node, ast.Compare):
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            old, new = _COMPARISONS[type(op)]
            yield from _operator("comparison", source, left, right, old, new)
            left = right
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        if not isinstance(node.left, ast.Constant | ast.JoinedStr) or _number(node.left):
            old, new = _OPERATORS[type(node.op)]
            yield from _operator("operator", source, node.left, node.right, old, new)
    elif isinstance(node, ast.BoolOp):
        old, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from _operator("condition", source, left, right, old, (other,))
        end = source.end(node.values[-2])
        yield "dropped condition", (end, source.end(node.values[-1]), b"")
    elif isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
        old, new = _OPERATORS[type(node.op)]
        # The operator of `x += y` stands before its "=".
        yield from _operator("operator", source, node.target, node.value, old, new[:1])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        kind = "condition" if isinstance(node.op, ast.Not) else "operator"
        yield kind, (source.begin(node), source.begin(node.operand), b"")
    elif isinstance(node, ast.IfExp):
        begin, end = source.begin(node), source.end(node)
        for part in (node.body, node.orelse):
            yield "dropped branch", (begin, end, _text(source, part))
    elif isinstance(node, ast.If | ast.While):
        test = _text(source, node.test)
        if not isinstance(node.test, ast.UnaryOp):
            plain = isinstance(node.test, ast.Name | ast.Call | ast.Attribute)
            negated = b"not " + test if plain else b"not (" + test + b")"
            yield "condition", (source.begin(node.test), source.end(node.test), negated)
    else:
        yield from _of_leaf(node, source, known)


def _of_leaf(node: ast.AST, source: ProgramSource, known: list[str]) -> Iterator[tuple[str, Edit]]:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        begin, end = source.begin(node), source.end(node)
        for step in (1, -1):
            if node.value + step >= 0:
                kind = "off by one" if node.value < 3 else "constant"
                yield kind, (begin, end, repr(node.value + step).encode())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", (source.begin(node), source.end(node), repr(not node.value).encode())
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in known:
        at = known.index(node.id)
        for other in (known[at - 1], known[(at + 1) % len(known)]):
            if other != node.id:
                yield "variable", (source.begin(node), source.end(node), other.encode())
    elif isinstance(node, ast.Call):
        yield from _of_call(node, source)
    elif isinstance(node, ast.Break | ast.Continue):
        other = "continue" if isinstance(node, ast.Break) else "break"
        yield "jump", (source.begin(node), source.end(node), other.encode())
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.BinOp):
        text = _text(source, node.value.left)
        yield "dropped part", (source.begin(node.value), source.end(node.value), text)
    elif isinstance(node, ast.Slice):
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                text = _text(source, bound) + b" + 1"
                yield "off by one", (source.begin(bound), source.end(bound), text)


def _of_call(node: ast.Call, source: ProgramSource) -> Iterator[tuple[str, Edit]]:
    called, arguments = node.func, node.args
    begin, end = source.begin(node), source.end(node)
    if isinstance(called, ast.Name):
        if called.id in _OTHER_CALL:
            yield "call", (source.begin(called), source.end(called), _twin(called.id))
        if called.id in _WRAPPERS and len(arguments) == 1 and not node.keywords:
            yield "dropped call", (begin, end, _text(source, arguments[0]))
        if called.id == "range" and arguments:
            bound = arguments[0 if len(arguments) == 1 else 1]
            for more in (b" - 1", b" + 1"):
                edit = (source.begin(bound), source.end(bound), _text(source, bound) + more)
                yield "off by one", edit
    elif isinstance(called, ast.Attribute):
        if called.attr in _OTHER_CALL:
            length = len(called.attr.encode())
            yield "call", (source.end(called) - length, source.end(called), _twin(called.attr))
        if called.attr in _METHODS and not arguments:
            yield "dropped call", (begin, end, _text(source, called.value))
    if len(arguments) == 2 and not any(isinstance(a, ast.Starred) for a in arguments):
        first, second = arguments
        swapped = _text(source, second) + b", " + _text(source, first)
        yield "swapped arguments", (source.begin(first), source.end(second), swapped)


def _operator(
    kind: str,
    source: ProgramSource,
    left: ast.expr,
    right: ast.expr,
    old: str,
    new: tuple[str, ...],
) -> Iterator[tuple[str, Edit]]:
    """Edits of the operator between two operands, which may be parenthesized."""
    begin, end = source.end(left), source.begin(right)
    between = source.bytes[begin:end]
    pattern = re.escape(old.encode()).replace(rb"\ ", rb"\s+")
    match = re.search(pattern, between)
    if match:
        for other in new:
            yield kind, (begin + match.start(), begin + match.end(), other.encode())


def _text(source: ProgramSource, node: ast.expr) -> bytes:
    return source.bytes[source.begin(node) : source.end(node)]


def _twin(name: str) -> bytes:
    return _OTHER_CALL[name].encode()


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int
