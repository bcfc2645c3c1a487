"""Cuts of a tokenized text that keep its tokens, to avoid tokenizing again.

The split before BPE never joins a line end to a line with something on it: before such a line, the
tokens of a text are those of the part before and those of the part after. Documents are cut there,
and a text that is cut elsewhere needs new tokens only between the cut and the next such place.
Source: the split in docs/prompt.md 1. With a tokenizer of another split the tokens still
decode to the same text, but may differ from its own encoding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.text.tokenizer import Tokenizer

Tokens = NDArray[np.integer[Any]]

_BLANK, _CONTENT, _UNCLEAR = 0, 1, 2
_SPACES = b" \t\x0b\x0c"


@dataclass(frozen=True)
class Segment:
    """A part of a text: new tokens for `head`, then known `tokens`, then new ones for `tail`."""

    head: str
    tokens: Tokens
    tail: str


class Joints:
    """Finds the joints of texts of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = tokenizer.token_bytes
        self._num_bytes = np.asarray([len(token) for token in table])
        self._ends_line = np.asarray([token.endswith(b"\n") for token in table])
        self._opening = np.asarray([_opening(token) for token in table])

    def find(self, tokens: Tokens) -> NDArray[np.int64]:
        """Positions in `tokens` that are joints, in order; the text's two ends are not listed."""
        count = len(tokens)
        opening = np.append(self._opening[tokens], _UNCLEAR)
        # For every position the first token from there on that is more than blanks.
        telling = np.where(opening != _BLANK, np.arange(count + 1), count)
        telling = np.minimum.accumulate(telling[::-1])[::-1]
        joints = self._ends_line[tokens[:-1]] & (opening[telling[1:count]] == _CONTENT)
        return np.flatnonzero(joints) + 1

    def last(self, tokens: Tokens, num_bytes: int) -> int:
        """Number of tokens at the end that contain the last bytes of the text."""
        return int(np.searchsorted(np.cumsum(self._num_bytes[tokens[::-1]]), num_bytes)) + 1

    def segments(self, tokens: Tokens, content: bytes, cuts: tuple[int, int]) -> list[Segment]:
        """Split a text into three parts at two cuts.

        `tokens` encode `content`; `cuts` are byte offsets in order, between characters.
        """
        places = np.concatenate([[0], self.find(tokens), [len(tokens)]])
        offsets = np.concatenate([[0], np.cumsum(self._num_bytes[tokens])])[places]
        begin, end = cuts
        parts = ((0, begin), (begin, end), (end, len(content)))
        return [_segment(tokens, content, places, offsets, *part) for part in parts]


def _segment(
    tokens: Tokens,
    content: bytes,
    places: NDArray[np.int64],
    offsets: NDArray[np.int64],
    begin: int,
    end: int,
) -> Segment:
    first = int(np.searchsorted(offsets, begin, side="left"))
    last = int(np.searchsorted(offsets, end, side="right")) - 1
    if first > last:
        return Segment(content[begin:end].decode(), tokens[:0], "")
    return Segment(
        content[begin : offsets[first]].decode(),
        tokens[places[first] : places[last]],
        content[offsets[last] : end].decode(),
    )


def _opening(token: bytes) -> int:
    """Classify a line by its first token: still blank, with content, or unclear.

    Since non-ASCII white space exists, only ASCII counts as content.
    """
    rest = token.lstrip(_SPACES)
    if not rest:
        return _BLANK
    return _CONTENT if 0x21 <= rest[0] < 0x7F else _UNCLEAR
