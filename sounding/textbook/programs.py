"""Edit the text of a program without changing its behaviour.

Edits apply to the text at positions from the parser, so that layout, quotes and comments stay as
written.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sounding.textbook.exercises import Definition

# Programs that may read annotations at run time.
_READ_ANNOTATIONS = re.compile(
    r"dataclass|NamedTuple|TypedDict|Protocol|get_type_hints|annotations|singledispatch|overload"
    r"|TypeVar|Generic|ParamSpec|signature\("
)
_SPREAD_HEAD = re.compile(
    r"^(?P<begin> *(async )?def \w+\()\n(?P<arguments>[^()#]*?)\n *\):$", re.MULTILINE
)
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program split into imports and body, with the names that may clash with another's."""

    imports: tuple[tuple[str, str, str], ...]
    """(module, name, as): ("math", "", "") for `import math`."""
    body: str
    """Everything from the first statement that is not an import."""
    bound: frozenset[str]
    """Names that the body binds at its outermost level."""
    used: frozenset[str]
    """All words of the body, a superset of the names it reads."""


def split_program(text: str) -> Program:
    """Split a program into the imports at its top and the rest."""
    tree = ast.parse(text)
    imports: list[tuple[str, str, str]] = []
    lines = text.split("\n")
    end = 0
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports += [(alias.name, "", alias.asname or "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            imports += [(module, alias.name, alias.asname or "") for alias in node.names]
        else:
            break
        end = node.end_lineno or end
    body = "\n".join(lines[end:]).strip("\n") + "\n"
    return Program(
        imports=tuple(imports), body=body, bound=frozenset(bound_names(body)), used=words(body)
    )


def words(text: str) -> frozenset[str]:
    """Everything in a text that may be a name."""
    return frozenset(re.findall(r"[^\W\d]\w*", text))


def import_name(entry: tuple[str, str, str]) -> str:
    """The name that an import binds."""
    module, name, other = entry
    return other or name or module.partition(".")[0]


def import_lines(imports: Sequence[tuple[str, str, str]], used: frozenset[str]) -> list[str]:
    """Import statements in the usual order, without unused names."""
    needed = {entry for entry in imports if import_name(entry) in used or entry[0] == "__future__"}
    foreign = [f"import {entry[0]}" for entry in sorted(needed) if entry[0] == "pytest"]
    needed = {entry for entry in needed if entry[0] != "pytest"}
    plain = sorted(f"import {m}" + (f" as {a}" if a else "") for m, n, a in needed if not n)
    chosen: dict[str, list[str]] = {}
    for module, name, other in sorted(needed):
        if name:
            chosen.setdefault(module, []).append(name + (f" as {other}" if other else ""))
    froms = [f"from {module} import {', '.join(names)}" for module, names in chosen.items()]
    future = [line for line in froms if "__future__" in line]
    standard = future + plain + [line for line in froms if line not in future]
    return [*standard, *([""] * bool(standard and foreign)), *foreign]


def collide(one: Program, other: Program) -> bool:
    """True if two programs cannot share a file because one binds a name that the other reads."""
    if any(entry[0] == "__future__" for entry in (*one.imports, *other.imports)):
        return True
    for a, b in ((one, other), (other, one)):
        brought = {import_name(entry) for entry in a.imports if entry not in b.imports}
        if (a.bound | brought) & (b.used | {import_name(entry) for entry in b.imports}):
            return True
    return False


def bound_names(body: str) -> Iterator[str]:
    """Names that a program binds at its outermost level, except by imports at its top."""
    for node in ast.parse(body).body:
        if isinstance(node, Definition):
            yield node.name
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    yield inner.id
                elif isinstance(inner, Definition):
                    yield inner.name
                elif isinstance(inner, ast.Import | ast.ImportFrom):
                    yield from (alias.asname or alias.name for alias in inner.names)


# --------------------------------------------------------------------------------------------------
# Edits


Edit = tuple[int, int, bytes]  # begin and end in bytes, and what comes there


class ProgramSource:
    """A program's text as bytes, with the parser's positions as offsets."""

    def __init__(self, text: str) -> None:
        self.bytes = text.encode()
        self._starts = [0]
        for line in self.bytes.split(b"\n"):
            self._starts.append(self._starts[-1] + len(line) + 1)

    def at(self, line: int, column: int) -> int:
        """Offset of a line, from 1, and a byte in it, from 0."""
        return self._starts[line - 1] + column

    def begin(self, node: ast.expr | ast.arg | ast.stmt) -> int:
        """Offset of a node's first byte."""
        return self.at(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.arg | ast.stmt) -> int:
        """Offset of the byte after a node."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.at(node.end_lineno, node.end_col_offset)

    def edited(self, edits: Sequence[Edit]) -> str:
        """The text with all edits applied; they must not overlap."""
        result = self.bytes
        for begin, end, new in sorted(set(edits), reverse=True):
            result = result[:begin] + new + result[end:]
        return result.decode()


def strip_annotations(text: str) -> str:
    """Remove the annotations of arguments, results and local variables.

    Programs that may read annotations (data classes, protocols, overloads) stay unchanged.
    """
    if _READ_ANNOTATIONS.search(text):
        return text
    source, edits = ProgramSource(text), list[Edit]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            edits += _signature_edits(source, node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.AnnAssign) and inner.value is not None:
                    edits.append((source.end(inner.target), source.end(inner.annotation), b""))
    return _SPREAD_HEAD.sub(_joined_head, source.edited(edits))


def _joined_head(match: re.Match[str]) -> str:
    """A head of several lines on one, where it has become short enough."""
    arguments = " ".join(match["arguments"].split()).removesuffix(",")
    line = f"{match['begin']}{arguments}):"
    return line if len(line) <= 88 else match[0]


def _signature_edits(source: ProgramSource, node: FUNCTIONS) -> Iterator[Edit]:
    if node.returns is not None:
        arrow = source.bytes.rindex(b"->", 0, source.begin(node.returns))
        yield len(source.bytes[:arrow].rstrip()), source.end(node.returns), b""
    arguments = node.args
    several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in [*several, arguments.vararg, arguments.kwarg]:
        if argument is None or argument.annotation is None:
            continue
        begin = source.begin(argument) + len(argument.arg.encode())
        end = source.end(argument.annotation)
        default = re.compile(rb"\s*=\s*").match(source.bytes, end)
        yield (begin, default.end(), b"=") if default else (begin, end, b"")


@functools.lru_cache(maxsize=65536)
def requoted(text: str, quote: str) -> str:
    """Put this quote, " or ', around each string whose content allows it."""
    other = "'" if quote == '"' else '"'
    simple = re.compile(f"([a-zA-Z]*){other}([^\"'\\\\\n]*){other}")
    source, edits = ProgramSource(text), list[Edit]()
    lines = text.split("\n")
    for (row, column), (last, end) in _string_spans(text):
        literal = lines[row - 1][column:end]
        match = simple.fullmatch(literal) if row == last else None
        if match:
            begin = source.at(row, len(lines[row - 1][:column].encode()))
            new = f"{match[1]}{quote}{match[2]}{quote}".encode()
            edits.append((begin, begin + len(literal.encode()), new))
    return source.edited(edits)


def _string_spans(text: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of each string literal; since Python 3.12 f-strings are several tokens."""
    opens, closes = (getattr(tokenize, f"FSTRING_{kind}", None) for kind in ("START", "END"))
    depth, begin = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == opens:
            begin = begin if depth else token.start
            depth += 1
        elif token.type == closes:
            depth -= 1
            if not depth:
                yield begin, token.end
        elif token.type == tokenize.STRING and not depth:
            yield token.start, token.end


# --------------------------------------------------------------------------------------------------
# Documentation and places


def definition(text: str, name: str) -> Definition | None:
    """The function or class with this name at the outermost level."""
    for node in ast.parse(text).body:
        if isinstance(node, Definition) and node.name == name:
            return node
    return None


def insert_below_head(text: str, name: str, lines: Sequence[str]) -> str | None:
    """Insert indented lines at the start of a function's or class's body.

    None if the body is on the line of the head.
    """
    node = definition(text, name)
    assert node is not None
    first = node.body[0]
    begin = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    head = node.lineno if not isinstance(node, FUNCTIONS) else head_end(text, node)
    if first.lineno == head:
        return None
    all_lines = text.split("\n")
    while begin - 1 > head and not all_lines[begin - 2].partition("#")[0].strip():
        begin -= 1
    indented = [f"    {line}" if line else "" for line in lines]
    if isinstance(first, Definition) and indented[-1:] != [""]:
        indented.append("")
    return "\n".join([*all_lines[: begin - 1], *indented, *all_lines[begin - 1 :]])


def head_end(text: str, node: Definition) -> int:
    """The number of the line with the colon that ends a definition's head."""
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.start[0] < node.lineno or token.type != tokenize.OP:
            continue
        depth += (token.string in "([{") - (token.string in ")]}")
        if token.string == ":" and depth == 0:
            return token.start[0]
    return node.lineno


def insert_above(text: str, name: str, lines: Sequence[str]) -> str:
    """Insert lines above a definition and its decorators."""
    node = definition(text, name)
    assert node is not None
    begin = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    all_lines = text.split("\n")
    return "\n".join([*all_lines[: begin - 1], *lines, *all_lines[begin - 1 :]])


def can_be_method(body: str, name: str) -> bool:
    """True if a program is one function that may as well be a method."""
    tree = ast.parse(body)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return False
    function = tree.body[0]
    reads = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    tokens = tokenize.generate_tokens(io.StringIO(body).readline)
    spans = any(t.type == tokenize.STRING and t.start[0] != t.end[0] for t in tokens)
    return name not in reads and not spans and "self" not in reads


def as_method(body: str, *, static: bool) -> str:
    """Turn a function into a method, indented by four columns; a docstring may be added later."""
    if not static:
        body = re.sub(r"^def (\w+)\((?=\))", r"def \1(self", body, count=1, flags=re.MULTILINE)
        body = re.sub(
            r"^def (\w+)\((?!self)(\s*)", r"def \1(\2self, ", body, count=1, flags=re.MULTILINE
        )
    else:
        body = re.sub(r"^(?=@|def )", "@staticmethod\n", body, count=1, flags=re.MULTILINE)
    lines = body.rstrip("\n").split("\n")
    return "\n".join(f"    {line}" if line else "" for line in lines) + "\n"
