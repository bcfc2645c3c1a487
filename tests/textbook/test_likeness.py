"""What counts as a repetition: renamed and reworded copies do, common idioms do not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sounding.textbook.checking import counts, kept_out, repeated
from sounding.textbook.exercises import Exercise

WALK = """
def walk_the_shore(points, step):
    visited = []
    place = 0
    while place < len(points):
        visited.append(points[place] * 2)
        place += step
    if not visited:
        raise ValueError("no point was visited")
    return visited
"""
RENAMED = WALK.replace("points", "cities").replace("place", "at").replace("visited", "seen")
OTHER = """
def tallest_tower(blocks):
    heights = sorted({block.height for block in blocks if block.height > 0}, reverse=True)
    return {rank: height for rank, height in enumerate(heights[:3], start=1)}
"""


def made(base: Exercise, name: str, program: str, *requests: str) -> Exercise:
    return replace(base, name=name, solutions=(program,), descriptions=requests)


def test_renamed_programs_are_one(exercises: dict[str, Exercise]) -> None:
    base = exercises["knot_rope"]
    one = made(base, "one", WALK, "a")
    (line,) = repeated([one, made(base, "two", RENAMED, "b"), made(base, "three", OTHER, "c")])
    assert "one" in line and "two" in line and "apart from names" in line
    assert list(repeated([one])) == []


def test_small_programs_may_be_alike(exercises: dict[str, Exercise]) -> None:
    small = "def first_name(people):\n    return people[0].name\n"
    ours = [made(exercises["knot_rope"], name, small, name) for name in ("one", "two")]
    assert list(repeated(ours)) == []


def test_requests_in_the_same_words_are_one(exercises: dict[str, Exercise]) -> None:
    base = exercises["knot_rope"]
    asked = "Count the boats that left a harbour before the storm."
    again = "Write a function to count boats which left the harbour before a storm."
    other = "Count the birds that reached an island after the winter."
    ours = [made(base, str(n), "x = 1\n", text) for n, text in enumerate((asked, again, other))]
    (line,) = repeated(ours)
    assert line.startswith("1 is asked for like 0") or line.startswith("0 is asked for like 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"code": RENAMED}, "is like rows.jsonl, line 2"),
        ({"code": RENAMED.replace("\n", "\r\n")}, "is like rows.jsonl, line 2"),
        ({"text": "Walk along the shore and double every point."}, "asked for like rows.jsonl"),
        ({"code": "def walk_the_shore(x):\n    return x\n"}, "has a function walk_the_shore"),
        ({"tests": ['        raise ValueError("no point was visited")']}, "repeats a line"),
        ({"code": OTHER, "deep": [{"text": "Something else."}]}, ""),
    ],
)
def test_texts_to_keep_out(
    tmp_path: Path, exercises: dict[str, Exercise], row: dict[str, object], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    request = "Walk along the shore, double every point"
    ours = made(exercises["knot_rope"], "walk_the_shore", WALK, request)
    found = list(kept_out([ours], path))
    assert any(message in line for line in found) if message else not found


def test_exercises_are_counted_by_topic_and_shape(exercises: dict[str, Exercise]) -> None:
    found = counts(list(exercises.values()))
    assert (found["exercises"], found["topics"], found["held_out"], found["solutions"]) == (
        5,
        2,
        1,
        6,
    )
    assert found["shape"] == {"class": 1, "function": 2, "script": 1, "tests": 1}
    assert found["difficulty"] == {"1": 1, "2": 3, "3": 1}
