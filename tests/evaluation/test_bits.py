"""Bits per byte: every token once, whatever the windows."""

import lzma
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.evaluation import bits
from sounding.evaluation.bits import (
    brotli_bytes,
    compressed_sizes,
    score_documents,
    summarise_bits,
    windows,
    xz_bytes,
)

BOS = 999


@given(st.integers(0, 60), st.integers(2, 20), st.data())
def test_every_token_is_scored_once_with_enough_before_it(
    count: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    tokens = list(range(count))
    scored: list[int] = []
    for window in windows(tokens, BOS, context=context, stride=stride):
        assert window.tokens[0] == BOS
        assert len(window.tokens) <= context
        fresh = window.tokens[-window.scored :]
        if scored:
            assert len(window.tokens) - window.scored >= context - stride
        scored += fresh
    assert scored == tokens


def test_strides_that_leave_tokens_out_are_refused() -> None:
    with pytest.raises(ValueError, match="stride = 8 must be from 1 to below context = 8"):
        list(windows([1], BOS, context=8, stride=8))


def test_bits_are_added_up_per_document() -> None:
    """A model that gives token t the probability 2^-t."""
    read: list[int] = []

    def logprobs(sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        read.append(sum(map(len, sequences)))
        return [[-t * math.log(2) for t in sequence[1:]] for sequence in sequences]

    documents = [("a", "\1\2\3" * 5), ("b", ""), ("c", "é\4")]
    rows = list(
        score_documents(
            documents, lambda text: [ord(c) % 200 for c in text], BOS, logprobs,
            context=6, stride=3, batch_tokens=14,
        )
    )  # fmt: skip
    assert [(row["id"], row["bytes"], row["tokens"]) for row in rows] == [
        ("a", 15, 15), ("b", 0, 0), ("c", 3, 2),
    ]  # fmt: skip
    assert [row["bits"] for row in rows] == pytest.approx([30, 0, 33 + 4])
    assert max(read) <= 14
    summary = summarise_bits(rows, seed=0)
    assert summary["bits_per_byte"].value == pytest.approx(67 / 18)
    assert summary["bytes_per_token"].value == pytest.approx(18 / 17)


def test_compressors_see_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"def f(x):\n    return x\n" * 50
    assert abs(xz_bytes(data) - len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))) <= 4
    texts = [data.decode()] * 3
    rows = compressed_sizes(texts)
    together = next(row for row in rows if row["documents"] == "together")
    apart = next(row for row in rows if row["documents"] == "one by one")
    assert together["bits_per_byte"] == pytest.approx(8 * together["bytes"] / (3 * len(data)))
    assert together["bytes"] < apart["bytes"] == 3 * xz_bytes(data)
    monkeypatch.setattr(bits, "brotli_bytes", lambda data: None)
    assert {row["program"] for row in compressed_sizes(texts)} == {"xz -9e"}


def test_brotli_where_there_is_one() -> None:
    pytest.importorskip("brotli")
    found = brotli_bytes(b"abc" * 1000)
    assert found is not None
    assert found[0].startswith("brotli -q 11")
    assert 0 < found[1] < 100
