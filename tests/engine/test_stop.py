"""Stop strings: a wrong program would show part of one, or swallow text that is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.engine.stop import StopStrings

TEXT = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


@given(TEXT, STOPS, st.data())
def test_any_cut_of_the_stream_shows_the_same_text(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    filter = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += filter.feed(piece)
        assert text.startswith(shown)
    shown += filter.flush()
    hits = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert shown == (text[: min(hits)[1]] if hits else text)
    assert (filter.found is not None) == bool(hits)


def test_the_string_that_is_complete_first_wins() -> None:
    for pieces in (["ba\na"], ["ba", "\n", "a"], ["ba\n", "a"]):
        filter = StopStrings(["a\na", "\n"])
        assert "".join(map(filter.feed, pieces)) + filter.flush() == "ba"
        assert filter.found == "\n"


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    filter = StopStrings(["\n\ndef"])
    assert filter.feed("x = 1\n") == "x = 1"
    assert filter.feed("y\n\nde") == "\ny"
    assert filter.feed("f g") == ""
    assert filter.found == "\n\ndef"
    assert filter.flush() == ""


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopStrings([""])
