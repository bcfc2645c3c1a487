"""Which tokens are split, and into what."""

import random

import numpy as np
import pytest

from sounding.data.line_ends import LineEnds
from sounding.text.tokenizer import Tokenizer, train


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    texts = ["x):\ny,\n\n", "a(\n", "é:\n", "  \n\n", "1\n", " = {\n", "f): g, {k"]
    return train(["".join(texts) * 50], 320)


def split(tokenizer: Tokenizer, text: str) -> list[bytes]:
    tokens = np.asarray(tokenizer.encode(text), np.int64)
    ids = LineEnds(tokenizer).split(tokens, 1.0, random.Random(0))
    return [tokenizer.token_bytes[i] for i in ids.tolist()]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("):\n", [b"):", b"\n"]),
        (",\n\n", [b",", b"\n\n"]),
        ("(\n", [b"(", b"\n"]),
        (" {\n", [b" {", b"\n"]),
        ("  \n\n", [b"  \n\n"]),  # no punctuation
        (")", [b")"]),
    ],
)
def test_punctuation_and_what_ends_its_line_come_apart(
    merging: Tokenizer, text: str, parts: list[bytes]
) -> None:
    assert len(merging.encode(text)) == 1, "the tokenizer was to merge this"
    found = split(merging, text)
    assert b"".join(found) == text.encode()
    assert found == parts


def test_rate_zero_splits_nothing(merging: Tokenizer) -> None:
    tokens = np.asarray(merging.encode("x):\ny,\n\n"), np.int64)
    assert LineEnds(merging).split(tokens, 0.0, random.Random(0)) is tokens
