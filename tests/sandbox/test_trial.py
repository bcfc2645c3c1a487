"""What crosses between an answer and its tests, and how a trial ends."""

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from sounding.sandbox.run import Limits, NoIsolation, require_isolation
from sounding.sandbox.trial import Trial, Verdict, judge


@pytest.fixture(scope="module")
def isolation() -> None:
    try:
        require_isolation()
    except NoIsolation as error:
        pytest.skip(str(error))


@pytest.fixture(params=[True, False], ids=["isolated", "unsafe"])
def isolate(request: pytest.FixtureRequest) -> Iterator[bool]:
    if request.param:
        request.getfixturevalue("isolation")
    yield request.param


def run(program: str, test: str, *, isolate: bool = False, **more: Any) -> Verdict:
    """A trial of a function f, whose program is its own reference unless another is given."""
    limits = {name: more.pop(name) for name in list(more) if hasattr(Limits, name)}
    program = textwrap.dedent(program)
    trial = {
        "program": program,
        "reference": program,
        "answered": ("f",),
        "given": (),
        "test": textwrap.dedent(test),
        "entry_point": "f",
        "calls_check": "def check(" in test,
        **more,
    }
    return judge(
        Trial(**trial), Limits(**{"wall_seconds": 20.0, **limits}), isolate=isolate
    )  # fmt: skip


ECHO = "def f(*all, **named):\n    return all[0] if all else named\n"

VALUES = """
import datetime, decimal, fractions
from collections import deque
same = [[], [1]]
same.append(same[0])
loop = [1]
loop.append(loop)
VALUES = [
    None, True, False, 0, -1, 2**63 - 1, 2**63, -2**64, 10**5000, 0.0, -0.0, 1e300, 5e-324, 0.1,
    float("inf"), 1j, complex(-0.0, 2), "", "a\\n\\u2028\\U0001f600", "\\ud800", b"", b"\\0\\xff",
    bytearray(b"ab"), [], [1, [2, [3]]], (), (1,), ((),), {}, {1: 2, "1": 3}, {(1, 2): [3]},
    {None: None}, set(), {1, "a", (2, 3)}, frozenset({1}), {frozenset({1}): 2}, range(3),
    range(10**30, 0, -7), deque([1, 2]), decimal.Decimal("1.10"), fractions.Fraction(1, 3),
    datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 2, 3, 4, 5, 6), datetime.time(1, 2),
    datetime.timedelta(-1, 5), int, len, same,
]
"""


def test_plain_values_come_and_go_as_they_are(isolate: bool) -> None:
    test = VALUES + textwrap.dedent(
        """
        for value in VALUES:
            back = f(value)
            assert back == value and type(back) is type(value), value
            assert isinstance(value, int) or repr(back) == repr(value)
        assert f(float("nan")) != f(float("nan"))
        back = f(same)
        assert back[0] is back[2] and back[0] is not back[1]
        back = f(loop)
        assert back[1] is back
        assert f(a=1, b=[2]) == {"a": 1, "b": [2]}
        names = ("self", "what", "of", "named", "arguments", "target")
        assert f(**{name: name for name in names}) == {name: name for name in names}
        """
    )
    assert run(ECHO, test, isolate=isolate) == Verdict("", False)


def test_subclasses_come_as_what_they_extend() -> None:
    program = """
    import collections, enum
    Point = collections.namedtuple("Point", "x y")
    class Color(enum.IntEnum): RED = 1
    class Name(str): pass
    class Rows(list):
        def __iter__(self): raise ValueError
    def f(which):
        return [
            collections.Counter("aab"), collections.defaultdict(list, {1: [2]}),
            collections.OrderedDict(a=1), Point(1, 2), Color.RED, Name("n"), Rows([1, 2]),
        ][which]
    """
    test = """
    expected = [{"a": 2, "b": 1}, {1: [2]}, {"a": 1}, (1, 2), 1, "n", [1, 2]]
    for which, value in enumerate(expected):
        assert f(which) == value and type(f(which)) is type(value)
    """
    assert run(program, test) == Verdict("", False)


@pytest.mark.parametrize(
    "test",
    [
        "assert f() == 3",
        "assert 3 == f()",
        "assert f()",
        "assert not f()",
        "assert f() < 4",
        "assert str(f()) == '3'",
        "assert f'{f()}' == '3'",
        "assert f() in [3]",
        "try:\n    f() == 3\nexcept BaseException:\n    pass\nassert True",
    ],
)
def test_other_values_cannot_be_compared(test: str) -> None:
    assert run("def f(): return object()", test).reason == "not plain data"


def test_other_values_can_be_called_iterated_and_asked() -> None:
    program = """
    class Stack:
        def __init__(self, items): self.items = list(items)
        def pop(self): return self.items.pop()
        def joined(self, other): return Stack(self.items + other.items)
        def __iter__(self): return iter(self.items)
    def f(kind):
        if kind == "count": return iter(range(10**9))
        if kind == "adder": return lambda a: lambda b: a + b
        return Stack([1, 2])
    """
    test = """
    import itertools
    assert list(itertools.islice(f("count"), 3)) == [0, 1, 2]
    assert f("adder")(1)(2) == 3
    stack = f("stack")
    assert stack.items == [1, 2]
    assert stack.joined(f("stack")).items == [1, 2, 1, 2]
    assert list(stack) == [1, 2] and sum(stack) == 3
    assert stack.pop() == 2 and list(stack) == [1]
    assert not hasattr(stack, "push") and not hasattr(stack, "_items")
    """
    assert run(program, test) == Verdict("", False)


def test_functions_of_the_tests_are_called_back() -> None:
    program = """
    def f(function, *items, key=None):
        try: return [function(item) for item in sorted(items, key=key)]
        except ZeroDivisionError as error: return str(error)
    """
    test = """
    assert f(lambda x: x + 1, 2, 1) == [2, 3]
    assert f(lambda x: 1 // x, 0) == "integer division or modulo by zero"
    assert f(abs, -2, 1, key=abs) == [1, 2]
    assert f(lambda x: f(lambda y: y + x, 10), 1, 2) == [[11], [12]]
    """
    assert run(program, test) == Verdict("", False)


def test_changes_of_arguments_reach_the_tests() -> None:
    program = """
    class Node:
        def __init__(self, value): self.value, self.next = value, None
    def f(items, table=(), node=None):
        items.append(9)
        if table: table["new"] = items; table["set"].add(1); table["inner"][0][:] = []
        if node: node.next = Node(node.value)
        return items
    """
    test = """
    items, inner = [1], [2]
    table = {"set": set(), "inner": (inner,)}
    node = Node(5)
    result = f(items, table, node)
    assert items == [1, 9] and result is items and table["new"] is items
    assert table["set"] == {1} and inner == [] and table["inner"][0] is inner
    assert node.next.value == 5
    """
    assert run(program, test, given=("Node",)) == Verdict("", True)
    unseen = "items = [1]\nassert f(items) == [1, 9] and items == [1]"
    assert run(program, unseen, in_place=False) == Verdict("", False)
    assert run(program, unseen).reason == "wrong answer"


def test_unchanged_arguments_are_not_reported() -> None:
    program = "def f(a): return [a.pop(), a.append(1)] if a == [1] else sorted(a)"
    test = "assert f({3, 1}) == [1, 3] and f([1])[0] == 1 and f({2: [1]}) == [2]"
    assert run(program, test) == Verdict("", False)


def test_exceptions_cross_as_the_builtin_they_are() -> None:
    program = """
    class Negative(ValueError): pass
    class Own(Negative): pass
    def f(n):
        if n < 0: raise Negative("no", n)
        if n == 0: raise Own("zero")
        return {}[n]
    """
    test = """
    for n, kind, text in (
        (-1, ValueError, "('no', -1)"), (0, ValueError, "zero"), (1, KeyError, "1")
    ):
        try: f(n)
        except kind as error: assert str(error) == text, error
        else: raise AssertionError
    """
    assert run(program, test) == Verdict("", False)
    own = "try: f(0)\nexcept Negative as error: assert type(error) is Negative"
    assert run(program, own, given=("Negative",)) == Verdict("", False)
    assert run(program, "f(-1)").reason == "ValueError"


def test_what_cannot_be_sent_is_a_reason() -> None:
    assert run(ECHO, "f(object())").reason.startswith("arguments that are not plain data")
    assert run(ECHO, "f({1: type('T', (), {})()})").reason.startswith("arguments that are not")


def test_the_depth_of_recursion_is_that_of_a_program_alone() -> None:
    program = "def f(n): return n and 1 + f(n - 1)"
    assert run(program, "assert f(980) == 980") == Verdict("", False)
    assert run(program, "f(1010)").reason == "RecursionError"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(): return 1", ""),
        ("def f(): return 2", "wrong answer"),
        ("def g(): return 1", "NameError"),
        ("def f(", "SyntaxError"),
        ("import missing", "ModuleNotFoundError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early with exit code 0"),
        ("def f():\n  import os; os._exit(4)", "ended early with exit code 4"),
        ("def f():\n  import os; os.abort()", "signal 6"),
        ("def f():\n  import os; os.close(3); return 1", "ended early with exit code 0"),
        ("def f(): return bytes(10**10)", "MemoryError"),
        ("def f(): return 'x' * 10**8", "not plain data"),
    ],
)
def test_failing_programs_are_graded_with_a_reason(
    program: str, reason: str, isolate: bool
) -> None:
    reference = "def f(): return 1"
    found = run(program, "assert f() == 1", isolate=isolate, reference=reference)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("program", "test", "reason"),
    [
        ("import time\ndef f(): time.sleep(99)", "assert f()", "wall time"),
        ("def f(): return 1", "import time; time.sleep(99)", "wall time"),
        ("def f(): return 1", "while f(): pass", "wall time|the tests cpu time"),
        ("def f(): return 1", "import os; os._exit(0)", "the tests ended early with exit code 0"),
        ("def f(): return 1", "raise SystemExit(0)", "SystemExit"),
    ],
)
def test_limits_hold_for_both(program: str, test: str, reason: str, isolate: bool) -> None:
    found = run(
        program, test, isolate=isolate, wall_seconds=1.5, cpu_seconds=1, reference="def f(): pass"
    )
    assert found.reason in reason.split("|")


def test_an_answer_that_computes_for_ever(isolate: bool) -> None:
    found = run("def f():\n    while True: pass", "assert f()", isolate=isolate, cpu_seconds=1)
    assert found.reason == "cpu time"


def test_what_is_printed_is_lost(isolate: bool, capfd: pytest.CaptureFixture[str]) -> None:
    program = "print('x' * 10**6)\ndef f(): print('{}' * 10**6); return 1"
    assert run(program, "print(5)\nassert f() == 1", isolate=isolate) == Verdict("", False)
    assert capfd.readouterr() == ("", "")


def test_many_calls_share_one_process() -> None:
    program = "calls = []\ndef f(n):\n    calls.append(n)\n    return len(calls)"
    assert run(program, "for n in range(2000): assert f(n) == n + 1") == Verdict("", False)


def test_a_broken_reference_is_named() -> None:
    found = run("def f(): return 1", "assert f() == 1", reference="raise OSError")
    assert found.reason == "the reference raises OSError"


@pytest.mark.usefixtures("isolation")
def test_an_answer_becomes_no_other_program_and_sees_no_other_process() -> None:
    program = """
    import os, signal, sys
    def f(what):
        try:
            if what == "run": os.execv(sys.executable, ["python", "-c", ""])
            if what == "files": return sorted(os.listdir("."))
            if what == "open": return [n for n in range(64) if is_open(n)]
            if what == "processes": return [n for n in range(1, 99) if alive(n)]
        except OSError as error: return type(error).__name__
    def is_open(n):
        try: os.fstat(n); return True
        except OSError: return False
    def alive(n):
        try: os.kill(n, 0); return True
        except OSError: return False
    """
    test = """
    assert f("run") == "PermissionError"
    assert f("files") == [] and f("open") == [0, 1, 2, 3]
    assert len(f("processes")) == 2
    """
    assert run(program, test, isolate=True) == Verdict("", False)
