"""What cannot be right in a gap, and what a right line has to do there."""

import pytest

from sounding.completion.gap import Gap
from sounding.completion.python_source import PythonSource

BEFORE = "import math\n\n\ndef area(radius):\n    "
AFTER = "\n    return result\n\n\ndef other():\n    return 1\n"


@pytest.mark.parametrize(
    ("prefix", "suffix", "text", "fault"),
    [
        (BEFORE, AFTER, "result = math.pi * radius", ""),
        (BEFORE, AFTER, "result = other(radius)", ""),
        (BEFORE, AFTER, "result = (radius", "syntax"),
        (BEFORE, AFTER, "if radius:", "syntax"),
        (BEFORE, AFTER, "result = pi * radius", "name"),
        (BEFORE, AFTER, "result = radius + total", "name"),
        (BEFORE, AFTER, "return radius", "unreachable"),
        (BEFORE, AFTER, "return result", "repetition"),
        (BEFORE, AFTER, "# the area", "comment"),
        ("def f(x):\n    g(x)\n    ", "\n    return x\n", "g(x)", ""),  # too short to tell
        ("def f(x):\n    update(x)\n    ", "\n    return x\n", "update(x)", "repetition"),
        # the last line of a function offered the line the next begins with, or its own
        ("def f(x):\n    y = x\n", "\n\ndef g(x):\n    return x\n", "def g(x):", "repetition"),
        ("def f(x):\n    return x\n\n", "\n", "def f(x):", "repetition"),
        ("import os\n\n\n", "\nprint(os)\n", "import os", "repetition"),
        ("def f(x):\n", "\n    y = 1\n    return y\n", "y = 2", "syntax"),
        # a loop may be left in the middle of a block that goes on elsewhere
        ("for x in y():\n    if x:\n        ", "\n    print(x)\ndef y(): ...\n", "continue", ""),
        # names of one another's accessors
        ("class A:\n    @property\n    def a(self): ...\n    @a.setter\n    ", "\n        pass\n",
         "def a(self, value):", ""),
    ],
)  # fmt: skip
def test_judging_a_text_names_its_fault(prefix: str, suffix: str, text: str, fault: str) -> None:
    assert PythonSource(Gap(prefix, suffix)).judge(text).fault == fault


def test_a_name_that_is_read_below_has_to_be_bound() -> None:
    source = PythonSource(Gap(BEFORE, AFTER))
    assert source.known and source.needed() == ["result"]
    assert source.judge("result = radius").missing == 0
    assert source.judge("area = radius").missing == 1
    assert source.judge("result = result + 1").missing == 1
    assert source.judge("result = 1").unread > source.judge("result = radius").unread


def test_names_are_needed_in_the_order_they_are_used() -> None:
    after = "\n        print(word, number)\n        self.seen.add(word)\n"
    source = PythonSource(Gap("class A:\n    def f(self):\n        ", after))
    assert source.needed() == ["word", "number", ".seen"]


def test_where_names_may_come_from_anywhere_none_is_refused() -> None:
    source = PythonSource(Gap("from math import *\ndef f(x):\n    ", "\n    return y\n"))
    assert source.judge("y = pi * x").fault == "" and source.needed() == []


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("def f(x):\n    if x:\n        ", "\n    else:\n        return 2\n"),
        ("def f(x):\n    try:\n        g = x\n    ", "\n        return 1\n"),
        ("x = [\n    1,\n    ", "\n    3,\n]\n"),
        ("print(", ")\n"),
        ("x = ", "\n"),
        ("def f(x):\n", "    return x\n"),
        ("class A:\n    ", ""),
        ("match 1:\n    ", "\n        print(1)\n"),
    ],
)
def test_a_gap_in_a_correct_file_is_known(prefix: str, suffix: str) -> None:
    assert PythonSource(Gap(prefix, suffix)).known


@pytest.mark.parametrize("text", ["function f(x) {\n  ", "x = = 1\ny = "])
def test_of_other_text_nothing_is_known(text: str) -> None:
    source = PythonSource(Gap(text, "\n}\n"))
    assert not source.known and source.needed() == []


def test_a_file_that_is_incorrect_elsewhere_may_bind_any_name() -> None:
    source = PythonSource(Gap("x = = 1\n\ndef f(y):\n    ", "\n    return z\n\nprint(f(1))\n"))
    assert source.known and source.needed() == []
    assert source.judge("z = anything(y)").fault == ""
    assert source.judge("z = anything(y").fault == "syntax"


def test_of_a_long_file_only_the_statement_around_the_gap_is_judged_again() -> None:
    others = "".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(3000))
    source = PythonSource(Gap(others + "def g(y):\n    z = f7(y)\n    ", "\n\n\n" + others))
    assert len(source._before) + len(source._after) < 200
    assert source.judge("return z").fault == ""
    assert source.judge("return f3000(z)").fault == "name"


@pytest.mark.parametrize("text", ["a", "a + b"])
def test_a_file_that_is_broken_elsewhere_does_not_condemn_every_text(text: str) -> None:
    source = PythonSource(Gap("def f(a):\n    c = ", "\n    d = (\n    return c\n"))
    assert source.judge(text).fault == ""
    assert not source.valid(text)


def test_a_new_error_is_one_in_a_broken_file_too() -> None:
    source = PythonSource(Gap("def f(a):\n    c = ", "\n    d = (\n    return c\n"))
    assert source.judge("a b").fault == "syntax"


def test_behind_an_error_nothing_is_condemned_by_syntax() -> None:
    source = PythonSource(Gap("def f(a):\n    b = a +\n    c = ", "\n    return c\n"))
    assert source.judge("a").fault == ""
