"""Names in Python source: which are read while unbound, and which are never read.

This is a simplified model of execution. Reads and bindings of each scope are in order of
evaluation, and every branch counts as taken. A read without an earlier binding is unbound, unless a
loop around both may have run the binding before. Functions run after their module is complete, so
their free names may be bound anywhere outside them. Attributes are only those of `self`, in classes
whose bases are all known to add none.
"""

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_BUILTINS = frozenset(dir(builtins)) | {
    *("__file__", "__name__", "__doc__", "__path__", "__spec__", "__package__", "__loader__"),
    *("__class__", "__module__", "__qualname__", "__builtins__", "__annotations__"),
}
_ADDS_ATTRIBUTES = ("__getattr__", "__getattribute__", "__setattr__", "__slots__")
_PLAIN_BASES = ("object", "ABC", "Protocol", "Generic")

Where = tuple[str, str]  # qualified name of a scope, name


class Names(NamedTuple):
    """Names of a module, each with the scope that uses it."""

    unbound: frozenset[Where]
    """Names read where nothing can have bound them. Attributes begin with a dot."""
    unread: frozenset[Where]
    """Names bound in a function, including parameters, and never read."""


@dataclass
class _Binding:
    at: int
    loops: tuple[int, ...]
    initial: bool
    """False if it needs an earlier value of the name itself, as `x += 1` does."""


@dataclass
class _Scope:
    name: str
    kind: str  # "module", "function", "class"
    parent: "_Scope | None"
    bindings: dict[str, list[_Binding]] = field(default_factory=dict)
    reads: list[tuple[str, int, tuple[int, ...]]] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    """Names read in this scope or in nested ones."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Names declared global or nonlocal."""
    opaque: bool = False
    """True if it may bind any name: a star import."""


def find_names(tree: ast.Module, known: Iterable[str] = ()) -> Names:
    """Analyse a module; `known` are names bound in omitted parts of it."""
    visitor = _Visitor()
    for name in known:
        visitor.bind(name)
    visitor.visit(tree)
    return Names(frozenset(_unbound(visitor)), frozenset(_unread(visitor.scopes)))


def module_names(tree: ast.Module) -> tuple[frozenset[str], bool]:
    """Names that a module binds, and True if a star import may bind others."""
    visitor = _Visitor()
    visitor.visit(tree)
    outer = visitor.scopes[0]
    names = set(outer.bindings)
    for scope in visitor.scopes:
        names |= {name for name, what in scope.elsewhere.items() if what == "global"}
    return frozenset(names), any(scope.opaque for scope in visitor.scopes)


def _unbound(visitor: "_Visitor") -> Iterator[Where]:
    scopes = visitor.scopes
    opaque = any(scope.opaque for scope in scopes)
    everywhere = {
        name for scope in scopes for name, what in scope.elsewhere.items() if what == "global"
    }
    for scope in scopes:
        for name, at, loops in scope.reads:
            owner = _owner(scope, name)
            if owner is None:
                known = name in everywhere or name in _BUILTINS or opaque
            elif owner is scope:
                known = _bound_before(scope.bindings[name], at, loops) or (
                    scope.kind != "function" and _known_outside(scope, name, opaque)
                )
            else:
                known = True
            if not known:
                yield scope.name, name
    yield from visitor.unknown_attributes()


def _known_outside(scope: _Scope, name: str, opaque: bool) -> bool:
    """True if a name not yet bound in a class body or module may come from outside."""
    above = scope.parent
    return name in _BUILTINS or opaque or (above is not None and _owner(above, name) is not None)


def _owner(scope: _Scope, name: str) -> _Scope | None:
    """The scope that a name belongs to; None if nothing binds it."""
    if scope.elsewhere.get(name) != "global":
        if name in scope.bindings and name not in scope.elsewhere:
            return scope
        above = scope.parent
        while above is not None and above.parent is not None:
            if above.kind == "function" and name in above.bindings:
                return above
            above = above.parent
    outer = scope
    while outer.parent is not None:
        outer = outer.parent
    return outer if name in outer.bindings else None


def _bound_before(bindings: list[_Binding], at: int, loops: tuple[int, ...]) -> bool:
    return any(
        one.initial and (one.at < at or (loops and one.loops and one.loops[0] == loops[0]))
        for one in bindings
    )


def _unread(scopes: list[_Scope]) -> Iterator[Where]:
    for scope in scopes:
        if scope.kind == "function":
            for name in scope.bindings:
                if name not in scope.read and name not in scope.elsewhere and name[0] != "_":
                    yield scope.name, name


class _Visitor(ast.NodeVisitor):
    """Fills scopes in the order of evaluation."""

    def __init__(self) -> None:
        self._scope = _Scope("", "module", None)
        self.scopes = [self._scope]
        self._at = 0
        self._loops: tuple[int, ...] = ()
        self._deferred: list[tuple[_Scope, ast.AST, tuple[int, ...]]] = []
        self._classes: list[ast.ClassDef] = []
        self._attributes: dict[str, tuple[ast.ClassDef, set[str], set[str]]] = {}

    # ----------------------------------------------------------------------------------------------
    # Events

    def bind(self, name: str, *, initial: bool = True) -> None:
        """Record that the current scope binds a name now."""
        self._at += 1
        scope = self._scope
        if scope.elsewhere.get(name) == "nonlocal":
            return
        scope.bindings.setdefault(name, []).append(_Binding(self._at, self._loops, initial))

    def _read(self, name: str) -> None:
        self._at += 1
        self._scope.reads.append((name, self._at, self._loops))
        scope: _Scope | None = self._scope
        while scope is not None:
            scope.read.add(name)
            scope = scope.parent

    def _enter(self, name: str, kind: str) -> _Scope:
        scope = _Scope(f"{self._scope.name}.{name}", kind, self._scope)
        self.scopes.append(scope)
        return scope

    def _inside(self, scope: _Scope, nodes: Iterable[ast.AST]) -> None:
        outer, loops = self._scope, self._loops
        self._scope, self._loops = scope, ()
        for node in nodes:
            self.visit(node)
        self._scope, self._loops = outer, loops

    def _all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # ----------------------------------------------------------------------------------------------
    # Expressions

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)
        elif isinstance(node.ctx, ast.Store):
            self.bind(node.id, initial=node.id not in self._changing)
        else:
            self._read(node.id)  # `del`

    _changing: frozenset[str] = frozenset()
    """Names that the statement reads before it binds them."""

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        scope = self._scope
        while scope.name.endswith("<comprehension>") and scope.parent is not None:
            scope = scope.parent
        inner, self._scope = self._scope, scope
        self.bind(node.target.id)
        self._scope = inner

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._arguments_outside(node.args)
        scope = self._enter("<lambda>", "function")
        self._inside(scope, [*_parameters(node.args), node.body])

    def _comprehension(self, node: ast.AST) -> None:
        assert isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp)
        first, *others = node.generators
        self.visit(first.iter)
        parts: list[ast.AST] = [first.target, *first.ifs]
        for other in others:
            parts += [other.iter, other.target, *other.ifs]
        parts += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        # Evaluated now: a name of the function around it must be bound already.
        scope = self._enter("<comprehension>", "function")
        self._inside(scope, parts)
        for name, _, _ in scope.reads:
            if name not in scope.bindings and self._scope.kind != "class":
                self._scope.reads.append((name, self._at, self._loops))

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        if self._classes and isinstance(node.value, ast.Name) and node.value.id == "self":
            _, given, used = self._attributes[id_of(self._classes[-1])]
            (used if isinstance(node.ctx, ast.Load) else given).add(node.attr)

    # ----------------------------------------------------------------------------------------------
    # Statements

    def visit_Assign(self, node: ast.Assign) -> None:
        before = len(self._scope.reads)
        self.visit(node.value)
        self._changing = frozenset(name for name, _, _ in self._scope.reads[before:])
        self._all(node.targets)
        self._changing = frozenset()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._all([node.annotation, node.value])
        if node.value is not None or self._scope.kind == "class":
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            name = node.target.id
            self._at += 1
            self._scope.reads.append((name, self._at, self._loops))  # of no use by itself
            self.bind(name, initial=False)
        else:
            self.visit(node.target)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._loop([node.target, *node.body])
        self._all(node.orelse)

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> None:
        self._loop([node.test, *node.body])
        self._all(node.orelse)

    def _loop(self, nodes: Iterable[ast.AST]) -> None:
        self._at += 1
        outer, self._loops = self._loops, (*self._loops, self._at)
        self._all(nodes)
        self._loops = outer

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self._scope.opaque = True
            else:
                self.bind(alias.asname or alias.name)

    def visit_Global(self, node: ast.Global) -> None:
        self._scope.elsewhere.update(dict.fromkeys(node.names, "global"))

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self._scope.elsewhere.update(dict.fromkeys(node.names, "nonlocal"))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._all([node.type])
        if node.name:
            self.bind(node.name)
        self._all(node.body)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self._all([node.pattern])
        if node.name:
            self.bind(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self.bind(node.rest)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._all(node.decorator_list)
        self._arguments_outside(node.args)
        self._all([node.returns])
        self.bind(node.name)
        scope = self._enter(node.name, "function")
        self._inside(scope, [*_type_parameters(node), *_parameters(node.args), *node.body])

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._all(node.decorator_list)
        scope = self._enter(node.name, "class")
        self._attributes[id_of(node)] = (node, set(), set())
        self._classes.append(node)
        self._inside(scope, [*_type_parameters(node), *node.bases, *node.keywords, *node.body])
        self._classes.pop()
        self.bind(node.name)

    def visit_arg(self, node: ast.arg) -> None:
        self.bind(node.arg)

    def visit_TypeVar(self, node: ast.AST) -> None:
        self.bind(getattr(node, "name", "_"))

    visit_ParamSpec = visit_TypeVarTuple = visit_TypeVar

    def _arguments_outside(self, arguments: ast.arguments) -> None:
        """Visit defaults and annotations, which belong to the enclosing scope."""
        self._all([*arguments.defaults, *arguments.kw_defaults])
        self._all(parameter.annotation for parameter in _parameters(arguments))

    def unknown_attributes(self) -> Iterator[Where]:
        """Attributes of `self` that a class reads and nothing sets."""
        for node, given, used in self._attributes.values():
            plain = all(_last_name(base) in _PLAIN_BASES for base in node.bases)
            if not plain or node.keywords or node.decorator_list:
                continue
            members = {one for part in node.body for one in _bound_by(part)}
            if members & {*_ADDS_ATTRIBUTES}:
                continue
            for name in used - given - members:
                if not name.startswith("__"):
                    yield node.name, "." + name


def id_of(node: ast.ClassDef) -> str:
    """A key that is unique to a class within one tree."""
    return f"{node.name}:{node.lineno}"


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return found + [one for one in (arguments.vararg, arguments.kwarg) if one is not None]


def _type_parameters(node: ast.AST) -> list[ast.AST]:
    return list(getattr(node, "type_params", []))  # Python 3.12


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _bound_by(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of a class body defines."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield part.name
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
