"""Reading the textbook: one TOML file a topic, every rule of the format refused by name.

The format is told in textbook/README.md.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

Kind = TypeVar("Kind")
Shape = Literal["function", "class", "module", "script", "tests"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

MIN_TESTS = 5
MIN_SCRIPT_TESTS = 3
MIN_MUTANTS = 3
MAX_LINE_CHARACTERS = 100
# What a file of tests may use of pytest; see `running`.
PYTEST = "pytest"

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_RAISES = re.compile(r"(?P<code>.+) raises (?P<error>[A-Za-z_][\w.]*)")
_UNSTEADY = {"requests", "secrets", "uuid", "socket", "subprocess", "urllib.request"}


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
        node = _signature_node(self.signature)
        return node.name if node else ""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """The exercises of one file."""

    topic: str
    area: str
    title: str
    held_out: bool
    exercises: tuple[Exercise, ...]


def read_textbook(path: Path) -> list[Topic]:
    """The topics of a file, or of all TOML files under a folder, in order of their names.

    Raises ValueError with a line for each file or exercise that breaks a rule, and for a name of a
    topic or an exercise that comes twice.
    """
    if path.is_file():
        paths = [path]
    else:
        paths = sorted(path.glob("*/*.toml")) or sorted(path.glob("*.toml"))
    if not paths:
        raise ValueError(f"{path} has no topics; give a TOML file, or a folder of AREA/TOPIC.toml")
    topics, faults = [], []
    for file in paths:
        try:
            topics.append(read_topic(file))
        except ValueError as error:
            faults.append(str(error))
    faults += twice("topic", [topic.topic for topic in topics])
    faults += twice("exercise", [e.name for topic in topics for e in topic.exercises])
    if faults:
        raise ValueError("\n".join(faults))
    return topics


def twice(what: str, names: Sequence[str]) -> list[str]:
    """A complaint for each name that comes more than once."""
    seen: set[str] = set()
    doubles: dict[str, None] = {}
    for name in names:
        if name in seen:
            doubles[name] = None
        seen.add(name)
    return [f"the {what} {name} comes twice; names are unique over all" for name in doubles]


def read_topic(path: Path) -> Topic:
    """The topic of a file. Raises ValueError naming file, exercise and rule, one a line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    try:
        _keys(table, {"topic", "area", "title", "held_out", "exercise"})
        topic, area = _slug(table, "topic"), _slug(table, "area")
        title, held_out = _text(table, "title"), _value(table, "held_out", bool)
        if topic != path.stem:
            raise ValueError(f"topic = {topic!r} must be the name of the file")
        if area != path.resolve().parent.name:
            raise ValueError(f"area = {area!r} must be the name of the folder")
        rows = _value(table, "exercise", list)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    exercises, faults = [], []
    for number, row in enumerate(rows, 1):
        name = row.get("name") if isinstance(row, dict) else None
        where = f"{path}: exercise {number} ({name})"
        try:
            exercises.append(_exercise(row, topic, area, title, held_out))
        except ValueError as error:
            faults.append(f"{where}: {error}")
    if faults or not exercises:
        raise ValueError("\n".join(faults) or f"{path}: a topic must have exercises")
    return Topic(topic=topic, area=area, title=title, held_out=held_out, exercises=tuple(exercises))


def _exercise(row: Any, topic: str, area: str, title: str, held_out: bool) -> Exercise:
    common = {"name", "shape", "difficulty", "signature", "descriptions", "solutions"}
    if not isinstance(row, dict):
        raise ValueError("an exercise must be a table")
    shape = row.get("shape")
    if shape not in SHAPES:
        raise ValueError(f"shape = {shape!r} must be one of {', '.join(SHAPES)}")
    _keys(row, common | ({"subject", "mutants"} if shape == "tests" else {"tests"}))
    name, difficulty = _text(row, "name"), _value(row, "difficulty", int)
    if not _SNAKE.fullmatch(name):
        raise ValueError(f"name = {name!r} must be snake_case")
    if difficulty not in range(1, 6):
        raise ValueError(f"difficulty = {difficulty} must be 1 to 5")
    signature = _signature(row, shape)
    descriptions = _texts(row, "descriptions", 2, 4)
    for description in descriptions:
        _description(description)
    solutions = tuple(map(_program, _texts(row, "solutions", 1, 3)))
    for solution in solutions:
        _solution(solution, shape, signature)
    exercise = Exercise(
        name=name,
        area=area,
        topic=topic,
        title=title,
        held_out=held_out,
        shape=shape,
        difficulty=difficulty,
        signature=signature,
        descriptions=descriptions,
        solutions=solutions,
        **_tests(row, shape),
    )
    return exercise


def _tests(row: dict[str, Any], shape: Shape) -> dict[str, Any]:
    if shape == "tests":
        subject = _program(_text(row, "subject"))
        mutants = tuple(map(_program, _texts(row, "mutants", MIN_MUTANTS, 12)))
        for number, text in enumerate((subject, *mutants)):
            _code(text, f"mutant {number}" if number else "subject", docstrings=True)
        if subject in mutants:
            raise ValueError("a mutant is the subject itself")
        return {"subject": subject, "mutants": mutants}
    tests = _value(row, "tests", list)
    least = MIN_SCRIPT_TESTS if shape == "script" else MIN_TESTS
    if len(tests) < least:
        raise ValueError(f"it has {len(tests)} tests; {least} are the least")
    if shape == "script":
        return {"script_cases": tuple(map(_script_case, tests))}
    cases = tuple(map(parse_case, tests))
    if len({case.text for case in cases}) < len(cases):
        raise ValueError("a test comes twice")
    return {"cases": cases}


def parse_case(text: Any) -> Case:
    """A test from its line: `STATEMENT; EXPRESSION == LITERAL` or `STATEMENT; CODE raises NAME`.

    Raises ValueError for another form.
    """
    if not isinstance(text, str):
        raise ValueError(f"test {text!r:.60} must be a string")
    where = f"test {text!r}"
    raises = _RAISES.fullmatch(text)
    try:
        statements = ast.parse(raises["code"] if raises else text).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{where} is not Python: {error}") from None
    if not statements or "\n" in text or any(hasattr(s, "body") for s in statements):
        raise ValueError(f"{where} must be simple statements on one line, divided by '; '")
    *before, last = statements
    lines = tuple(ast.unparse(statement) for statement in before)
    if raises:
        code = ast.unparse(last)
        return Case(text=text, before=lines, code=code, expected=None, raises=raises["error"])
    if not (
        isinstance(last, ast.Expr)
        and isinstance(last.value, ast.Compare)
        and len(last.value.ops) == 1
        and isinstance(last.value.ops[0], ast.Eq)
    ):
        raise ValueError(f"{where} must end in EXPRESSION == LITERAL, or raises NAME")
    right = last.value.comparators[0]
    try:
        ast.literal_eval(right)
    except (ValueError, TypeError):
        raise ValueError(f"{where}: the right side must be a literal") from None
    return Case(
        text=text,
        before=lines,
        code=ast.unparse(last.value.left),
        expected=ast.unparse(right),
        raises=None,
    )


def _script_case(row: Any) -> ScriptCase:
    if not isinstance(row, dict):
        raise ValueError(f"test {row!r:.60} of a script must be a table with stdout")
    _keys(row, {"stdin", "args", "stdout", "files", "exit"})
    files = row.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise ValueError("files of a test must be a table of texts")
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file {name!r} of a test must lie in the script's folder")
    args = row.get("args", [])
    if not isinstance(args, list) or not all(isinstance(argument, str) for argument in args):
        raise ValueError("args of a test must be a list of strings")
    return ScriptCase(
        stdin=_value(row, "stdin", str) if "stdin" in row else "",
        args=tuple(args),
        files=files,
        stdout=_value(row, "stdout", str),
        exit=_value(row, "exit", int) if "exit" in row else 0,
    )


# --------------------------------------------------------------------------------------------------
# Programs


def _solution(text: str, shape: Shape, signature: str) -> None:
    tree = _code(text, "solution", docstrings=False)
    if shape == "tests":
        _test_file(tree)
    elif PYTEST in _imported(tree):
        raise ValueError("a solution imports pytest, which only shape tests may")
    if signature:
        wanted = _signature_node(signature)
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
        raise ValueError("a solution of shape tests must have functions test_*")
    if "subject" not in _imported(tree):
        raise ValueError("a solution of shape tests must import from subject")


def _code(text: str, what: str, *, docstrings: bool) -> ast.Module:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{what} is not Python: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise ValueError(f"{what}, line {number} is longer than {MAX_LINE_CHARACTERS}")
        if "\t" in line or line != line.rstrip():
            raise ValueError(f"{what}, line {number} has a tab or blanks at its end")
    if not docstrings:
        for node in ast.walk(tree):
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, kinds) and ast.get_docstring(node) is not None:
                raise ValueError(f"{what} has a docstring; descriptions are kept apart")
    for module in _imported(tree):
        top = module.partition(".")[0]
        if module in _UNSTEADY:
            raise ValueError(f"{what} imports {module}, which is not the same every time")
        if top not in sys.stdlib_module_names and top not in ("subject", PYTEST):
            raise ValueError(f"{what} imports {module}, which is not in the standard library")
    return tree


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _signature(row: dict[str, Any], shape: Shape) -> str:
    signature = _value(row, "signature", str)
    if shape in ("script", "tests"):
        if signature:
            raise ValueError(f"signature = {signature!r} must be empty for shape {shape}")
        return ""
    node = _signature_node(signature)
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


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _signature_node(signature: str) -> Definition | None:
    if not signature:
        return None
    try:
        body = ast.parse(signature + " ...").body
    except SyntaxError:
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], Definition) else None


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


# --------------------------------------------------------------------------------------------------
# Values of tables


def _keys(table: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _value(table: dict[str, Any], key: str, kind: type[Kind]) -> Kind:
    if key not in table:
        raise ValueError(f"{key} is missing")
    value = table[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key} = {value!r:.60} must be a {kind.__name__}")
    return value


def _slug(table: dict[str, Any], key: str) -> str:
    text = _text(table, key)
    if not _SLUG.fullmatch(text):
        raise ValueError(f"{key} = {text!r} must be lower-case words joined by '-'")
    return text


def _text(table: dict[str, Any], key: str) -> str:
    text = _value(table, key, str)
    if not text.strip():
        raise ValueError(f"{key} must not be empty")
    return text


def _texts(table: dict[str, Any], key: str, least: int, most: int) -> tuple[str, ...]:
    texts = _value(table, key, list)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{key} must be texts that are not empty")
    if not least <= len(texts) <= most:
        raise ValueError(f"it has {len(texts)} {key}; {least} to {most} are asked for")
    if len(set(texts)) < len(texts):
        raise ValueError(f"one of {key} comes twice")
    return tuple(texts)


def _description(text: str) -> None:
    if text != text.strip() or '"""' in text:
        raise ValueError(f"description {text!r:.60} has blanks at its ends or triple quotes")


def _program(text: str) -> str:
    return text.strip("\n") + "\n"
