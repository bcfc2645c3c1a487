"""Read the textbook: one TOML file per topic. Errors name the rule of the format that is broken."""

import ast
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sounding.textbook.exercises import SHAPES, Case, Exercise, ScriptCase, Shape, Topic
from sounding.textbook.rules import check_code, check_signature, check_solution

MIN_TESTS = 5
MIN_SCRIPT_TESTS = 3
MIN_MUTANTS = 3

Kind = TypeVar("Kind")
_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_RAISES = re.compile(r"(?P<code>.+) raises (?P<error>[A-Za-z_][\w.]*)")


def read_textbook(path: Path) -> list[Topic]:
    """Read the topics of a file, or of all TOML files under a folder, in order of file names.

    Raises ValueError with a line for each file or exercise that breaks a rule, and for each
    duplicate name of a topic or exercise.
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
    """Return an error message for each duplicate name."""
    seen: set[str] = set()
    doubles: dict[str, None] = {}
    for name in names:
        if name in seen:
            doubles[name] = None
        seen.add(name)
    return [f"duplicate {what} {name}; names must be unique in the textbook" for name in doubles]


def read_topic(path: Path) -> Topic:
    """Read a topic from a file. Raises ValueError naming file, exercise and rule, one per line."""
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
    signature = check_signature(_value(row, "signature", str), shape)
    descriptions = _texts(row, "descriptions", 2, 4)
    for description in descriptions:
        _description(description)
    solutions = tuple(map(_program, _texts(row, "solutions", 1, 3)))
    for solution in solutions:
        check_solution(solution, shape, signature)
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
            check_code(text, f"mutant {number}" if number else "subject", docstrings=True)
        if subject in mutants:
            raise ValueError("a mutant equals the subject; change one line of it")
        return {"subject": subject, "mutants": mutants}
    tests = _value(row, "tests", list)
    least = MIN_SCRIPT_TESTS if shape == "script" else MIN_TESTS
    if len(tests) < least:
        raise ValueError(f"it has {len(tests)} tests; at least {least} are required")
    if shape == "script":
        return {"script_cases": tuple(map(_script_case, tests))}
    cases = tuple(map(parse_case, tests))
    if len({case.text for case in cases}) < len(cases):
        raise ValueError("duplicate test; each must be different")
    return {"cases": cases}


def parse_case(text: Any) -> Case:
    """Parse a test: `STATEMENT; EXPRESSION == LITERAL` or `STATEMENT; CODE raises NAME`.

    Raises ValueError for any other form.
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
        raise ValueError("files of a test must be a table of strings")
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file {name!r} of a test must be inside the script's folder")
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
# Values of tables


def _keys(table: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; valid keys: {', '.join(sorted(known))}")


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
        raise ValueError(f"{key} must be a list of non-empty strings")
    if not least <= len(texts) <= most:
        raise ValueError(f"it has {len(texts)} {key}; {least} to {most} are required")
    if len(set(texts)) < len(texts):
        raise ValueError(f"duplicate entry in {key}; each must be different")
    return tuple(texts)


def _description(text: str) -> None:
    if text != text.strip() or '"""' in text:
        raise ValueError(
            f"description {text!r:.60} must not have white space at its ends or triple quotes"
        )


def _program(text: str) -> str:
    return text.strip("\n") + "\n"
