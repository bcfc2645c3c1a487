"""Solutions against tests: what passes, and what each kind of fault says."""

from dataclasses import replace

import pytest

from sounding.sandbox.run import Outcome
from sounding.textbook.exercises import Exercise
from sounding.textbook.reading import parse_case
from sounding.textbook.running import all_failures, failures
from tests.textbook.conftest import unsafe

Exercises = dict[str, Exercise]


def said(exercise: Exercise, solution: str, *tests: str) -> list[str]:
    cases = tuple(map(parse_case, tests)) or exercise.cases
    return failures(replace(exercise, cases=cases), solution, unsafe)


def test_every_shape_passes_its_tests(exercises: Exercises) -> None:
    results = list(all_failures(list(exercises.values()), unsafe, workers=2))
    assert [exercise.name for exercise, _ in results] == list(exercises)
    assert [failed for _, failed in results] == [[]] * len(exercises)


@pytest.mark.parametrize(
    ("body", "test", "message"),
    [
        ("return True", "f() == 1", "f() gave True, not 1"),
        ("return 1.0", "f() == 1", "f() gave 1.0, not 1"),
        ("return (1, 2)", "f() == [1, 2]", "f() gave (1, 2), not [1, 2]"),
        ("return [True]", "f() == [1]", "f() gave [True], not [1]"),
        ("return {1: 2.0}", "f() == {1: 2}", "f() gave {1: 2.0}, not {1: 2}"),
        ("return {True}", "f() == {1}", "f() gave {True}, not {1}"),
        ("return 0.1 + 0.21", "f() == 0.3", "f() gave 0.31, not 0.3"),
        ("raise KeyError(5)", "f() == 1", "KeyError: 5 (line 2)"),
        ("return 1", "f() raises ValueError", "f() does not raise ValueError"),
        ("raise KeyError(5)", "f() raises ValueError", "KeyError: 5 (line 2)"),
        ("while True: pass", "f() == 1", "it ran for more than 2 s"),
        ("__import__('os')._exit(3)", "f() == 1", "its process ended with status"),
        ("return list({'ab', 'cd', 'ef', 'gh'})", "f() == ['gh', 'cd', 'ab', 'ef']", "f() gave"),
    ],
)
def test_what_is_wrong_is_told(exercises: Exercises, body: str, test: str, message: str) -> None:
    (line,) = said(exercises["knot_rope"], f"def f():\n    {body}\n", test)
    assert line.startswith(f"test {test!r}: {message}")


@pytest.mark.parametrize(
    ("body", "test"),
    [
        ("return 0.1 + 0.2", "f() == 0.3"),
        ("return [0.1 + 0.2, {'a': (None, 1e-13)}]", "f() == [0.3, {'a': (None, 0.0)}]"),
        ("raise KeyError(5)", "f() raises LookupError"),
        ("print('noise'); return {1, 2}", "f() == {2, 1}"),
    ],
)
def test_values_are_compared_as_told(exercises: Exercises, body: str, test: str) -> None:
    assert said(exercises["knot_rope"], f"def f():\n    {body}\n", test) == []


def test_answers_that_follow_the_hashes_of_strings_are_noticed(exercises: Exercises) -> None:
    program = "def f():\n    return list({'ab', 'cd', 'ef', 'gh'})\n"
    order = unsafe("print(list({'ab', 'cd', 'ef', 'gh'}))").stdout.strip()
    (line,) = said(exercises["knot_rope"], program, f"f() == {order}")
    assert line.endswith("(with other hashes of strings)")


def test_no_test_sees_what_another_left_behind(exercises: Exercises) -> None:
    program = "seen = []\n\n\ndef f(x):\n    seen.append(x)\n    return len(seen)\n"
    assert said(exercises["knot_rope"], program, "f(1) == 1", "f(2) == 1") == []


def test_a_script_is_judged_by_what_it_prints_and_how_it_ends(exercises: Exercises) -> None:
    script = exercises["sum_columns_script"]
    wrong = script.solutions[0].replace("else total", "else -total")
    first, *rest = failures(script, wrong, unsafe)
    assert first.startswith("test 1: it printed '-3\\n-3\\n', not '3\\n3\\n'") and not rest
    crash = failures(script, "import sys\nsys.exit('no')\n", unsafe)
    assert "test 2: it ended with 1, not 0 no" in crash[1]
    reads = "print(open('in/a.txt').read(), end='')\n"
    case = replace(script.script_cases[0], files={"in/a.txt": "42\n"}, stdout="42\n")
    assert failures(replace(script, script_cases=(case,)), reads, unsafe) == []


def test_tests_must_notice_every_mutant(exercises: Exercises) -> None:
    buoy = exercises["test_buoy"]
    weak = "from subject import floats\n\n\ndef test_floats():\n    assert floats(0.5)\n"
    assert failures(buoy, weak, unsafe) == [
        "mutant 1: the tests pass it",
        "mutant 2: the tests pass it",
    ]
    wrong = weak.replace("0.5", "1.5")
    assert failures(buoy, wrong, unsafe)[0].startswith("subject: test_floats: AssertionError")


def test_a_program_that_never_answers_is_no_pass(exercises: Exercises) -> None:
    ended = Outcome("wall time", -9, "", "late", 1.0)
    (line,) = failures(exercises["knot_rope"], "", lambda program: ended)
    assert line == "ended by wall time (-9): late"
