"""A healed prompt can go on as any text it begins, token for token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.completion.healing import Healer
from sounding.text.tokenizer import train
from tests.text.vectors import published_tokenizer

FILES = [Path(__file__), Path(__file__).parents[2] / "docs" / "prompt.md"]
TEXT = "".join(file.read_text(encoding="utf-8") for file in FILES)
for _name in published_tokenizer().named:
    TEXT = TEXT.replace(_name, "")  # a cut inside of one is not to be healed
TEXT += "  \n\n   foo\t\tbar 你好世界函数。12345 naïve 👩‍💻 ((foo ...)) !!!\n\n  \n x\r\n"
HEALERS = [Healer(published_tokenizer()), Healer(train([TEXT], 900))]


@settings(max_examples=300)
@given(st.integers(0, len(TEXT) - 1), st.integers(1, 60), st.integers(0, 60), st.integers(0, 1))
def test_the_tokens_of_any_continuation_are_allowed(
    start: int, length: int, cut: int, which: int
) -> None:
    healer, text = HEALERS[which], TEXT[start : start + length]
    ids = healer.tokenizer.encode(text)
    healing = healer.heal(text[:cut])
    assert ids[: len(healing.ids)] == healing.ids
    kept = b"".join(map(healer.tokenizer.bytes_of, healing.ids))  # may end inside a character
    assert kept + healing.rest == text[:cut].encode()
    for token in ids[len(healing.ids) :]:
        allowed = healing.allowed()
        if allowed is None:
            break
        assert token in allowed
        healing.advance(token)
    if cut < len(text):
        assert not healing.rest


def test_healing_takes_back_little() -> None:
    healer = HEALERS[0]
    healing = healer.heal("import numpy as np\nnp.lins")
    assert healing.rest in (b".lins", b"lins", b"ins", b"s")
    assert healer.heal("<｜Assistant｜></think>").rest == b""
    assert healer.heal("").allowed() is None
    # A token that could only stand here is not taken back.
    assert healer.heal("a <｜User｜>").ids == healer.tokenizer.encode("a <｜User｜>")


def test_a_token_that_does_not_continue_is_refused() -> None:
    healing = HEALERS[0].heal("hello wor")
    with pytest.raises(ValueError, match="does not continue"):
        healing.advance(HEALERS[0].tokenizer.encode("x")[0])
