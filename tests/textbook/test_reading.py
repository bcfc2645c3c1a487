"""The format: what is read, and every rule that refuses."""

from pathlib import Path

import pytest

from sounding.textbook.exercises import Exercise
from sounding.textbook.reading import parse_case, read_textbook, read_topic
from tests.textbook.conftest import HELD_OUT, TIDES, write_topic


def test_topics_are_read_in_order_of_their_names(folder: Path) -> None:
    tides, ropes = read_textbook(folder)
    assert (tides.topic, tides.held_out, len(tides.exercises)) == ("tides", False, 4)
    assert (ropes.topic, ropes.held_out) == ("ropes", True)
    knot = ropes.exercises[0]
    assert (knot.area, knot.title, knot.entry_point) == ("strings", "Ropes and knots", "knot_rope")
    assert knot.cases[0].code == "knot_rope(4, 2)" and knot.cases[0].expected == "'-o-o'"
    assert knot.cases[4].raises == "ZeroDivisionError" and knot.cases[4].expected is None


def test_statements_of_a_test_come_before_its_last_one() -> None:
    case = parse_case("s = 'a; b'; t = s.split('; '); t[-1] == 'b'")
    assert case.before == ("s = 'a; b'", "t = s.split('; ')")
    assert (case.code, case.expected) == ("t[-1]", "'b'")
    assert parse_case("p.x = 3 raises AttributeError").code == "p.x = 3"


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("f(1)", "must end in EXPRESSION == LITERAL"),
        ("f(1) == 2 == 3", "must end in EXPRESSION == LITERAL"),
        ("f(1) < 2", "must end in EXPRESSION == LITERAL"),
        ("f(1) == g(2)", "the right side must be a literal"),
        ("f(1) ==", "is not Python"),
        ("for x in y: f(x) == 1", "must be simple statements on one line"),
        ("a = 1\nf(a) == 1", "must be simple statements on one line"),
        ("", "must be simple statements on one line"),
        (5, "must be a string"),
    ],
)
def test_tests_of_another_form_are_refused(test: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_case(test)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('topic = "tides"', 'topic = "ebb"', "tides.toml: topic = 'ebb' must be the name of the"),
        ('area = "lists"', 'area = "sets"', "area = 'sets' must be the name of the folder"),
        ("held_out = false", 'held_out = "no"', "held_out = 'no' must be a bool"),
        ("held_out = false", "", "held_out is missing"),
        ("held_out = false", "held_out = false\nnote = 1", "unknown key 'note'"),
        ('"tide_ranges"', '"tideRanges"', "exercise 1 .tideRanges.: name = 'tideRanges' must be"),
        ('shape = "function"', 'shape = "lambda"', "shape = 'lambda' must be one of function"),
        ("difficulty = 3", "difficulty = 6", "harbour_gauge.: difficulty = 6 must be 1 to 5"),
        ("difficulty = 3", "difficulty = true", "difficulty = True must be a int"),
        ('gap: int = 1) -> list[int]:"', 'gap=1):"', "must be typed"),
        ('signature = "class HarbourGauge:"', 'signature = "def f() -> int:"', "must be a class's"),
        (
            'signature = "class HarbourGauge:"',
            'signature = "class Gauge:"',
            "does not define Gauge",
        ),
        (
            "(levels: list[int], gap: int = 1) -> list[int]:\n    if gap < 1",
            "(levels: list[int], gap: int = 2) -> list[int]:\n    if gap < 1",
            "which differs from",
        ),
        ("from itertools import islice", "import numpy", "imports numpy, which is not in the"),
        ("from itertools import islice", "import uuid", "uuid, which is not deterministic"),
        ("        self._levels: list[float] = []", '        "A docstring."', "has a docstring"),
        (
            "    return density < 1.0\n'''\nmutants",
            "\treturn density < 1.0\n'''\nmutants",
            "not Python",
        ),
        (
            "later = islice(levels, gap, None)",
            "later = islice(levels, gap, None)  ",
            "trailing white space",
        ),
        ("import sys\n", "import sys  " + "#" * 99 + "\n", "longer than 100"),
        ('"tide_ranges([]) == []",', '"tide_ranges([5]) == []",', "duplicate test"),
        (
            '"tide_ranges([]) == []",\n  "tide_ranges([5]) == []",',
            "",
            "has 4 tests; at least 5 are",
        ),
        ('stdout = "3\\n3\\n"', 'output = "3"', "unknown key 'output'"),
        (
            'stdin = "", stdout',
            'files = { "../x" = "" }, stdout',
            "must be inside the script's folder",
        ),
        (', "-m prints the mean of a line."', "", "has 1 descriptions; 2 to 4 are required"),
        ('"-m prints the mean of a line."', '" -m"', "must not have white space at its ends"),
        ("from subject import floats", "from fractions import floats", "must import from subject"),
        ("<= 1.0", "< 1.0", "a mutant equals the subject"),
    ],
)
def test_a_broken_rule_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TIDES
    path = tmp_path / "lists" / "tides.toml"
    path.parent.mkdir()
    path.write_text(TIDES.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_topic(path)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    write_topic(tmp_path, TIDES.replace("difficulty = 3", "difficulty = 9"))
    write_topic(tmp_path, HELD_OUT.replace("difficulty = 1", "difficulty = 0"))
    with pytest.raises(ValueError, match=r"difficulty = 9(.|\n)*difficulty = 0"):
        read_textbook(tmp_path)


def test_names_are_unique_over_all_topics(tmp_path: Path) -> None:
    write_topic(tmp_path, HELD_OUT)
    write_topic(tmp_path, HELD_OUT.replace('"ropes"', '"lines"'))
    with pytest.raises(ValueError, match="duplicate exercise knot_rope"):
        read_textbook(tmp_path)
    with pytest.raises(ValueError, match="has no topics"):
        read_textbook(tmp_path / "strings" / "nothing")


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("topic =")
    with pytest.raises(ValueError, match="is not TOML"):
        read_topic(path)


def test_an_exercise_knows_what_its_tests_call(exercises: dict[str, Exercise]) -> None:
    points = [exercise.entry_point for exercise in exercises.values()]
    assert points == ["tide_ranges", "HarbourGauge", "", "", "knot_rope"]
