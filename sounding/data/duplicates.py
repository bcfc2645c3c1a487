"""Exact and near duplicates: MinHash signatures, and an index of the unique documents.

A few lines of numpy rather than a library: the usual one needs scipy for one integral, and
hashing a document's shingles as one array is several times faster than one call for each.
Source: Broder, "On the resemblance and containment of documents", 1997; banding as in Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_HASHES = 128
THRESHOLD = 0.7  # Jaccard similarity of shingles from which a document counts as a near duplicate
SHINGLE_WORDS = 5
# 32 bands of 4: two documents at the threshold meet in a band with probability 0.9998. The many
# pairs that meet below it are sent away by comparing whole signatures.
_BAND_HASHES = 4
_WORD = re.compile(r"\w+|[^\w\s]")
# Fixed odd multipliers and offsets: signatures of different runs must compare.
_MIX = np.random.RandomState(1997).randint(0, 2**63, size=(2, NUM_HASHES), dtype=np.int64)
_MULTIPLIERS = (_MIX[0].astype(np.uint64) << np.uint64(1)) | np.uint64(1)
_OFFSETS = _MIX[1].astype(np.uint64)

Signature = NDArray[np.uint32]


def signature(text: str) -> Signature:
    """MinHash of the set of all runs of five words: NUM_HASHES numbers.

    The share of equal numbers in two signatures estimates the Jaccard similarity of the two sets,
    with a standard error of at most 0.044.
    """
    words = _WORD.findall(text)
    codes = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
    count = max(1, len(codes) - SHINGLE_WORDS + 1)
    shingles = np.zeros(count, np.uint64)
    for offset in range(min(SHINGLE_WORDS, len(codes))):
        shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
    shingles = np.unique(shingles)
    shingles ^= shingles >> np.uint64(29)  # low words must reach the high bits that are compared
    result = np.full(NUM_HASHES, 2**32 - 1, np.uint32)
    for begin in range(0, len(shingles), 4096):  # bounds memory to 4 MB
        block = shingles[begin : begin + 4096, None] * _MULTIPLIERS + _OFFSETS
        np.minimum(result, (block >> np.uint64(32)).astype(np.uint32).min(axis=0), out=result)
    return result


def similarity(one: Signature, other: Signature) -> float:
    """Estimated Jaccard similarity of two documents by their signatures."""
    return float(np.mean(one == other))


class Duplicates:
    """The index of unique documents; a new one is a duplicate of one of them, or is added."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"the similarity threshold {threshold} must be above 0, at most 1")
        self._threshold = threshold
        self._digests: set[str] = set()
        self._signatures: list[Signature] = []
        self._bands: dict[bytes, list[int]] = {}

    def reason(self, digest: str, mark: Signature) -> str | None:
        """ "duplicate", "near-duplicate", or None, in which case the document is added.

        `digest` identifies the exact text, `mark` is its signature.
        """
        if digest in self._digests:
            return "duplicate"
        keys = _band_keys(mark)
        if self._threshold < 1 and self._is_near(keys, mark):
            return "near-duplicate"
        self._digests.add(digest)
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(mark)
        return None

    def _is_near(self, keys: Sequence[bytes], mark: Signature) -> bool:
        candidates = {index for key in keys for index in self._bands.get(key, ())}
        if not candidates:
            return False
        rows = np.stack([self._signatures[index] for index in sorted(candidates)])
        return bool((rows == mark).mean(axis=1).max() >= self._threshold)


def _band_keys(mark: Signature) -> list[bytes]:
    width = _BAND_HASHES
    return [
        bytes([band]) + mark[band * width : (band + 1) * width].tobytes()
        for band in range(NUM_HASHES // width)
    ]
