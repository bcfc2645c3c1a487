"""A small textbook made here: one topic to train on and one held out, with every shape."""

from pathlib import Path

import pytest

from sounding.sandbox.run import Limits, Outcome, run_python
from sounding.sandbox.trial import Trial, Verdict, judge
from sounding.textbook.exercises import Exercise
from sounding.textbook.reading import read_textbook

TIDES = """
topic = "tides"
area = "lists"
title = "Tides and levels"
held_out = false

[[exercise]]
name = "tide_ranges"
shape = "function"
difficulty = 2
signature = "def tide_ranges(levels: list[int], gap: int = 1) -> list[int]:"
descriptions = [
  "Return how far the tide rose between each level and the one gap steps later.",
  "The result is empty where levels are fewer than gap + 1; a gap below 1 raises ValueError.",
]
solutions = ['''
from itertools import islice


def tide_ranges(levels: list[int], gap: int = 1) -> list[int]:
    if gap < 1:
        raise ValueError("gap must be at least 1")
    later = islice(levels, gap, None)
    return [high - low for low, high in zip(levels, later)]
''', '''
def tide_ranges(levels: list[int], gap: int = 1) -> list[int]:
    if gap < 1:
        raise ValueError("gap must be at least 1")
    result: list[int] = []
    for index in range(gap, len(levels)):
        total = levels[index] - levels[index - gap]
        result.append(total)
    return result
''']
tests = [
  "tide_ranges([1, 4, 2]) == [3, -2]",
  "tide_ranges([1, 4, 2], 2) == [1]",
  "tide_ranges([]) == []",
  "tide_ranges([5]) == []",
  "levels = [1, 2]; tide_ranges(levels, gap=5) == []",
  "tide_ranges([1, 2], 0) raises ValueError",
]

[[exercise]]
name = "harbour_gauge"
shape = "class"
difficulty = 3
signature = "class HarbourGauge:"
descriptions = [
  "A gauge that remembers the highest level it was shown.",
  "show(level) takes a reading, highest is the largest so far or None, mean() its average.",
]
solutions = ['''
class HarbourGauge:
    def __init__(self) -> None:
        self._levels: list[float] = []

    def show(self, level: float) -> None:
        self._levels.append(level)

    @property
    def highest(self) -> float | None:
        return max(self._levels, default=None)

    def mean(self) -> float:
        return sum(self._levels) / len(self._levels)
''']
tests = [
  "HarbourGauge().highest == None",
  "g = HarbourGauge(); g.show(2.5); g.show(1.0); g.highest == 2.5",
  "g = HarbourGauge(); g.show(1.0); g.show(2.0); g.mean() == 1.5",
  "g = HarbourGauge(); g.show(-1.0); g.highest == -1.0",
  "HarbourGauge().mean() raises ZeroDivisionError",
]

[[exercise]]
name = "sum_columns_script"
shape = "script"
difficulty = 2
signature = ""
descriptions = ["Print the sum of each line of numbers.", "-m prints the mean of a line."]
solutions = ['''
import sys

for line in sys.stdin:
    numbers = [int(word) for word in line.split()]
    total = sum(numbers)
    print(total / len(numbers) if "-m" in sys.argv[1:] else total)
''']
tests = [
  { stdin = "1 2\\n3\\n", stdout = "3\\n3\\n" },
  { stdin = "", stdout = "" },
  { stdin = "1 2\\n", args = ["-m"], stdout = "1.5\\n" },
]

[[exercise]]
name = "test_buoy"
shape = "tests"
difficulty = 2
signature = ""
descriptions = ["Test a function that tells if a buoy floats.", "Cover both sides and the edge."]
subject = '''
def floats(density: float) -> bool:
    if density <= 0:
        raise ValueError("density must be positive")
    return density < 1.0
'''
mutants = ['''
def floats(density: float) -> bool:
    if density <= 0:
        raise ValueError("density must be positive")
    return density <= 1.0
''', '''
def floats(density: float) -> bool:
    return density < 1.0
''', '''
def floats(density: float) -> bool:
    if density <= 0:
        raise ValueError("density must be positive")
    return density > 1.0
''']
solutions = ['''
import pytest

from subject import floats


@pytest.mark.parametrize("density, expected", [(0.5, True), (1.0, False), (7.8, False)])
def test_floats(density, expected):
    assert floats(density) is expected


def test_density_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        floats(0.0)
''']
"""

HELD_OUT = """
topic = "ropes"
area = "strings"
title = "Ropes and knots"
held_out = true

[[exercise]]
name = "knot_rope"
shape = "function"
difficulty = 1
signature = "def knot_rope(length: int, every: int) -> str:"
descriptions = ["Draw a rope of '-' with a knot 'o' at multiples of every.", "Both are positive."]
solutions = ['''
def knot_rope(length: int, every: int) -> str:
    drawn = ""
    for place in range(1, length + 1):
        drawn += "o" if place % every == 0 else "-"
    return drawn
''']
tests = [
  "knot_rope(4, 2) == '-o-o'",
  "knot_rope(3, 5) == '---'",
  "knot_rope(3, 1) == 'ooo'",
  "knot_rope(1, 1) == 'o'",
  "knot_rope(5, 0) raises ZeroDivisionError",
]
"""


def unsafe(program: str) -> Outcome:
    """What is run here was written here."""
    return run_python(program, Limits(wall_seconds=30.0), isolate=False)


def judged(trial: Trial) -> Verdict:
    """The same for answers and the tests of problems."""
    return judge(trial, Limits(wall_seconds=30.0), isolate=False)


def write_topic(folder: Path, text: str) -> Path:
    """A file in the folder that its area and topic ask for."""
    rows = dict(line.split(" = ", 1) for line in text.splitlines()[:4] if line)
    path = folder / rows["area"].strip('"') / f"{rows['topic'].strip(chr(34))}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The textbook as files."""
    root = tmp_path / "textbook"
    root.mkdir()
    write_topic(root, TIDES)
    write_topic(root, HELD_OUT)
    return root


@pytest.fixture
def exercises(folder: Path) -> dict[str, Exercise]:
    """Its exercises by name."""
    return {e.name: e for topic in read_textbook(folder) for e in topic.exercises}
