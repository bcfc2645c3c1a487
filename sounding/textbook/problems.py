"""Held-out exercises as evaluation problems: functions to write and lines to fill in."""

import ast
import textwrap
from collections.abc import Sequence

from sounding.tasks import gaps
from sounding.tasks.code import Problem
from sounding.textbook.examples import assertions, double_quoted, short_examples
from sounding.textbook.exercises import Case, Exercise
from sounding.textbook.programs import definition, head_end

WIDTH = 88
NUM_EXAMPLES = 3


def function_problem(exercise: Exercise) -> Problem | None:
    """A function to write: the code above it, its head, and a docstring with examples.

    The docstring has all descriptions. None for other shapes, if no solution ends with the
    function, or if there is no test that `check` can state exactly.
    """
    test = check_function(exercise.cases)
    if exercise.shape != "function" or not test:
        return None
    name = exercise.entry_point
    for solution in sorted(exercise.solutions, key=lambda text: len(ast.parse(text).body)):
        node = definition(solution, name)
        assert node is not None
        lines = solution.rstrip("\n").split("\n")
        head = head_end(solution, node)
        if node.end_lineno != len(lines) or node.body[0].lineno == head:
            continue
        return Problem(
            task_id=f"textbook/{exercise.name}",
            prompt="\n".join([*lines[:head], *_docstring(exercise)]) + "\n",
            canonical_solution="\n".join(lines[head:]) + "\n",
            test=test,
            entry_point=name,
        )
    return None


def infilling_problems(exercise: Exercise) -> list[Problem]:
    """The first solution with one line removed, below the description as a comment."""
    test = check_function(exercise.cases)
    if not exercise.entry_point or not test:
        return []
    heading = textwrap.wrap(exercise.descriptions[0], WIDTH - 2, break_long_words=False)
    return gaps.line_gaps(
        f"textbook/{exercise.name}",
        "\n".join(f"# {line}" for line in heading),
        exercise.solutions[0].rstrip("\n"),
        test=test,
        entry_point=exercise.entry_point,
    )


def _docstring(exercise: Exercise) -> list[str]:
    paragraphs = [
        textwrap.wrap(text, WIDTH - 8, break_long_words=False) for text in exercise.descriptions
    ]
    examples = short_examples(exercise.cases[:NUM_EXAMPLES], ">>>", exercise.solutions[0])
    lines: list[str] = []
    for paragraph in [*paragraphs, examples]:
        lines += [""] * bool(lines and paragraph) + paragraph
    raw = "r" if any("\\" in line for line in lines) else ""
    lines = [f'{raw}"""{lines[0]}', *lines[1:], '"""']
    return [f"    {line}".rstrip() for line in lines]


def check_function(cases: Sequence[Case]) -> str:
    """The function `check` with all cases that can be stated exactly; "" if there are none."""
    lines: list[str] = []
    for case in cases:
        stated = assertions(case)
        if case.raises:
            stated = [
                *case.before,
                "try:",
                f"    {case.code}",
                f"except {case.raises}:",
                "    pass",
                "else:",
                f"    raise AssertionError('no {case.raises}')",
            ]
        lines += [f"    {double_quoted(line)}" for line in stated]
    return "def check(candidate):\n" + "\n".join(lines) + "\n" if lines else ""
