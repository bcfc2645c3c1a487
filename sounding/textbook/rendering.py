"""Render exercises as documents, in the forms that files take in an editor or a prompt.

A document is a file. It holds one exercise or several, each described by a docstring, a comment or
not at all, typed or untyped, with or without code below that calls it; or functions as methods of a
class; or a script; or a module with its tests. The same seed gives the same documents.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sounding.textbook.drawing import Draw
from sounding.textbook.examples import Below, below
from sounding.textbook.exercises import Exercise
from sounding.textbook.programs import (
    Program,
    as_method,
    can_be_method,
    collide,
    import_lines,
    requoted,
    split_program,
    strip_annotations,
    words,
)
from sounding.textbook.renaming import rename_locals
from sounding.textbook.telling import module_docstring, taken, told_program
from sounding.textbook.whole_files import joined, script_file, test_file

MAX_TOGETHER = 5


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A document, and code to check that its programs still behave as before."""

    path: str
    text: str
    exercises: tuple[Exercise, ...]
    proof: str = ""
    """Code to run after the text and before the tests of its exercises."""


@dataclass(frozen=True)
class _Style:
    """Choices that hold for a whole document."""

    typed: bool
    single_quotes: bool
    renamed: float
    """Share of local variables to rename."""


@dataclass(frozen=True)
class _Item:
    """An exercise and its program, perhaps changed."""

    exercise: Exercise
    program: Program


def render(exercises: Sequence[Exercise], variants: int, seed: int) -> Iterator[Rendered]:
    """Yield documents that contain every exercise `variants` times, in an order drawn by seed."""
    for variant in range(variants):
        draw = Draw(f"textbook {seed} {variant}")
        waiting = draw.shuffled(exercises)
        while waiting:
            first = waiting.pop()
            group = [first]
            if first.shape in ("function", "class") and draw.chance(0.35):
                group = _company(first, waiting, draw)
            document = _document(group, draw)
            held = {exercise.name for exercise in document.exercises}
            waiting += [exercise for exercise in group if exercise.name not in held]
            name = f"{first.area}/{first.topic}/{first.name}_{variant}.py"
            yield replace(document, path=name)


def _company(first: Exercise, waiting: list[Exercise], draw: Draw) -> list[Exercise]:
    """Add exercises from `waiting` for the same file: of the same topic, or of any."""
    group = [first]
    wanted = 2 + draw.below(MAX_TOGETHER - 1)
    same_topic = draw.chance(0.5)
    for other in list(reversed(waiting)):
        if len(group) == wanted:
            break
        if other.shape in ("function", "class") and (not same_topic or other.topic == first.topic):
            group.append(other)
            waiting.remove(other)
    return group


def _document(group: Sequence[Exercise], draw: Draw) -> Rendered:
    style = _Style(
        typed=draw.chance(0.6),
        single_quotes=draw.chance(0.15),
        renamed=0.7 if draw.chance(0.4) else 0.0,
    )
    shape = group[0].shape
    if shape == "script":
        text = script_file(group[0], _program(group[0], draw, style), draw)
        made = Rendered(path="", text=text, exercises=(group[0],))
    elif shape == "tests":
        made = Rendered(path="", text=test_file(group[0], draw), exercises=(group[0],))
    else:
        made = _module(group, draw, style)
    if style.single_quotes:
        made = replace(made, text=requoted(made.text, "'"))
    return made


# --------------------------------------------------------------------------------------------------
# Functions, classes and modules


def _module(group: Sequence[Exercise], draw: Draw, style: _Style) -> Rendered:
    items: list[_Item] = []
    for exercise in group:
        program = split_program(_program(exercise, draw, style))
        if not any(collide(program, item.program) for item in items):
            items.append(_Item(exercise, program))
    if draw.chance(0.12) and all(
        can_be_method(item.program.body, item.exercise.entry_point) for item in items
    ):
        return _methods(items, draw)
    top, told = _module_docstring(items, draw)
    told = [replace(item, program=told_program(item.exercise, item.program, draw)) for item in told]
    uses = _uses(items, draw)
    if len(items) == 1 and uses and uses[0].imports and draw.chance(0.25):
        return _two_files(replace(told[0], exercise=items[0].exercise), uses[0], top)
    bodies = [item.program.body.rstrip("\n") for item in told]
    tails = ["\n".join(use.lines) for use in uses]
    first = bool(tails) and "main" not in tails[0] and "def " in tails[0] and draw.chance(0.1)
    text = joined([*tails, *bodies] if first else [*bodies, *tails])
    imports = [entry for item in told for entry in item.program.imports]
    imports += [entry for use in uses for entry in use.imports]
    lines = import_lines(imports, words(text))
    return Rendered(
        path="",
        text=joined([_head(top, lines), text]),
        exercises=tuple(item.exercise for item in items),
        proof="\n".join(use.proof for use in uses if use.proof),
    )


def _head(top: Sequence[str], imports: Sequence[str]) -> str:
    return "\n".join([*top, *([""] if top and imports else []), *imports])


def _program(exercise: Exercise, draw: Draw, style: _Style) -> str:
    text = draw.one(exercise.solutions)
    if not style.typed and exercise.area != "typing":
        text = strip_annotations(text)
    return rename_locals(text, draw, style.renamed) if style.renamed else text


def _module_docstring(items: list[_Item], draw: Draw) -> tuple[list[str], list[_Item]]:
    """Return the lines of a module docstring, or none, and the items to describe below it.

    The docstring is a description of the only exercise, or the title of the common topic.
    """
    if len(items) == 1 and draw.chance(0.1):
        text, exercise = taken(items[0].exercise, draw)
        items = [replace(items[0], exercise=exercise)]
    elif len({item.exercise.topic for item in items}) == 1 and draw.chance(0.2):
        text = f"{items[0].exercise.title}."
    else:
        return [], items
    return module_docstring(text), items


def _uses(items: Sequence[_Item], draw: Draw) -> list[Below]:
    """Code below the programs: nothing in half of the files, else tests or a main part."""
    if draw.chance(0.5):
        return []
    style = draw.weighted(
        [
            ("asserts", 0.22),
            ("function", 0.3),
            ("parametrize", 0.1),
            ("unittest", 0.1),
            ("main", 0.13),
            ("prints", 0.15),
        ]
    )
    chosen = items if style in ("asserts", "function", "parametrize") else items[:1]
    uses = [use for item in chosen if (use := below(item.exercise, draw, style))]
    if style == "asserts" and uses:
        return [Below(tuple(line for use in uses for line in use.lines))]
    return uses


def _two_files(item: _Item, use: Below, top: Sequence[str]) -> Rendered:
    """A module and its test file, one below the other, each under a comment with its name."""
    exercise, program = item.exercise, item.program
    module = exercise.topic.replace("-", "_")
    tests = "\n".join(use.lines)
    needed = sorted(program.bound & words(tests))
    own = import_lines([*use.imports, *program.imports], words(tests))
    own = [*own, *([""] * bool(own))]
    code = joined([_head(top, import_lines(program.imports, program.used)), program.body])
    first = "\n".join([*own, f"from {module} import {', '.join(needed)}"])
    return Rendered(
        path="",
        text=f"# {module}.py\n{code}\n\n# test_{module}.py\n{joined([first, tests])}",
        exercises=(exercise,),
    )


def _methods(items: Sequence[_Item], draw: Draw) -> Rendered:
    """Functions as methods of one class."""
    static = draw.chance(0.6)
    kinds = ("Tools", "Helpers", "Functions", "Kit", "Operations")
    area = items[0].exercise.area.replace("-", " ").title().replace(" ", "")
    name = area.removesuffix("s") + draw.one(kinds)
    methods, proof = [], []
    for item in items:
        plain = static or item.program.body.startswith("@")
        entry = item.exercise.entry_point
        called = f"{name}{'' if plain else '()'}.{entry}"
        told = told_program(item.exercise, item.program, draw).body
        # The function does not call itself, so these calls are examples.
        told = re.sub(rf"(?<![\w.])(?<!def ){entry}\(", f"{called}(", told)
        methods.append(as_method(told, static=plain).rstrip("\n"))
        proof.append(f"{entry} = {called}")
    titles = {item.exercise.title for item in items}
    head = [f"class {name}:"]
    if len(titles) == 1 and draw.chance(0.5):
        head += [f'    """{titles.pop()}."""', ""]
    body = "\n".join(head) + "\n" + "\n\n".join(methods)
    imports = [entry for item in items for entry in item.program.imports]
    return Rendered(
        path="",
        text=joined(["\n".join(import_lines(imports, words(body))), body]),
        exercises=tuple(item.exercise for item in items),
        proof="\n".join(proof),
    )
