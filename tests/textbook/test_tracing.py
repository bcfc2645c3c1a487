"""Traces tell what each line did, and nothing is told that cannot be told as text."""

import pytest

from sounding.sandbox.run import NoIsolation, require_isolation, run_python
from sounding.textbook.drawing import Draw
from sounding.textbook.explaining import explained
from sounding.textbook.tracing import Traced, traces

TOTAL = """def total(numbers):
    found = 0
    for number in numbers:
        if number > 1:
            found += number
    return found


print(total([1, 2]))
"""


@pytest.fixture(scope="module", autouse=True)
def isolation() -> None:
    try:
        require_isolation()
    except NoIsolation as error:
        pytest.skip(str(error))


def traced(*programs: str) -> list[Traced | None]:
    return traces(programs, run_python)


def test_a_trace_is_every_line_that_ran_with_what_it_changed() -> None:
    [found] = traced(TOTAL)
    assert found is not None
    assert found.output == "2\n"
    assert list(found.lines) == [
        "call total(numbers=[1, 2])",
        "found = 0",
        "for number in numbers:  # number = 1",
        "if number > 1:  # False",
        "for number in numbers:  # number = 2",
        "if number > 1:  # True",
        "found += number  # found = 2",
        "for number in numbers:  # done",
        "return found",
        "returns 2",
        "prints 2",
    ]


def test_calls_inside_of_calls_are_traced_in_their_order() -> None:
    program = "def f(n):\n    return n if n < 2 else n * f(n - 1)\n\n\nprint(f(2))\n"
    [found] = traced(program)
    assert found is not None
    assert list(found.lines) == [
        "call f(n=2)",
        "call f(n=1)",
        "return n if n < 2 else n * f(n - 1)",
        "returns 1",
        "return n if n < 2 else n * f(n - 1)",
        "returns 2",
        "prints 2",
    ]


@pytest.mark.parametrize(
    "body",
    [
        "    raise ValueError(x)",
        "    return object()",
        "    return {x, 'a', 'b'}",
        "    while True:\n        x += 1",
        "    return [\n        x,\n    ]",
        "    yield x",
        "    return 'long' * 100",
        "    import os\n    os._exit(0)",
    ],
)
def test_programs_without_a_plain_trace_have_none_and_spoil_no_other(body: str) -> None:
    first, second = traced(f"def f(x):\n{body}\n\n\nprint(f(1))\n", TOTAL)
    assert first is None
    assert second is not None


def test_a_line_is_explained_by_what_it_says_and_by_what_it_did() -> None:
    [found] = traced(TOTAL)
    assert found is not None
    said = {e.line: e.text for n in range(40) if (e := explained(found, Draw(str(n))))}
    call = "For `print(total([1, 2]))`"
    assert (
        said["found += number"] == f"It adds `number` to `found`. {call} it runs once: `found = 2`."
    )
    assert said["if number > 1:"] == (
        f"It runs the lines below only if `number > 1`. {call} it is checked 2 times and is true 1 "
        "of them."
    )
