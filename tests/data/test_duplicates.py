"""Near duplicates, against the Jaccard similarity computed from the sets themselves."""

import re

import numpy as np
import pytest

from sounding.data.duplicates import NUM_HASHES, SHINGLE_WORDS, Duplicates, signature, similarity
from tests.data.conftest import code


def jaccard(one: str, other: str) -> float:
    sets = []
    for text in (one, other):
        words = re.findall(r"\w+|[^\w\s]", text)
        count = len(words) - SHINGLE_WORDS + 1
        sets.append({tuple(words[i : i + SHINGLE_WORDS]) for i in range(count)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_estimate_the_jaccard_similarity() -> None:
    errors = []
    for seed in range(30):
        base = code(seed, 20)
        for changed in (2, 8, 15):
            cut = len(base) * changed // 20
            other = base[:cut] + code(1000 + seed, 20)[cut:]
            errors.append(similarity(signature(base), signature(other)) - jaccard(base, other))
    # Each estimate has a standard error of at most sqrt(1/4/128) = 0.044.
    assert np.sqrt(np.mean(np.square(errors))) < 0.05
    assert abs(np.mean(errors)) < 0.02


def test_signatures_do_not_change_between_versions() -> None:
    mark = signature("def add(a, b):\n    return a + b\n")
    assert mark.shape == (NUM_HASHES,)
    assert mark[:4].tolist() == [445731129, 688174155, 95331517, 841117208]


@pytest.mark.parametrize("text", ["", "x", "a b c d", "word " * 500])
def test_texts_with_few_shingles(text: str) -> None:
    assert similarity(signature(text), signature(text)) == 1


def test_duplicates_and_near_duplicates_are_dropped_by_reason() -> None:
    kept = Duplicates()
    base = code(5, 30)
    edited = base.replace("return", "yield", 1)
    assert kept.reason("a", signature(base)) is None
    assert kept.reason("a", signature(base)) == "duplicate"
    assert kept.reason("b", signature(edited)) == "near-duplicate"
    assert kept.reason("c", signature(code(6, 30))) is None
    # A dropped document is not remembered: what resembles only it may stay.
    assert kept.reason("b", signature(code(7, 30))) is None


def test_a_threshold_of_one_keeps_all_but_copies() -> None:
    kept = Duplicates(1.0)
    assert kept.reason("a", signature("same")) is None
    assert kept.reason("b", signature("same")) is None
    assert kept.reason("a", signature("same")) == "duplicate"
    with pytest.raises(ValueError, match=r"threshold 0\.0 must be above 0"):
        Duplicates(0.0)
