"""Tests that would never be run, or could not fail, are refused by their text."""

import textwrap

import pytest

from sounding.tasks.asserting import calls_check, names_of_answer


@pytest.mark.parametrize(
    ("test", "called"),
    [
        ("def check(candidate):\n    assert candidate(1)", True),
        ("def check (candidate):\n    assert candidate(1)", True),
        ("def  check(c):\n    assert c(1)", True),
        ("def check(c):\r    assert c(1)\r", True),
        ("def check(c, *, more=1): assert c(1)", True),
        ("def check(*all): assert all[0](1)", True),
        ("def near(a, b):\n    assert a == b\ndef check(c):\n    near(c(1), 2)", True),
        ("def check(c):\n    for n in (1, 2):\n        if n:\n            assert c(n)", True),
        ("def check(c):\n    if c(1) != 2:\n        raise ValueError", True),
        ("import numpy as np\ndef check(c):\n    np.testing.assert_allclose(c(1), 2)", True),
        ("assert f(1)", False),
        ("x = 1\nif x:\n    assert f(1)", False),
        ("def near(a, b):\n    assert a == b\nnear(f(1), 2)", False),
        ("checks = 1\nassert f(check=1)", False),
    ],
)
def test_tests_that_are_run(test: str, called: bool) -> None:
    assert calls_check(test) is called


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("", "nothing in it asserts anything; put the tests into `def check"),
        ("x = 1", "nothing in it asserts anything"),
        ("f(1) == 2", "nothing in it asserts anything"),
        ("def verify():\n    assert f(1)", "nothing in it asserts anything"),
        ("class A:\n    def g(self):\n        assert f(1)", "nothing in it asserts anything"),
        ("lambda: f(1)", "nothing in it asserts anything"),
        ("check = lambda c: c(1)", "line 1: check must be a plain function"),
        ("check: object = print\nassert f", "line 1: check must be a plain function"),
        ("async def check(c):\n    assert c(1)", "line 1: check must be a plain function"),
        ("class check:\n    def __init__(self, c): assert c(1)", "must be a plain function"),
        ("from tests import check", "line 1: check must be a plain function"),
        ("import x as check", "check must be a plain function"),
        (
            "if True:\n    def check(c):\n        assert c(1)",
            "line 2: check must stand at the outer",
        ),
        ("def a():\n    def check(c):\n        assert c(1)\nassert 1", "line 2: check must stand"),
        ("def check(c):\n    assert c(1)\ncheck = print", "line 3: check must be a plain function"),
        ("def check(c):\n    assert c(1)\ndel check", "line 3: check must be a plain function"),
        ("def check(c): assert c\ndef check(c): assert c", "line 2: check is defined twice"),
        ("def check(c):\n    c(1) == 2", "line 1: check asserts nothing"),
        ("def check(c):\n    def g(): assert c(1)", "line 1: check asserts nothing"),
        ("def check(c):\n    assert c(1)\n    yield", "line 1: check is a generator"),
        ("def check():\n    assert f(1)", "line 1: check must take one argument"),
        ("def check(a, b):\n    assert f(1)", "line 1: check must take one argument"),
        ("def check(c, *, b):\n    assert c(1)", "line 1: check must take one argument"),
        ("@print\ndef check(c):\n    assert c(1)", "line 2: check must not be decorated"),
        ("def test_f():\n    assert f(1)", "line 1: nothing runs test_f, as pytest would"),
        ("async def test_f():\n    assert f(1)\nassert 1", "line 1: nothing runs test_f"),
        ("import unittest\nclass T(unittest.TestCase):\n    pass", "line 2: nothing runs a Test"),
        ("from unittest import *\nclass T(TestCase):\n    pass\nassert 1", "line 2: nothing runs"),
        ("import unittest\nassert f\nunittest.main()", r"line 3: unittest.main\(\) ends the"),
        ("def check(c:\n    assert", "line 1: "),
        ("assert f(1)\n  assert f(2)", "line 2: "),
        ("\ufeffassert 1", "line 1: invalid non-printable character U.FEFF"),
        ("assert 1 # \0", "not Python|null bytes"),
    ],
)
def test_tests_that_would_not_be_run(test: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calls_check(test)


def test_what_of_a_program_is_the_answers() -> None:
    before = textwrap.dedent(
        """
        import math
        LIMIT = 3
        class Node: value = LIMIT
        def helper(x): return x + LIMIT
        class Maker:
            def make(self): return target()
        def target(n=1):
            return """
    )
    after = "\n\ndef user(x): return target(x)\n\ndef second(x): return user(x)\n\nZ = 1\n"
    answered, classes = names_of_answer(before, "n + 1", after)
    assert answered == {"target", "user", "second", "Maker"}
    assert classes == {"Node"}
    assert names_of_answer(before, "(", after) == (set(), set())


def test_an_answer_of_whole_lines_ends_where_the_rest_begins() -> None:
    answered, _ = names_of_answer("def f():\n", "    return 1\n", "def g(): return 2\n")
    assert answered == {"f"}
    answered, _ = names_of_answer("def f(): return 1\n", "def h(): pass\n", "def g(): return 2\n")
    assert answered == {"h"}
