"""Lines of the file beside the network's: which are found, and who wins."""

import math

import pytest

from sounding.completion.copying import Copies, written
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
SURE, AT_A_LOSS = 0.0, -100.0


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


def ranked(copies: Copies, text: str, logprob: float) -> list[str]:
    """The texts down to the network's own."""
    candidates = copies.rank(written(text, logprob))
    assert sum(candidate.written for candidate in candidates) == 1
    assert [c.weight for c in candidates] == sorted((c.weight for c in candidates), reverse=True)
    own = next(number for number, candidate in enumerate(candidates) if candidate.written)
    return [candidate.text for candidate in candidates[: own + 1]]


def test_a_network_that_is_sure_has_its_way_and_one_at_a_loss_has_not() -> None:
    copies = Copies(ABOVE, BELOW)
    assert ranked(copies, "pass", SURE) == ["pass"]
    found = ranked(copies, "pass", AT_A_LOSS)
    assert found[0] == "text = file.read()" and found[-1] == "pass"
    assert len(found) == len(set(found)) > 3
    assert ranked(Copies(ABOVE + "te", BELOW), "mp", AT_A_LOSS) == ["xt = file.read()", "mp"]


def test_a_line_that_both_would_write_needs_no_copy() -> None:
    assert ranked(Copies(ABOVE, BELOW), "return text  ", AT_A_LOSS) == ["return text  "]


def test_copies_outrank_the_network_where_their_weight_is_greater() -> None:
    """A line that is there twice weighs twice."""
    above, below = "import os\nwhile True:\n", "\nwhile True:\n"
    weights = {"import os": 0.0, "while True:": 0.0}
    for text, likeness in lines(above, below):
        weights[text] += math.exp(3.0 * likeness)
    first, second = sorted(weights, key=lambda text: -weights[text])
    for text, others in ((first, []), (second, [first])):
        edge = math.log(weights[text]) - 10.0
        assert ranked(Copies(above, below), "c", edge + 1e-6) == [*others, "c"]
        assert ranked(Copies(above, below), "c", edge - 1e-6) == [*others, text, "c"]


def test_writing_nothing_is_no_line() -> None:
    assert ranked(Copies(ABOVE, BELOW), "  ", SURE)[0] == "text = file.read()"


@pytest.mark.parametrize("text", ["", "x = 1"])
def test_an_empty_file_has_nothing_to_copy(text: str) -> None:
    assert ranked(Copies("", ""), text, AT_A_LOSS) == [text]
