"""Which indentations a missing line can have."""

import ast

import pytest

from sounding.completion.gap import Gap
from sounding.completion.indentation import possible_levels

BEFORE = "def f(x):\n    if x:\n        y = 1\n"


@pytest.mark.parametrize(
    ("prefix", "suffix", "levels"),
    [
        # behind a line that opens a block
        ("def f(x):\n", "\n    return x\n", ["    "]),
        ("def f(x):\n", "", ["    "]),
        ("def f(x):\n\treturn x\n\ndef g(x):\n", "", ["\t"]),
        ("def f(x):\n", "\n        return x\n    return 1\n", ["        ", "    :"]),
        ("def f(x):  # why:\n", "", ["    "]),
        # a block that goes on, or ends here
        (BEFORE, "\n        return y\n", ["        ", "    :"]),
        (BEFORE, "\n    return y\n", ["        ", "    ", ":"]),
        (BEFORE, "", ["        ", "    ", ""]),
        (BEFORE, "\n    else:\n        y = 2\n", ["        "]),
        (BEFORE, "\n            return y\n", ["        :"]),
        # what is typed stays
        (BEFORE + "    ", "", ["        ", "    "]),
        (BEFORE + "        ", "\n    return y\n", ["        "]),
        # a whole line before the next one
        ("def f(x):\n", "    return x\n", ["    "]),
        # nowhere a line begins
        ("x = [\n", "\n]\n", []),
        ("x = '''\n", "\n'''\n", []),
        ("x = 1 + \\\n", "\n", []),
        ("x = ", "\n", []),
        # an outer level that is no block's
        ("a = 1\n", "\nb = 2\n", [""]),
    ],
)
def test_possible_levels_are_those_that_syntax_allows_at_the_cursor(
    prefix: str, suffix: str, levels: list[str]
) -> None:
    found = possible_levels(Gap(prefix, suffix))
    assert [level.white + ":" * level.opens for level in found] == levels


@pytest.mark.parametrize("suffix", ["\n        return y\n", "\n    return y\n", "\nprint(f)\n"])
def test_a_line_at_each_level_makes_a_correct_source(suffix: str) -> None:
    for level in possible_levels(Gap(BEFORE, suffix)):
        line = "while y:" if level.opens else "z = 1"
        ast.parse(BEFORE + level.white + line + suffix)
