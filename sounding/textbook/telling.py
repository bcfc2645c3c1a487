"""Write an exercise's description into its program: as a docstring or comment, with examples."""

import textwrap
from dataclasses import replace

from sounding.textbook.drawing import Draw
from sounding.textbook.examples import short_examples
from sounding.textbook.exercises import Exercise
from sounding.textbook.programs import Program, insert_above, insert_below_head

WIDTH = 88


def told_program(exercise: Exercise, program: Program, draw: Draw) -> Program:
    """The program with the exercise's description written into it, or unchanged."""
    name, body = exercise.entry_point, program.body
    how = draw.weighted(
        [("docstring", 0.62), ("comment", 0.2), ("inside", 0.05), ("both", 0.05), ("none", 0.08)]
    )
    if how == "comment" or (how == "both" and len(exercise.descriptions) > 1):
        first, exercise = taken(exercise, draw)
        body = insert_above(body, name, comment(exercise, first, draw))
    if how in ("docstring", "both"):
        lines = docstring(exercise, draw)
        documented = insert_below_head(body, name, lines)
        body = documented or insert_above(
            body, name, comment(exercise, request(exercise, draw), draw)
        )
    if how == "inside":
        lines = [f"# {line}" for line in wrapped(request(exercise, draw), WIDTH - 6)]
        body = insert_below_head(body, name, lines) or body
    return replace(program, body=body)


def taken(exercise: Exercise, draw: Draw) -> tuple[str, Exercise]:
    """Split off one description: return it and the exercise with the others."""
    one = request(exercise, draw)
    others = tuple(text for text in exercise.descriptions if text != one)
    return one, replace(exercise, descriptions=others or (one,))


def docstring(exercise: Exercise, draw: Draw) -> list[str]:
    """Lines of a docstring: one or two descriptions, perhaps examples."""
    if len(exercise.descriptions) > 1 and draw.chance(0.3):
        first, second = draw.some(exercise.descriptions, 2)
        paragraphs = [wrapped(first, WIDTH - 8), wrapped(second, WIDTH - 4)]
    else:
        paragraphs = [wrapped(request(exercise, draw), WIDTH - 8)]
    paragraphs += example_paragraphs(exercise, draw)
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


def request(exercise: Exercise, draw: Draw) -> str:
    """A random description; the first is likelier, since others may depend on it."""
    return exercise.descriptions[0] if draw.chance(0.5) else draw.one(exercise.descriptions)


def example_paragraphs(exercise: Exercise, draw: Draw) -> list[list[str]]:
    """Some tests as a paragraph of a docstring, or none."""
    style = draw.weighted([("", 0.35), (">>>", 0.33), ("assert", 0.14), ("==", 0.1), ("->", 0.08)])
    if not style:
        return []
    cases = draw.some(exercise.cases, 1 + draw.below(4))
    lines = short_examples(cases, style, exercise.solutions[0])
    if not lines:
        return []
    if style == ">>>":
        return [lines]
    title = draw.weighted([("", 0.4), ("Example:", 0.3), ("Examples:", 0.3)])
    if style == "assert" or not title:
        return [lines]
    return [[title, *(f"    {line}" for line in lines)]]


def comment(exercise: Exercise, first: str, draw: Draw) -> list[str]:
    """A description as a comment, perhaps with a label, a second description or examples."""
    before = draw.weighted([("", 0.75), ("TODO: ", 0.08), ("Task: ", 0.1), ("Exercise: ", 0.07)])
    lines = wrapped(before + first, WIDTH - 2)
    others = [text for text in exercise.descriptions if text != first]
    if others and draw.chance(0.2):
        lines += wrapped(draw.one(others), WIDTH - 2)
    if draw.chance(0.3):
        style = draw.one(("==", "->", ">>>"))
        lines += short_examples(
            draw.some(exercise.cases, 1 + draw.below(3)), style, exercise.solutions[0]
        )
    return [f"# {line}" for line in lines]


def wrapped(text: str, width: int) -> list[str]:
    """Wrap a text into lines and keep its own line ends."""
    lines: list[str] = []
    for line in text.split("\n"):
        pieces = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        lines += pieces or [""]
    return lines


def module_docstring(text: str) -> list[str]:
    """A text as the lines of a module docstring."""
    lines = wrapped(text, WIDTH - 8)
    raw = "r" if "\\" in text else ""
    if len(lines) == 1 and not text.endswith('"'):
        return [f'{raw}"""{lines[0]}"""']
    return [f'{raw}"""{lines[0]}', *lines[1:], '"""']
