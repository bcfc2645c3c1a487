"""Documents of exercises, in the shapes that editors and people who ask see.

A document is a file: one exercise or several, each told by a docstring, a comment or not at all,
typed or not, used below or not; functions of a class; a script; a module with its tests. The same
seed gives the same documents.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sounding.textbook.drawing import Draw
from sounding.textbook.examples import Below, below, short_examples
from sounding.textbook.exercises import Exercise, ScriptCase
from sounding.textbook.programs import (
    Program,
    as_method,
    can_be_method,
    collide,
    definition,
    import_lines,
    insert_above,
    insert_below_head,
    rename_locals,
    requoted,
    split_program,
    strip_annotations,
    words,
)

WIDTH = 88
MAX_TOGETHER = 5
_Import = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A document, and how to see that what it holds still does what it did."""

    path: str
    text: str
    exercises: tuple[Exercise, ...]
    proof: str = ""
    """Code to run after the text, before the tests of its exercises."""


@dataclass(frozen=True)
class _Style:
    """What is the same all over a document."""

    typed: bool
    single_quotes: bool
    renamed: float
    """Share of the local variables that get another name."""


@dataclass(frozen=True)
class _Item:
    """One exercise's program, told and perhaps changed."""

    exercise: Exercise
    program: Program


def render(exercises: Sequence[Exercise], variants: int, seed: int) -> Iterator[Rendered]:
    """Documents in which every exercise comes `variants` times, in an order drawn by seed."""
    for variant in range(variants):
        draw = Draw(f"textbook {seed} {variant}")
        waiting = draw.shuffled(exercises)
        number = 0
        while waiting:
            first = waiting.pop()
            group = [first]
            if first.shape in ("function", "class") and draw.chance(0.35):
                group = _company(first, waiting, draw)
            document = _document(group, draw)
            number += 1
            name = f"{first.area}/{first.topic}/{first.name}_{variant}.py"
            yield replace(document, path=name)


def _company(first: Exercise, waiting: list[Exercise], draw: Draw) -> list[Exercise]:
    """Other exercises for the same file, taken from those that wait: of its topic, or of any."""
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
        made = _script(group[0], draw, style)
    elif shape == "tests":
        made = _test_file(group[0], draw, style)
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
    told = [replace(item, program=_told(item, draw)) for item in told]
    uses = _uses(items, draw)
    if len(items) == 1 and uses and uses[0].imports and draw.chance(0.25):
        return _two_files(told[0], uses[0], top)
    bodies = [item.program.body.rstrip("\n") for item in told]
    tails = ["\n".join(use.lines) for use in uses]
    first = bool(tails) and "main" not in tails[0] and "def " in tails[0] and draw.chance(0.1)
    text = _joined([*tails, *bodies] if first else [*bodies, *tails])
    imports = [entry for item in told for entry in item.program.imports]
    imports += [entry for use in uses for entry in use.imports]
    lines = import_lines(imports, words(text))
    return Rendered(
        path="",
        text=_joined(
            ["\n".join([*top, *lines]) if not (top and lines) else _head(top, lines), text]
        ),
        exercises=tuple(item.exercise for item in items),
        proof="\n".join(use.proof for use in uses if use.proof),
    )


def _head(top: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join([*top, "", *lines])


def _joined(parts: Sequence[str]) -> str:
    """Parts of a file, two empty lines between."""
    return "\n\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def _program(exercise: Exercise, draw: Draw, style: _Style) -> str:
    text = draw.one(exercise.solutions)
    if not style.typed and exercise.area != "typing":
        text = strip_annotations(text)
    return rename_locals(text, draw, style.renamed) if style.renamed else text


def _told(item: _Item, draw: Draw) -> Program:
    """The program with what is asked written into it."""
    exercise, name, body = item.exercise, item.exercise.entry_point, item.program.body
    how = draw.weighted(
        [("docstring", 0.62), ("comment", 0.2), ("inside", 0.05), ("both", 0.05), ("none", 0.08)]
    )
    if how == "comment" or (how == "both" and len(exercise.descriptions) > 1):
        first, exercise = _taken(exercise, draw)
        body = insert_above(body, name, _comment(exercise, first, draw))
    if how in ("docstring", "both"):
        lines = _docstring(exercise, draw)
        documented = insert_below_head(body, name, lines)
        body = documented or insert_above(
            body, name, _comment(exercise, _request(exercise, draw), draw)
        )
    if how == "inside":
        lines = [f"# {line}" for line in _wrapped(_request(exercise, draw), WIDTH - 6)]
        body = insert_below_head(body, name, lines) or body
    return replace(item.program, body=body)


def _taken(exercise: Exercise, draw: Draw) -> tuple[str, Exercise]:
    """One description, and the exercise with the others, so that none is told twice."""
    one = _request(exercise, draw)
    others = tuple(text for text in exercise.descriptions if text != one)
    return one, replace(exercise, descriptions=others or (one,))


def _docstring(exercise: Exercise, draw: Draw) -> list[str]:
    """A docstring's lines: a description, perhaps another one, perhaps examples."""
    if len(exercise.descriptions) > 1 and draw.chance(0.3):
        first, second = draw.some(exercise.descriptions, 2)
        paragraphs = [_wrapped(first, WIDTH - 8), _wrapped(second, WIDTH - 4)]
    else:
        paragraphs = [_wrapped(_request(exercise, draw), WIDTH - 8)]
    paragraphs += _examples(exercise, draw)
    lines = paragraphs[0]
    for paragraph in paragraphs[1:]:
        lines = [*lines, "", *paragraph]
    raw = "r" if any("\\" in line for line in lines) else ""
    closing = '"""'
    if len(lines) == 1 and not lines[0].endswith('"') and draw.chance(0.9):
        result = [f'{raw}"""{lines[0]}{closing}']
    elif draw.chance(0.15):
        result = [f'{raw}"""', *lines, closing]
    else:
        result = [f'{raw}"""{lines[0]}', *lines[1:], closing]
    return [*result, ""] if exercise.signature.startswith("class ") else result


def _request(exercise: Exercise, draw: Draw) -> str:
    """A description; the first more often, since others may lean on it."""
    return exercise.descriptions[0] if draw.chance(0.4) else draw.one(exercise.descriptions)


def _examples(exercise: Exercise, draw: Draw) -> list[list[str]]:
    style = draw.weighted([("", 0.35), (">>>", 0.33), ("assert", 0.14), ("==", 0.1), ("->", 0.08)])
    if not style:
        return []
    cases = draw.some(exercise.cases, 1 + draw.below(4))
    lines = short_examples(cases, style)
    if not lines:
        return []
    if style == ">>>":
        return [lines]
    title = draw.weighted([("", 0.4), ("Example:", 0.3), ("Examples:", 0.3)])
    if style == "assert" or not title:
        return [lines]
    return [[title, *(f"    {line}" for line in lines)]]


def _comment(exercise: Exercise, request: str, draw: Draw) -> list[str]:
    """What is asked as a comment: plain, as a task to do, with a second text or examples."""
    before = draw.weighted([("", 0.75), ("TODO: ", 0.08), ("Task: ", 0.1), ("Exercise: ", 0.07)])
    lines = _wrapped(before + request, WIDTH - 2)
    others = [text for text in exercise.descriptions if text != request]
    if others and draw.chance(0.2):
        lines += _wrapped(draw.one(others), WIDTH - 2)
    if draw.chance(0.3):
        style = draw.one(("==", "->", ">>>"))
        lines += short_examples(draw.some(exercise.cases, 1 + draw.below(3)), style)
    return [f"# {line}" for line in lines]


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines; line ends that it has are kept."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(
            line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=""
        ) or [""]
    return lines


def _module_docstring(items: list[_Item], draw: Draw) -> tuple[list[str], list[_Item]]:
    """Perhaps lines on top, what is asked of the only exercise or the topic of all; and what is
    left to tell."""
    if len(items) == 1 and draw.chance(0.1):
        text, exercise = _taken(items[0].exercise, draw)
        items = [replace(items[0], exercise=exercise)]
    elif len({item.exercise.topic for item in items}) == 1 and draw.chance(0.2):
        text = f"{items[0].exercise.title}."
    else:
        return [], items
    return _quoted_docstring(text), items


def _quoted_docstring(text: str) -> list[str]:
    """A text as the docstring of a module."""
    lines = _wrapped(text, WIDTH - 8)
    raw = "r" if "\\" in text else ""
    if len(lines) == 1 and not text.endswith('"'):
        return [f'{raw}"""{lines[0]}"""']
    return [f'{raw}"""{lines[0]}', *lines[1:], '"""']


def _uses(items: Sequence[_Item], draw: Draw) -> list[Below]:
    """What stands below: nothing in half of the files, else tests or a main part."""
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
    """A module and the file of its tests, one below the other, each with its name above."""
    exercise, program = item.exercise, item.program
    module = exercise.topic.replace("-", "_")
    tests = "\n".join(use.lines)
    needed = sorted(program.bound & words(tests))
    own = import_lines([*use.imports, *program.imports], words(tests))
    own = [*own, *([""] * bool(own))]
    code = _joined([_head(top, import_lines(program.imports, program.used)), program.body])
    first = "\n".join([*own, f"from {module} import {', '.join(needed)}"])
    return Rendered(
        path="",
        text=f"# {module}.py\n{code}\n\n# test_{module}.py\n{_joined([first, tests])}",
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
        told = replace(item, program=_told(item, draw)).program.body
        methods.append(as_method(told, static=plain).rstrip("\n"))
        entry = item.exercise.entry_point
        proof.append(f"{entry} = {name}{'' if plain else '()'}.{entry}")
    titles = {item.exercise.title for item in items}
    head = [f"class {name}:"]
    if len(titles) == 1 and draw.chance(0.5):
        head += [f'    """{titles.pop()}."""', ""]
    body = "\n".join(head) + "\n" + "\n\n".join(methods)
    imports = [entry for item in items for entry in item.program.imports]
    return Rendered(
        path="",
        text=_joined(["\n".join(import_lines(imports, words(body))), body]),
        exercises=tuple(item.exercise for item in items),
        proof="\n".join(proof),
    )


# --------------------------------------------------------------------------------------------------
# Scripts and tests


def _script(exercise: Exercise, draw: Draw, style: _Style) -> Rendered:
    text = _program(exercise, draw, style)
    description = _request(exercise, draw)
    file = exercise.name + ".py"
    example = _run_lines(exercise.script_cases[0], file) if draw.chance(0.4) else []
    lines = [*_wrapped(description, WIDTH), *([""] * bool(example)), *example]
    raw = "r" if any("\\" in line for line in lines) else ""
    if draw.chance(0.5) and not lines[-1].endswith('"') and '"""' not in "\n".join(lines):
        one = len(lines) == 1
        top = [f'{raw}"""{lines[0]}' + ('"""' if one else "")]
        top += [] if one else [*lines[1:], '"""']
    else:
        top = [f"# {line}".rstrip() for line in lines]
    if draw.chance(0.25):
        top.insert(0, "#!/usr/bin/env python3")
    body = "\n".join([*top, *([] if top[-1].startswith("#") and draw.chance(0.5) else [""])])
    return Rendered(path="", text=f"{body}\n{text}", exercises=(exercise,))


def _run_lines(case: ScriptCase, file: str) -> list[str]:
    """A run in a shell; none where it would need files, or is long."""
    if case.files or case.exit or not case.stdout or any(" " in a or not a for a in case.args):
        return []
    if len(case.stdin) > 60 or case.stdout.count("\n") > 6 or '"""' in case.stdout:
        return []
    if any(c in case.stdin for c in "'\\%\t"):
        return []
    given = f"printf '{case.stdin}' | ".replace("\n", "\\n") if case.stdin else ""
    command = " ".join(["$", f"{given}python {file}", *case.args])
    return [f"    {line}".rstrip() for line in [command, *case.stdout.rstrip("\n").split("\n")]]


def _test_file(exercise: Exercise, draw: Draw, style: _Style) -> Rendered:
    """Tests alone, or below their subject: as a second file or in the same one."""
    subject = split_program(exercise.subject)
    tests = split_program(draw.one(exercise.solutions))
    module = _subject_name(exercise)
    description = _request(exercise, draw)
    lines = [f"# {line}" for line in _wrapped(description, WIDTH - 2)]
    if draw.chance(0.4) and not description.endswith('"') and "\\" not in description:
        wrapped = _wrapped(description, WIDTH - 8)
        lines = [f'"""{wrapped[0]}', *wrapped[1:]]
        lines = [f'{lines[0]}"""'] if len(lines) == 1 else [*lines, '"""']
    others = [entry for entry in tests.imports if entry[0] != "subject"]
    whole = any(entry[0] == "subject" and not entry[1] for entry in tests.imports)
    how = draw.weighted([("two files", 0.5), ("tests", 0.25), ("one file", 0.25)])
    if how == "one file" and not whole and not collide(subject, replace(tests, imports=())):
        text = f"{subject.body}\n{tests.body}"
        imports = import_lines([*subject.imports, *others], words(text))
        comment = "" if lines[0].startswith('"') else "\n".join(lines) + "\n"
        parts = ["\n".join(imports), subject.body, comment + tests.body]
        return Rendered(path="", text=_joined(parts), exercises=(exercise,))
    names = [replace_module(entry, module) for entry in tests.imports if entry[0] == "subject"]
    head = [*lines, *([""] * lines[0].startswith('"')), *import_lines(others, words(tests.body))]
    head += ([""] if others else []) + import_lines(names, words(tests.body) | {module})
    body = tests.body.replace("subject.", f"{module}.") if whole else tests.body
    file = _joined(["\n".join(head), body])
    if how == "tests":
        return Rendered(path="", text=file, exercises=(exercise,))
    text = f"# {module}.py\n{exercise.subject}\n\n# test_{module}.py\n{file}"
    return Rendered(path="", text=text, exercises=(exercise,))


def replace_module(entry: _Import, module: str) -> _Import:
    """An import of the subject by the name that its file gets."""
    return (module, entry[1], entry[2])


def _subject_name(exercise: Exercise) -> str:
    name = exercise.name.removeprefix("test_").removeprefix("tests_of_").removesuffix("_tests")
    return name if definition(exercise.subject, name) is None else f"{name}_module"
