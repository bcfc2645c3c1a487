"""Places in documents, however they were edited and however long they are."""

import re
import sys

from hypothesis import given
from hypothesis import strategies as st
from lsprotocol import types

from sounding.editor.text_documents import OpenDocument

TEXT = st.text(st.sampled_from("ab \n\r\t\x0c\u2028é𝒳"), max_size=12)
PLACE = st.builds(types.Position, st.integers(0, 6), st.integers(0, 9))


def naive(document: OpenDocument, position: types.Position) -> int:
    """The offset of a position, by walking the lines from the first."""
    lines = re.split(r"(\r\n|\r|\n)", document.text)
    if position.line > len(lines) // 2:
        return len(document.text)
    offset = sum(map(len, lines[: 2 * position.line]))
    units = 0
    for character in lines[2 * position.line]:
        units += len(character.encode("utf-16-le")) // 2
        if units > position.character:
            break
        offset += 1
    return offset


def document(text: str) -> OpenDocument:
    return OpenDocument("file:///w/a.py", "python", text)


@given(TEXT, st.lists(st.tuples(PLACE, PLACE, TEXT), max_size=5), PLACE)
def test_places_after_any_edits(
    text: str,
    edits: list[tuple[types.Position, types.Position, str]],
    place: types.Position,
) -> None:
    edited = document(text)
    for start, end, new in edits:
        at = (naive(edited, start), naive(edited, end))
        expected = edited.text[: at[0]] + new + edited.text[max(at) :]
        edited.apply(types.TextDocumentContentChangePartial(types.Range(start, end), new))
        assert edited.text == expected
        assert edited._starts.tolist() == document(edited.text)._starts.tolist()
    assert edited.offset(place) == naive(edited, place)
    clamped = edited.clamped(place)
    assert edited.offset(clamped) == edited.offset(place)
    assert clamped.line <= len(re.findall(r"\r\n|\r|\n", edited.text))


def test_a_place_beyond_the_end_is_the_end() -> None:
    text = document("one\ntwo 𝒳")
    far = types.Position(1_000_000_000, 5)
    assert text.clamped(far) == types.Position(1, 6)
    assert text.clamped(types.Position(0, 99)) == types.Position(0, 3)
    assert document("").clamped(far) == types.Position(0, 0)


def test_a_long_line_of_any_characters() -> None:
    long = document("é𝒳" * 50_000)
    for units, characters in ((0, 0), (3, 2), (150_000, 100_000), (2, 1), (90_001, 60_001)):
        assert long.offset(types.Position(0, units)) == characters


def test_an_edit_looks_at_its_own_lines_alone() -> None:
    """Not at the thousands above, as with every key before."""
    long = document("x = 1\n" * 100_000)
    lines = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal lines
        lines += 1

    place = types.Position(90_000, 3)
    change = types.TextDocumentContentChangePartial(types.Range(place, place), "y\nz")
    sys.setprofile(count)
    try:
        long.apply(change)
    finally:
        sys.setprofile(None)
    assert lines < 1000
    assert long.text.count("\n") == 100_001


def test_what_is_near_a_place() -> None:
    long = document("x" * 1000)
    assert long.before(500, 100) == "x" * 100 and long.after(990, 100) == "x" * 10
    begins = {at - len(long.before(at, 100)) for at in range(500, 600)}
    assert len(begins) == 5 and all(len(long.before(at, 100)) > 75 for at in range(500, 600))
    assert long.before(60, 100) == "x" * 60
