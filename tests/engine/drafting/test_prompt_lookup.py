"""Prompt lookup proposes what followed the last tokens before."""

from hypothesis import given
from hypothesis import strategies as st

from sounding.engine.drafting.prompt_lookup import TokenHistory


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
def test_finds_what_followed_last_time(tokens: list[int], count: int) -> None:
    history = TokenHistory()
    for end in range(0, len(tokens) + 1, 7):
        history.find(tokens[:end], count)
    expected: list[int] = []
    for length in (4, 3):
        pattern = tokens[len(tokens) - length :]
        places = [at for at in range(len(tokens) - length) if tokens[at : at + length] == pattern]
        if len(tokens) >= length and places:
            expected = tokens[places[-1] + length :][:count]
            break
    assert history.find(tokens, count) == expected


def test_numbers_are_found_whole() -> None:
    """Not where the bytes of two neighbours look like one."""
    tokens = [0x01000000, 0x00000002, 0x03000000, 0x00000004, 5, 1 << 24 | 2, 0x0201, 0x0403]
    assert TokenHistory().find([*tokens, 256, 2 << 8, 3 << 24], 2) == []
