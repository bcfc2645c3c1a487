"""Changes to the text of a program leave what it does, and its layout, alone."""

import ast
from typing import Any

import pytest

from sounding.textbook.drawing import Draw
from sounding.textbook.programs import (
    as_method,
    can_be_method,
    collide,
    import_lines,
    insert_above,
    insert_below_head,
    requoted,
    split_program,
    strip_annotations,
    words,
)
from sounding.textbook.renaming import rename_locals


@pytest.mark.parametrize(
    ("typed", "bare"),
    [
        ("def f(a: int, b: str = 'ü') -> str:\n    pass\n", "def f(a, b='ü'):\n    pass\n"),
        ("def f(*a: int, k: int=1, **o: int):\n    pass\n", "def f(*a, k=1, **o):\n    pass\n"),
        ("async def f() -> dict[str, int]:\n    x: int = 1\n", "async def f():\n    x = 1\n"),
        ("def f():\n    self.x: list[int] = []\n", "def f():\n    self.x = []\n"),
        ("def f():\n    x: int\n    x = 1\n", "def f():\n    x: int\n    x = 1\n"),
        (
            "def f(\n    one: int,\n    two: int,\n) -> int:\n    pass\n",
            "def f(one, two):\n    pass\n",
        ),
        ("LIMIT: int = 3\n", "LIMIT: int = 3\n"),
        (
            "@dataclass\nclass A:\n    x: int = 1\n\n    def f(self) -> int: ...\n",
            "@dataclass\nclass A:\n    x: int = 1\n\n    def f(self) -> int: ...\n",
        ),
    ],
)
def test_annotations_are_stripped_where_nothing_reads_them(typed: str, bare: str) -> None:
    assert strip_annotations(typed) == bare


PROGRAM = """
LIMIT = 3


def f(values, key=None):
    total = 0
    result = [value * LIMIT for value in values]
    for index, item in enumerate(result):
        count = sum(other for other in [index, item])
        try:
            total += count
        except OverflowError as word:
            raise word
    line = f"{item}"
    return dict(total=total, result=result, line=line)
"""


def test_locals_get_other_names_and_nothing_else_changes() -> None:
    changed = rename_locals(PROGRAM, Draw("x"), 1.0)
    kept = words(changed)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    exec(PROGRAM, before)
    exec(changed, after)
    assert before["f"]([1, 2]) == after["f"]([1, 2])
    assert not kept & {"value", "index", "count"}
    # Arguments, keywords, exceptions and names in f-strings are what others see.
    assert kept >= {"values", "key", "total", "result", "line", "word", "item", "LIMIT"}
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(PROGRAM))
    assert rename_locals(PROGRAM, Draw("x"), 1.0) == changed
    assert rename_locals(PROGRAM, Draw("x"), 0.0) == PROGRAM


@pytest.mark.parametrize(
    "program",
    [
        "def f(total):\n    total += 1\n    return total\n",
        "def f():\n    global total\n    total = 1\n",
        "total = 5\n\n\ndef f():\n    return total\n",
        "def f():\n    total = 1\n    return locals()\n",
        "def f():\n    for total in []:\n        pass\n    return lambda total: total\n",
        "def f(x):\n    match x:\n        case [count, *total]:\n            return count, total\n",
        "def f():\n    import total\n    return total\n",
        "class A:\n    total = 1\n",
    ],
)
def test_names_that_others_may_read_stay(program: str) -> None:
    assert rename_locals(program, Draw("y"), 1.0) == program


def test_requoting_changes_quotes_only_where_the_text_stays_the_same() -> None:
    program = 'x = "a" + f"{y}" + "it\'s" + b"c" + "" + "\\n" + """d"""\n'
    single = 'x = \'a\' + f\'{y}\' + "it\'s" + b\'c\' + \'\' + "\\n" + """d"""\n'
    assert requoted(program, "'") == single
    assert requoted(single, '"') == program
    assert requoted('ä = "ö", "ü"\n', "'") == "ä = 'ö', 'ü'\n"


def test_imports_are_merged_sorted_and_only_those_in_use() -> None:
    one = split_program("import sys\nfrom math import tau, pi\n\n\nx = pi\n")
    two = split_program("from math import e as euler\nimport pytest\nimport os.path\n\ny = euler\n")
    assert one.body == "x = pi\n" and one.bound == {"x"}
    both = [*one.imports, *two.imports]
    assert import_lines(both, words("pi euler os pytest")) == [
        "import os.path",
        "from math import e as euler, pi",
        "",
        "import pytest",
    ]


@pytest.mark.parametrize(
    ("one", "two", "collides"),
    [
        ("def f():\n    pass\n", "def g():\n    pass\n", False),
        ("def f():\n    pass\n", "def f():\n    pass\n", True),
        ("def sum(x):\n    pass\n", "def g(x):\n    return sum(x)\n", True),
        ("import math\nx = math\n", "import math\ny = math\n", False),
        ("import math\nx = math\n", "def math():\n    pass\n", True),
        ("from a import b\nx = b\n", "from c import b\ny = b\n", True),
        ("from __future__ import annotations\nx = 1\n", "y = 1\n", True),
        ("if 1:\n    f = 1\n", "def g():\n    return f\n", True),
    ],
)
def test_programs_that_cannot_share_a_file(one: str, two: str, collides: bool) -> None:
    assert collide(split_program(one), split_program(two)) is collides
    assert collide(split_program(two), split_program(one)) is collides


def test_lines_below_a_head() -> None:
    program = (
        "@cache\ndef f(\n    a={1: 2},  # why\n) -> dict[int, int]:\n    # first\n    return a\n"
    )
    below = insert_below_head(program, "f", ['"""Doc."""'])
    assert below == program.replace("    # first", '    """Doc."""\n    # first')
    assert insert_below_head("class A(Exception): ...\n", "A", ["x"]) is None
    nested = insert_below_head("def f():\n    def g(): ...\n    return g\n", "f", ['"""D."""'])
    assert nested == 'def f():\n    """D."""\n\n    def g(): ...\n    return g\n'


def test_lines_above_a_head_stand_above_its_decorators() -> None:
    program = "x = 1\n\n\n@cache\ndef f(): ...\n"
    assert insert_above(program, "f", ["# Do."]) == "x = 1\n\n\n# Do.\n@cache\ndef f(): ...\n"


def test_functions_become_methods() -> None:
    body = "def f(a):\n    return a\n"
    assert as_method(body, static=False) == "    def f(self, a):\n        return a\n"
    assert as_method("def f():\n    return 1\n", static=False).startswith("    def f(self):")
    static = as_method("# Do.\n@cache\n" + body, static=True)
    assert static == "    # Do.\n    @staticmethod\n    @cache\n    def f(a):\n        return a\n"
    assert can_be_method(body, "f")
    assert not can_be_method("def f(a):\n    return f(a)\n", "f")
    assert not can_be_method("X = 1\n\n\n" + body, "f")
    assert not can_be_method('def f():\n    return """\n"""\n', "f")
