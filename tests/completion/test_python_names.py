"""Which names a source reads without a value, and which it never reads.

Catches: a rule that refuses right lines (each sound source here has no unbound name), and one that
lets a name pass which would raise NameError or UnboundLocalError when it is run.
"""

import ast
import builtins
from pathlib import Path

import pytest

import sounding
from sounding.completion.python_names import find_names, module_names

SOUND = [
    "x = 1\nprint(x)",
    "def f():\n    return g()\n\ndef g():\n    return 1",
    "def f(a, *b, c=1, **d):\n    return a, b, c, d",
    "def f(items):\n    for i, x in enumerate(items):\n        if i:\n            print(last)\n"
    "        last = x",
    "def f():\n    total = 0\n    for x in range(3):\n        total += x\n    return total",
    "def f(xs):\n    return [y for x in xs if x for y in x]",
    "def f(x):\n    x = next((x for x in x), None)\n    return x",
    "def f(xs):\n    return max(map(lambda x: x + 1, xs))",
    "class A:\n    n = 1\n    def f(self):\n        self.m = self.n\n        return self.m",
    "class A:\n    print = print",
    "class A(Base := dict):\n    def f(self):\n        return self.anything",
    "from os import *\nprint(path)",
    "def f():\n    global n\n    n = 1\n\ndef g():\n    return n",
    "def f():\n    n = 0\n    def g():\n        nonlocal n\n        n += 1\n    return g",
    "try:\n    import a\nexcept ImportError as error:\n    print(error)\n    a = None\nprint(a)",
    "def f(p):\n    match p:\n        case {'a': x, **rest}:\n            return x, rest\n"
    "        case [y, *more] as z:\n            return y, more, z",
    "def f(s):\n    if (n := len(s)) > 1:\n        return [m for x in s if (m := x)] and n\n",
    "def f():\n    with open('a') as g:\n        return g.read()",
    "class A:\n    def __getattr__(self, name):\n        return name\n"
    "    def f(self):\n        return self.b",
]


@pytest.mark.parametrize("source", SOUND)
def test_in_sound_sources_nothing_is_unbound(source: str) -> None:
    assert find_names(ast.parse(source)).unbound == frozenset()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f():\n    return x", "x"),
        ("print(x)\nx = 1", "x"),
        ("def f():\n    total += 1\n    return total", "total"),
        ("def f(n):\n    for i in range(n):\n        total += i\n    return total", "total"),
        ("def f():\n    for word in word:\n        print(word)", "word"),
        ("def f():\n    x = [0] * len(x)\n    return x", "x"),
        ("def f():\n    return [x for x in y]", "y"),
        ("def f():\n    rows = [x for x in range(n)]\n    n = 3\n    return rows", "n"),
        ("def f():\n    return lambda: z", "z"),
        ("class A:\n    def f(self):\n        return self.missing", ".missing"),
        ("class A:\n    n = 1\n    def f(self):\n        return n", "n"),
    ],
)
def test_a_name_without_a_value_is_found(source: str, name: str) -> None:
    assert {found for _, found in find_names(ast.parse(source)).unbound} == {name}


def test_names_that_nothing_reads() -> None:
    source = "def f(a, b, _c):\n    x = y = 1\n    x += 1\n    return a, lambda: y"
    assert {name for _, name in find_names(ast.parse(source)).unread} == {"b", "x"}


def test_names_of_the_rest_of_a_module_are_handed_in() -> None:
    tree = ast.parse("import os.path as p, sys.path\ndef f():\n    global n\n    n = 1\nx: int = 1")
    assert module_names(tree) == (frozenset({"p", "sys", "f", "n", "x"}), False)
    assert module_names(ast.parse("from os import *"))[1]
    part = ast.parse("def g():\n    return x")
    assert find_names(part).unbound and not find_names(part, {"x"}).unbound


def test_of_this_package_hardly_a_name_is_called_unbound() -> None:
    """Every module runs, so what is found is wrong."""
    assert not hasattr(builtins, "sounding")
    folder = Path(sounding.__file__).parent
    for path in sorted((folder / "completion").glob("*.py")):
        assert find_names(ast.parse(path.read_text())).unbound == frozenset(), path
