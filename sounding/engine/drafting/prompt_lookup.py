"""Prompt lookup: drafts copied from after the previous occurrence of the last few tokens.

Source: Saxena, "Prompt Lookup Decoding", 2023.
"""

from array import array
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.sequence import ActiveSequence

_NGRAM_TOKENS = (4, 3)  # lengths of the n-grams that are looked up, longest first
_SEARCHED_TOKENS = 1 << 16


class PromptLookup(Drafter):
    """Looks the last tokens up in the prompt and in the answer so far."""

    name = "prompt lookup"

    def __init__(self) -> None:
        self._histories: WeakKeyDictionary[ActiveSequence, TokenHistory] = WeakKeyDictionary()

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        proposals = []
        for sequence in sequences:
            history = self._histories.get(sequence)
            if history is None:
                history = self._histories[sequence] = TokenHistory()
            found = history.find(sequence.tokens, most)
            proposals.append(found[: worth(sequence, len(found))] if found else [])
        return proposals


class TokenHistory:
    """The tokens of a sequence as bytes, which are searched fast."""

    def __init__(self) -> None:
        self._tokens = array("i")

    def find(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the previous occurrence of the last n-gram; [] if
        there is none.

        `tokens` must extend those of the previous call.
        """
        self._tokens.extend(tokens[len(self._tokens) :])
        size = self._tokens.itemsize
        history = self._tokens[-_SEARCHED_TOKENS:].tobytes()
        for length in _NGRAM_TOKENS:
            pattern = history[len(history) - length * size :]
            if len(pattern) < length * size:
                continue
            at = history.rfind(pattern, 0, len(history) - size)
            while at % size and at >= 0:  # the match is not aligned to a token
                at = history.rfind(pattern, 0, at + len(pattern) - 1)
            if at >= 0:
                follows = array("i")
                start = at + len(pattern)
                follows.frombytes(history[start : start + count * size])
                return follows.tolist()
        return []
