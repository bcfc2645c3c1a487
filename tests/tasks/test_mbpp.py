"""MBPP rows as functions to write and lines to fill in. The rows here are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from sounding.tasks.code import grade, unfairness
from sounding.tasks.mbpp import fair_problems, function_problem, infilling_problems, read_mbpp
from tests.tasks.test_code import unsafe

CODE = """import math\r
def unused(x):\r
\treturn x\r
def area(radius):\r
\t'''The area.'''\r
\t# a comment\r
\tsquare = radius * radius\r
\tif radius < 0:\r
\t\traise ValueError(\r
\t\t\t"negative")\r
\tresult = math.pi * square\r
\tdebug = 12345\r
\treturn result"""


def row(number: int = 11, **changes: Any) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": "Write a function\nto find an area.",
        "code": CODE,
        "test_list": ["assert round(area(1)) == 3", "assert round(area(2)) == 13"],
        "test_setup_code": "",
        "challenge_test_list": [],
        **changes,
    }


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_only_the_ids_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "m", row(600), row(510), row(10), row(11))
    assert [one.number for one in read_mbpp(path)] == [11, 510]
    assert [one.number for one in read_mbpp(path, range(600, 700))] == [600]
    with pytest.raises(ValueError, match="no rows with ids from 1 to 2"):
        read_mbpp(path, range(1, 3))
    with pytest.raises(ValueError, match="line 2 has the task_id 11 again"):
        read_mbpp(write(tmp_path / "m", row(11), row(11)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_id": "11"}, "task_id = '11' must be an integer"),
        ({"test_list": []}, "test_list must be a list of assert lines"),
        ({"code": 1}, "has 1 for 'code'"),
        ({"test_setup_code": 1}, "has 1 for 'test_setup_code'"),
        (
            {"test_list": ["area(1)"]},
            r"line 1: test_list\[0\] = 'area\(1\)': nothing in it asserts",
        ),
        ({"test_list": ["assert area("]}, r"line 1: test_list\[0\] = .*: line 1"),
        ({"test_list": ["assert 1", "assert '\ud800'"]}, r"half a surrogate .* 'test_list\[1\]'"),
        ({"test_setup_code": "check = 1"}, "test_setup_code with the tests: .* check"),
        ({"code": "\udc00"}, "half a surrogate pair, .udc00, in 'code'"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mbpp(write(tmp_path / "m", {**row(), **changes}))


def test_a_function_to_write(tmp_path: Path) -> None:
    [one] = read_mbpp(write(tmp_path / "m", row()))
    problem = function_problem(one, 1)
    assert problem is not None
    assert problem.prompt == (
        "import math\n\n\ndef area(radius):\n"
        '    """Write a function to find an area.\n\n'
        '    assert round(area(1)) == 3\n    """\n'
    )
    assert (problem.task_id, problem.entry_point) == ("MBPP/11", "area")
    assert grade(problem, "    return math.pi * radius**2", unsafe).score == 1
    assert grade(problem, "    return 3", unsafe).score == 0
    plain = function_problem(one, 0)
    assert plain is not None
    assert 'an area.\n    """' in plain.prompt


def test_a_description_cannot_break_its_docstring(tmp_path: Path) -> None:
    text = 'Split at """ or \\n.'
    [one] = read_mbpp(write(tmp_path / "m", row(text=text, test_setup_code="import re")))
    problem = function_problem(one, 3)
    assert problem is not None
    assert problem.test.startswith("import re\n\n\ndef check(candidate):\n    assert")
    assert grade(problem, "    return math.pi * radius**2", unsafe).score == 1


@pytest.mark.parametrize("code", ["def other(): pass", "def area(", "area = lambda r: 3"])
def test_a_row_without_the_function(tmp_path: Path, code: str) -> None:
    [one] = read_mbpp(write(tmp_path / "m", row(code=code)))
    assert function_problem(one, 1) is None
    assert infilling_problems(one) == []
    assert fair_problems(one, unsafe, 2) == ([], "no line that asks for something")


def test_lines_to_fill_in(tmp_path: Path) -> None:
    [one] = read_mbpp(write(tmp_path / "m", row()))
    problems = infilling_problems(one)
    assert [problem.canonical_solution for problem in problems] == [
        "return x",
        "square = radius * radius",
        "if radius < 0:",
        "result = math.pi * square",
        "debug = 12345",
        "return result",
    ]
    third = problems[2]
    assert third.task_id == "MBPP/11/L8"
    assert third.prompt.startswith("# Write a function to find an area.\nimport math\ndef unused")
    assert third.prompt.endswith("\tsquare = radius * radius\n\t")
    assert third.suffix.startswith("\n\t\traise ValueError(\n")
    assert "\r" not in third.prompt + third.suffix
    assert third.suffix.endswith("\treturn result\n")
    assert all(
        problem.prompt + problem.canonical_solution + problem.suffix
        == "# Write a function to find an area.\n" + one.code + "\n"
        for problem in problems
    )


def test_fair_lines_are_those_the_tests_notice(tmp_path: Path) -> None:
    [one] = read_mbpp(write(tmp_path / "m", row()))
    problems, reason = fair_problems(one, unsafe, 10)
    assert [problem.canonical_solution for problem in problems] == [
        "square = radius * radius",
        "if radius < 0:",
        "result = math.pi * square",
        "return result",
    ]
    assert reason == ""
    two, _ = fair_problems(one, unsafe, 2)
    assert len(two) == 2
    assert fair_problems(one, unsafe, 2)[0] == two
    [wrong] = read_mbpp(write(tmp_path / "m", row(test_list=["assert area(1) == 5"])))
    assert fair_problems(wrong, unsafe, 2) == ([], "its own solution fails")
    [blind] = read_mbpp(
        write(tmp_path / "m", row(test_list=["assert [area(1)]"], code="def area(r):\n  size = 1"))
    )
    assert fair_problems(blind, unsafe, 2) == ([], "its tests do not notice a gap")


def test_a_string_over_several_lines_stays_what_it_is(tmp_path: Path) -> None:
    tests = ['assert area("""a\r\nb""") == 3', "assert area('\u2028') == 1"]
    code = "def area(text):\r\n    return len(text)  \r\n"
    [one] = read_mbpp(write(tmp_path / "m", row(test_list=tests, code=code)))
    problem = function_problem(one, 0)
    assert problem is not None
    assert grade(problem, "    return len(text)\n", unsafe).score == 1
    assert unfairness(problem, unsafe) == ""
    assert fair_problems(one, unsafe, 1)[1] == ""


def test_strings_in_solutions_keep_their_lines(tmp_path: Path) -> None:
    code = "def area(n):\r\n    text = '''a  \r\n\u2028 b'''\r\n    return text * n"
    tests = ["assert area(1) == 'a  \\n\\u2028 b'"]
    [one] = read_mbpp(write(tmp_path / "m", row(code=code, test_list=tests)))
    problem = function_problem(one, 0)
    assert problem is not None
    assert unfairness(problem, unsafe) == ""
    [plain] = read_mbpp(write(tmp_path / "m", row(code="def area(n):  \r\n\treturn n \t\r\n")))
    assert plain.code == "def area(n):\n\treturn n"


def test_classes_that_tests_need_are_given(tmp_path: Path) -> None:
    code = "class Pair:\n  def __init__(self, a):\n    self.a = a\n\ndef area(p):\n  return p.a"
    tests = ["assert area(Pair(3)) == 3", "assert area(one) == 5"]
    [one] = read_mbpp(
        write(tmp_path / "m", row(code=code, test_list=tests, test_setup_code="one = Pair(5)"))
    )
    problem = function_problem(one, 0)
    assert problem is not None
    assert problem.prompt.startswith("class Pair:\n")
    assert unfairness(problem, unsafe) == ""
    assert grade(problem, "    return p.a + 1\n", unsafe).score == 0


def test_a_function_called_check(tmp_path: Path) -> None:
    code, tests = "def check(n):\n    return n + 1", ["assert check(1) == 2"]
    [one] = read_mbpp(write(tmp_path / "m", row(code=code, test_list=tests)))
    problem = function_problem(one, 0)
    assert problem is not None
    assert unfairness(problem, unsafe) == ""
