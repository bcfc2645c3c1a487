"""Where completions end, letter by letter."""

import tokenize
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sounding
from sounding.completion.gap import Gap
from sounding.completion.python_syntax import longest_valid, may_parse, parses, scan
from sounding.completion.stopping import BlockEnding, LineEnding, ending_for
from sounding.completion.trimming import trim


def ended(prefix: str, generated: str, suffix: str = "", kind: str = "block") -> str:
    """What is inserted when the model writes `generated`, letter by letter."""
    gap = Gap(prefix, suffix)
    ending = ending_for(kind, gap)  # type: ignore[arg-type]
    for count in range(len(generated) + 1):
        end = ending.find(generated[:count])
        if end is not None:
            return trim(generated[:end], gap)
    return trim(generated, gap)


@pytest.mark.parametrize(
    ("prefix", "generated", "suffix", "inserted"),
    [
        ("x = ", "1\ny = 2\n", "\n", "1"),
        ("x = ", "1  \n", "", "1"),
        ("x = foo(", "a, b)\nbar", ")\n", "a, b"),
        ("x = foo(", "bar()\n", ")\n", "bar()"),
        ("x = foo(", "bar())\n", ")\n", "bar()"),
        ("x = ", "a + 1", " + 1\n", "a"),
        ('print("', 'hello")', '")\n', "hello"),
        ("x = a + ", "b ", "+ c\n", "b "),
        # an empty line may stay one before the line comes
        ("def f():\n    ", "\n    return 1\n    x", "\ny", "\n    return 1"),
        # a whole line before another one brings its own newline
        ("a = 1\n", "b = 2\nc = 3\n", "d = 4\n", "b = 2\n"),
        ("a = 1\n", "b = 2", "d = 4\n", "b = 2\n"),
        # what already stands below is not written again
        ("a = 1\n", "long_name = 2\n", "long_name = 2\n", ""),
        ("a = 1\n    ", "long_name = 2\n", "\n    long_name = 2\n", ""),
        ("a = 1\n", "}\n", "}\n", "}\n"),
        ("x = ", "", "\n", ""),
    ],
)
def test_a_line_completion_ends_with_its_line(
    prefix: str, generated: str, suffix: str, inserted: str
) -> None:
    assert ended(prefix, generated, suffix, "line") == inserted


@pytest.mark.parametrize(
    ("prefix", "generated", "suffix", "inserted"),
    [
        # a body ends where the indentation does
        ("def f(x):", "\n    return x\n\n\ndef g():\n    pass\n", "", "\n    return x"),
        ("def f(x):\n", "    y = x\n    return y\nprint(f)\n", "", "    y = x\n    return y"),
        ("def f(x):\n    ", "if x:\n        y\n    z\nw", "", "if x:\n        y\n    z"),
        ("    if x:\n        ", "y\n    else:\n        z", "", "y"),
        ("    if x:", " return\n    y", "", " return"),
        # from the middle of a line: the rest of its block
        ("def f():\n    x = ", "1\n    y = 2\nz", "\n", "1\n    y = 2"),
        # a docstring's last line does not open anything; the first line decides
        ('def f():\n    """Say."""\n', "    return 1\n\nx = 2\n", "", "    return 1"),
        # brackets and strings reach over lines of any indentation
        ("def f():\n    ", "x = [\n1,\n]\n    y\nz", "", "x = [\n1,\n]\n    y"),
        ("def f():\n    ", "x = '''\na\n'''\n    y\nz", "", "x = '''\na\n'''\n    y"),
        ("def f():\n    ", "g(  # (\n    )\n    y\nz", "", "g(  # (\n    )\n    y"),
        ("def f():\n    ", "s = '('\nz", "", "s = '('"),
        # at the outermost level: one statement, with all its branches
        ("", "if x:\n    a\nelse:\n    b\nc\n", "", "if x:\n    a\nelse:\n    b"),
        ("", "try:\n    a\nexcept E:\n    b\nfinally:\n    c\nd\n", "", "try:\n    a\nexcept E:\n"
         "    b\nfinally:\n    c"),
        ("import a\n", "import b\nimport c\n\nd = 1\n", "", "import b\nimport c"),
        ("\n", "@cached\ndef f():\n    a\n\n    b\nc\n", "", "@cached\ndef f():\n    a\n\n    b"),
        # what stands below is where it ends
        ("def f():\n    a = 1\n", "    b = 2\n    return a\n    more", "    return a\n",
         "    b = 2\n"),
        ("def f():\n    ", "b = 2\n    return a\n    more", "\n    return a\n", "b = 2"),
    ],
)  # fmt: skip
def test_a_block_completion_ends_with_its_block(
    prefix: str, generated: str, suffix: str, inserted: str
) -> None:
    assert ended(prefix, generated, suffix) == inserted


@pytest.mark.parametrize(
    ("generated", "end"),
    [
        ("    x.step = 1\n    x.step = 1\n    x.step = 1\n", "    x.step = 1"),
        ("    x.step()\n    y()\n    x.step()\n", None),  # not right above
        ("    i()\n    i()\n    i()\n", None),  # too short to mean something
        ("    f(\n        1000,\n        1000,\n    )\n", None),  # a table
        ("    x.step = 1\n        x.step = 1\n", None),  # indented otherwise
    ],
)
def test_a_block_ends_before_a_statement_that_stands_right_above(
    generated: str, end: str | None
) -> None:
    ending = BlockEnding(Gap("def f(x):\n"))
    found = ending.find(generated)
    assert (None if found is None else generated[:found]) == end


def test_a_block_ends_at_the_first_letter_behind_it() -> None:
    ending = BlockEnding(Gap("def f():\n    "))
    assert ending.find("return 1\n\n") is None
    assert ending.find("return 1\n\nx") == len("return 1")


def test_a_possible_keyword_is_waited_for() -> None:
    ending = BlockEnding(Gap(""))
    for text in ("if x:\n    a\n", "if x:\n    a\ne", "if x:\n    a\nel"):
        assert ending.find(text) is None
    assert ending.undecided
    assert ending.find("if x:\n    a\nell") == len("if x:\n    a")


def test_a_line_that_was_being_written_is_left_out() -> None:
    gap = Gap("def f():\n    ")
    assert trim("a = 1\n    b = (2 +", gap, cut_short=True) == "a = 1"
    assert trim("a = (2 +", gap, cut_short=True) == "a = (2 +"


@pytest.mark.parametrize(
    ("prefix", "suffix", "kind"),
    [
        ("x = ", "\n", "line"),
        ("x = foo(", ")\n", "line"),
        ("def f():", "\n", "block"),
        ("def f():\n    ", "\n", "block"),
        ("a = 1\n", "b = 2\n", "block"),
        ("    ", "b = 2\n", "line"),
        ("", "", "block"),
    ],
)
def test_the_natural_kind(prefix: str, suffix: str, kind: str) -> None:
    assert Gap(prefix, suffix).natural_kind() == kind


def test_unfinished_programs_may_still_parse_and_wrong_ones_may_not() -> None:
    assert parses("x = 1\n")
    assert not parses("def f():")
    for begun in ("def f():", "x = (", "x = 1 +", "'''a", "def f():\n    if x:\n", "# a", ""):
        assert may_parse(begun), begun
    for wrong in ("x = = 1", "def f(:\n", "x = 1)\n", "  x\n y\n", "return 1\n", "x = 1 +\n", "\0"):
        assert not may_parse(wrong), wrong


def test_the_longest_valid_beginning() -> None:
    gap = Gap("def f():\n    ")
    assert longest_valid("a = 1\n    b = = 2\n    c = 3", gap) == "a = 1"
    assert longest_valid("a = = 1\n    b", gap) == "a = = 1\n    b"
    assert longest_valid("a = (1,\n    2", gap) == "a = (1,\n    2"
    assert longest_valid("b = = 2\n", Gap("x = = 1\n")) == "b = = 2\n"


@given(st.text(alphabet="ab (){}[]:#'\"\\\n ", max_size=40), st.integers(0, 40))
def test_scanning_in_pieces_is_scanning(text: str, at: int) -> None:
    whole, pieces = scan(text), scan(text[:at])
    pieces.feed(text[at:])
    assert vars(whole) == vars(pieces)


@given(st.text(alphabet="ab():\n 'e", max_size=60))
def test_an_ending_is_found_once_and_lies_in_the_text(text: str) -> None:
    for gap in (Gap("def f():\n    "), Gap(""), Gap("x = (", ")\nabab\n")):
        for ending in (BlockEnding(gap), LineEnding(gap)):
            found = [ending.find(text[:count]) for count in range(len(text) + 1)]
            ends = [end for end in found if end is not None]
            assert all(0 <= end <= len(text) for end in ends[:1])


@pytest.mark.parametrize("name", ["text/dsml/parse.py", "ops/quant.py", "config.py", "data/fim.py"])
def test_the_scanner_agrees_with_pythons_own(name: str) -> None:
    source = (Path(sounding.__file__).parent / name).read_text()
    inside: set[int] = set()  # lines that begin inside of a string
    depths: dict[int, int] = {}
    depth = 0
    for token in tokenize.tokenize(BytesIO(source.encode()).readline):
        for line in range(token.start[0] + 1, token.end[0] + 1):
            if token.type == tokenize.STRING:
                inside.add(line)
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        depths[token.end[0] + 1] = depth
    scanner, line = scan(""), 1
    for text in source.splitlines(keepends=True):
        assert scanner.in_code == (line not in inside), line
        if scanner.in_code and line in depths:
            assert scanner.depth == depths[line], line
        scanner.feed(text)
        line += 1


# --------------------------------------------------------------------------------------------------
# Long texts

_FUNCTION = "def f(x):\n    if x:\n        y = 1\n    else:\n        y = 2\n    return y\n\n\n"


def test_a_long_text_is_cut_near_the_cursor_between_statements() -> None:
    whole = Gap(_FUNCTION * 500 + "z = ", "\n" + _FUNCTION * 500)
    near = whole.near(1000)
    assert whole.prefix.endswith(near.prefix) and whole.suffix.startswith(near.suffix)
    assert 700 <= len(near.prefix) <= 1000 and 700 <= len(near.suffix) <= 1000
    assert near.prefix.startswith("def f(x):\n") and near.suffix.endswith("\n")
    assert parses(near.prefix + "1" + near.suffix)
    assert near.natural_kind() == whole.natural_kind()
    assert whole.near(1 << 20) == whole


def test_a_long_line_is_cut_where_it_has_to_be() -> None:
    near = Gap("x" * 5000, "y" * 5000).near(1000)
    assert 750 <= len(near.prefix) <= 1000 and near.suffix == "y" * 1000


def test_what_is_left_out_stays_the_same_while_somebody_types() -> None:
    text = _FUNCTION * 500
    begins = {at - len(Gap(text[:at]).near(1000).prefix) for at in range(20_000, 20_400)}
    assert len(begins) <= 3
