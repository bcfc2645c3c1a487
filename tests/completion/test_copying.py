"""Other lines of the file that may fill a gap: which are found, and in what order."""

import math

import pytest

from sounding.completion.copying import copies
from sounding.completion.similar import Around

ABOVE = """def first(path):
    with open(path) as file:
        text = file.read()
    return text


def second(path):
    with open(path) as file:
        """
BELOW = """
    return text


print(first)
"""


def lines(prefix: str, suffix: str, most: int | None = None) -> list[tuple[str, float]]:
    around = Around(prefix, suffix, most=most)
    return [(around.rest(number), likeness) for number, likeness in around.similar()]


def test_lines_with_the_same_neighbours_are_the_most_similar() -> None:
    found = lines(ABOVE, BELOW)
    assert max(found, key=lambda line: line[1])[0] == "text = file.read()"
    assert max(likeness for _, likeness in found) <= 2 * (1 + 1 / 2 + 1 / 3) + 1e-9
    assert [text for text, _ in lines(ABOVE + "te", BELOW)] == ["xt = file.read()"]
    near = [text for text, _ in lines(ABOVE, BELOW, 2)]
    assert "def first(path):" not in near and "with open(path) as file:" in near


@pytest.mark.parametrize(
    ("above", "typed", "below", "expected"),
    [
        ("def width(self):\n    return self._width\n\n", "", "", "def height(self):"),
        ("def width(self):\n    return self._width\n\n", "def ", "", "height(self):"),
        ("def setheight(self):\n    return self._setHeight\n", "", "", "def setheight(self):"),
        # What was typed must still be there afterwards.
        ("def width(self):\n    return self._width\n\n", "def w", "", ""),
        # A neighbour with other words shows nothing.
        ("def width(self):\n    yield 7\n\n", "", "", "def width(self):"),
    ],
)
def test_a_copy_takes_the_words_of_its_new_place(
    above: str, typed: str, below: str, expected: str
) -> None:
    around = Around(above + typed, "\n    return self._height" + below)
    first = [number for number, _ in around.similar() if number == 0]
    assert (around.adapted(0) if first else "") == expected


def test_copies_come_in_the_order_of_their_weight() -> None:
    """A line that is there twice weighs twice."""
    above, below = "import os\nwhile True:\n", "\nwhile True:\n"
    weights = {"import os": 0.0, "while True:": 0.0}
    for text, likeness in lines(above, below):
        weights[text] += math.exp(3.0 * likeness)
    found = copies(above, below, 5)
    assert list(found) == sorted(weights, key=lambda text: -weights[text])
    assert found == pytest.approx({text: math.log(weight) for text, weight in weights.items()})
    assert list(copies(above, below, 1)) == list(found)[:1]


def test_a_copy_begins_with_what_is_typed() -> None:
    assert next(iter(copies(ABOVE, BELOW, 5))) == "text = file.read()"
    assert list(copies(ABOVE + "te", BELOW, 5)) == ["xt = file.read()"]


def test_an_empty_file_has_nothing_to_copy() -> None:
    assert copies("", "", 5) == {}
