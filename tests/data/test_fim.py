"""Middles: each kind of span is what it is called, on layouts of any kind."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.data.fim import MAX_FEW_LINES, FimSettings, middle_span
from tests.data.conftest import code

TEXT = """\
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        if item is None:
            raise ValueError("nothing to push")
        self.items.append(item)


def main():
    return Stack()
"""


def cut(text: str, rng: random.Random, settings: FimSettings) -> tuple[str, str, str] | None:
    span = middle_span(text, rng, settings)
    if span is None:
        return None
    assert 0 <= span[0] < span[1] <= len(text)
    return text[: span[0]], text[span[0] : span[1]], text[span[1] :]


def only(kind: str) -> FimSettings:
    weights: dict[str, Any] = dict.fromkeys(("rest", "line", "few", "block"), 0.0)
    weights[kind] = 1.0
    return FimSettings(character_share=0.0, **weights)


def middles(settings: FimSettings, text: str = TEXT, count: int = 400) -> list[tuple[str, ...]]:
    cuts = [cut(text, random.Random(seed), settings) for seed in range(count)]
    return [parts for parts in cuts if parts]


@given(st.text(max_size=300), st.integers(0, 2**32), st.floats(0, 1))
def test_there_is_a_middle_wherever_there_is_text(text: str, seed: int, share: float) -> None:
    parts = cut(text, random.Random(seed), FimSettings(character_share=share))
    assert parts or share > 0 or not text.strip()


@given(st.lists(st.sampled_from(["a", " ", "\n", ":", "\t", "    b:\n"])), st.integers(0, 2**32))
def test_line_spans_of_odd_layouts(pieces: list[str], seed: int) -> None:
    text = "".join(pieces)
    parts = cut(text, random.Random(seed), FimSettings(character_share=0.0))
    assert (parts is None) == (not text.strip())
    if parts:
        assert parts[1].strip()


def test_rest_of_a_line() -> None:
    for prefix, middle, suffix in middles(only("rest")):
        assert "\n" not in middle and suffix.startswith("\n")
        assert not middle[0].isspace() or prefix.rsplit("\n", 1)[-1].strip()


def test_every_line_is_a_middle_with_and_without_its_indentation_and_end() -> None:
    found = middles(only("line"))
    assert all("\n" not in middle.removesuffix("\n") for _, middle, _ in found)
    whole = {line for line in TEXT.split("\n") if line.strip()}
    assert whole <= {middle for _, middle, _ in found}  # from the line's start
    assert {line + "\n" for line in whole} <= {middle for _, middle, _ in found}
    assert {line.strip() for line in whole} <= {middle for _, middle, _ in found}


def test_a_few_lines() -> None:
    counts = {middle.removesuffix("\n").count("\n") + 1 for _, middle, _ in middles(only("few"))}
    assert max(counts) <= MAX_FEW_LINES and {2, 3, 4} <= counts


def test_blocks_follow_the_indentation() -> None:
    found = {middle.strip() for _, middle, _ in middles(only("block"))}
    body = 'if item is None:\n            raise ValueError("nothing to push")'
    assert body + "\n        self.items.append(item)" in found  # the body of push
    assert 'raise ValueError("nothing to push")' in found  # the body of if
    assert "return Stack()" in found
    for middle in found:  # never past the class into main, unless it began at the outermost level
        assert "def main" not in middle or middle.startswith(("class", "def main", "s", "l", "a"))


def test_character_spans_lie_anywhere() -> None:
    found = middles(FimSettings(character_share=1.0), TEXT, 2000)
    begins = {len(prefix) for prefix, _, _ in found}
    ends = {len(suffix) for _, _, suffix in found}
    assert len(begins) > 0.9 * len(TEXT) and len(ends) > 0.9 * len(TEXT)
    assert 0 in begins and 0 in ends


def test_shares_of_kinds() -> None:
    found = middles(FimSettings(character_share=0.25), code(3), 1000)
    inside = sum("\n" not in middle for _, middle, _ in found) / len(found)
    assert 0.45 < inside < 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.5}, "rate = 1.5 must be a share"),
        ({"character_share": -1.0}, "character_share = -1.0"),
        ({"rest": 0.0, "line": 0.0, "few": 0.0, "block": 0.0}, "must be weights"),
        ({"rest": -1.0}, "must be weights"),
        ({"longest": 127}, "longest = 127 must be at least 128, or none"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FimSettings(**settings)
