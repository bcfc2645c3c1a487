"""Checks of a whole textbook: exercises that duplicate one another or an excluded text.

`running` checks that solutions pass their tests.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sounding.data.overlap import MIN_LINE_CHARACTERS, Overlap
from sounding.tasks.code import read_rows
from sounding.textbook import likeness
from sounding.textbook.exercises import Exercise
from sounding.textbook.likeness import Text


def repeated(exercises: Sequence[Exercise]) -> Iterator[str]:
    """Yield a line for each pair of exercises with nearly the same program or description."""
    programs = [text for exercise in exercises for text in likeness.programs_of(exercise)]
    requests = [text for exercise in exercises for text in likeness.requests_of(exercise)]
    yield from likeness.like_programs(programs, programs)
    yield from likeness.like_requests(requests, requests)


def kept_out(exercises: Sequence[Exercise], path: Path) -> Iterator[str]:
    """Yield a line for each exercise that repeats words, code or names of a JSONL file.

    Raises ValueError naming the line if a row has another form.
    """
    theirs = [
        Text(f"{path.name}, line {number}", text)
        for number, row in read_rows(path)
        for text in _strings(row)
    ]
    programs = [text for text in theirs if "\n" in text.text or "def " in text.text]
    requests = [text for text in theirs if text not in programs]
    names = likeness.names_in(text.text for text in programs)
    overlap = Overlap(t.text for t in theirs if len(t.text) >= MIN_LINE_CHARACTERS)
    ours = [text for exercise in exercises for text in likeness.programs_of(exercise)]
    yield from likeness.like_programs(ours, programs)
    asked = [text for exercise in exercises for text in likeness.requests_of(exercise)]
    yield from likeness.like_requests(asked, requests)
    for exercise in exercises:
        for name in sorted({exercise.name, exercise.entry_point} & names):
            yield f"{exercise.name}: {path.name} has a function {name}; choose another name"
        whole = "\n".join([*exercise.descriptions, *exercise.solutions, exercise.subject])
        if overlap.touches(whole):
            yield f"{exercise.name} repeats a line, or most of a text, of {path.name}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.replace("\r\n", "\n")
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list):
        if all(isinstance(entry, str) for entry in value):
            yield "\n".join(value)
        else:
            for entry in value:
                yield from _strings(entry)


def counts(exercises: Sequence[Exercise]) -> dict[str, Any]:
    """Count exercises by shape, difficulty and area."""
    by: dict[str, dict[str, int]] = {"shape": {}, "difficulty": {}, "area": {}}
    for exercise in exercises:
        for key, table in by.items():
            value = str(getattr(exercise, key))
            table[value] = table.get(value, 0) + 1
    return {
        "exercises": len(exercises),
        "topics": len({exercise.topic for exercise in exercises}),
        "held_out": sum(exercise.held_out for exercise in exercises),
        "solutions": sum(len(exercise.solutions) for exercise in exercises),
        **{key: dict(sorted(table.items())) for key, table in by.items()},
    }
