"""Joints: tokens of the parts are those of the whole, on any text; against the tokenizer itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.data.token_cuts import Joints
from sounding.text.tokenizer import Tokenizer
from tests.data.conftest import code

# Pieces that make the split look ahead or back off: blanks before line ends, closing brackets with
# line ends, digits and ideographs (split first), white space beyond ASCII.
_PIECES = ["\n", "\n\n", " ", "    ", "\t", "x", " y", "):", "#", "12", "3456", "é", "漢字", "_a"]
_PIECES += ["\x0c", "\xa0", "\u2003", "\u2028", "🦊", ".\n", "if x:\n", '"""', "\\"]
texts = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=40).map("".join),
    st.text(st.characters(codec="utf-8"), max_size=60),
)


@pytest.fixture(scope="module")
def joints(tokenizer: Tokenizer) -> Joints:
    return Joints(tokenizer)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, named=False)


@given(text=texts)
def test_a_text_comes_apart_at_its_joints(tokenizer: Tokenizer, joints: Joints, text: str) -> None:
    tokens = encode(tokenizer, text)
    for place in joints.find(np.array(tokens, dtype=np.int64)).tolist():
        before, after = tokens[:place], tokens[place:]
        assert encode(tokenizer, tokenizer.decode(before)) == before
        assert encode(tokenizer, tokenizer.decode(after)) == after
        assert tokenizer.decode(before).endswith("\n")


@given(text=texts, data=st.data())
def test_parts_get_the_tokens_they_have_alone(
    tokenizer: Tokenizer, joints: Joints, text: str, data: st.DataObject
) -> None:
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    tokens = np.array(encode(tokenizer, text), dtype=np.int64)
    cuts = len(text[:begin].encode()), len(text[:end].encode())
    parts = joints.segments(tokens, text.encode(), cuts)
    for part, alone in zip(parts, (text[:begin], text[begin:end], text[end:]), strict=True):
        ids = [*encode(tokenizer, part.head), *part.tokens, *encode(tokenizer, part.tail)]
        assert ids == encode(tokenizer, alone)


def test_nearly_every_line_of_code_is_one(tokenizer: Tokenizer, joints: Joints) -> None:
    text = code(1, 20)
    tokens = np.array(encode(tokenizer, text), dtype=np.int64)
    written = sum(bool(line.strip()) for line in text.splitlines())
    assert len(joints.find(tokens)) == written - 1  # not before the first
    whole = joints.segments(tokens, text.encode(), (500, 520))
    assert sum(len(part.head) + len(part.tail) for part in whole) < 200
