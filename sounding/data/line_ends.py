"""Punctuation with the line end after it, as one token or as two.

A tokenizer merges `):` and the newline into one token, so a text that ends right after the colon,
as prompts do, would never occur in training. Splitting some of these tokens makes it occur.
Source: docs/training.md 1.1; the share is not published.
"""

import random
import re

import numpy as np
from numpy.typing import NDArray

from sounding.text.tokenizer import Tokenizer

Tokens = NDArray[np.int64]

# Letters, digits, white space and parts of characters beyond ASCII are no punctuation.
_MERGED = re.compile(rb"( ?[!-/:-@\[-`{-~]+)([\r\n]+)")


class LineEnds:
    """Splits tokens of one tokenizer that are punctuation and then line ends."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._parts: dict[int, list[int]] = {}
        named = set(tokenizer.named.values())
        for token, content in enumerate(tokenizer.token_bytes):
            match = _MERGED.fullmatch(content)
            if match and token not in named:
                ids = [tokenizer.encode(part.decode(), named=False) for part in match.groups()]
                self._parts[token] = [*ids[0], *ids[1]]
        self._merged = np.zeros(tokenizer.num_tokens, bool)
        self._merged[list(self._parts)] = True

    def split(self, tokens: Tokens, rate: float, rng: random.Random) -> Tokens:
        """Return the text with each such token split with probability `rate`."""
        places = np.flatnonzero(self._merged[tokens])
        chosen = [place for place in places.tolist() if rng.random() < rate]
        if not chosen:
            return tokens
        pieces, done = [], 0
        for place in chosen:
            pieces += [tokens[done:place], np.asarray(self._parts[int(tokens[place])], np.int64)]
            done = place + 1
        return np.concatenate([*pieces, tokens[done:]])
