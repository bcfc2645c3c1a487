"""The other lines of a file as guesses at the one that is missing, beside the network's own.

Files repeat themselves, and a small network sees only a part of one. A line is the likelier a copy
the more its neighbours are like the gap's. Network and copies are mixed as alternatives are in
probability theory: all begin with a weight, and with every token written each is weighted by how
likely it thought that token. So a copy counts for as long as what is written agrees with it, and
little where the network is sure of something else.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.text.similar import similar_lines
from sounding.text.tokenizer import Tokenizer

_NEAR_LINES = 500  # on each side of a gap, of files that are longer

# Logarithms of weights: of a line, by its likeness, and of the network. The likeliest for 1,500
# lines of 500 files of the training packages, where the network counted as never right.
_SHARPNESS, _NETWORK = 3.0, 9.4
_MOST_COPIES = 16


@dataclass
class _Copy:
    left: bytes
    """What it would write from here on."""
    ids: list[int]
    weight: float
    """Logarithm."""


class Copies:
    """Lines that compete with a network over one answer, token by token."""

    def __init__(
        self, tokenizer: Tokenizer, prefix: str, suffix: str, *, again: str, end: int | None
    ) -> None:
        """`again` is the end of the prefix that the answer begins with once more; `end` the token
        that a copy ends with, None where it is the network's to say how it goes on."""
        self._tokenizer, self._end = tokenizer, end
        self._network = _NETWORK
        self._logprobs: Tensor | None = None
        weights: dict[str, float] = {}
        for text, likeness in similar_lines(prefix, suffix, most=_NEAR_LINES):
            if text:
                weights[text] = weights.get(text, 0.0) + math.exp(_SHARPNESS * likeness)
        likeliest = sorted(weights, key=lambda text: -weights[text])[:_MOST_COPIES]
        self._copies = [
            _Copy((again + text).encode(), self._encode(again + text), math.log(weights[text]))
            for text in likeliest
        ]

    def mix(self, logits: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """Logarithms of the mixture's probabilities, up to a constant."""
        if not self._copies:
            return logits
        self._logprobs = logits.double().log_softmax(-1)
        mixed = self._logprobs + self._network
        for copy in self._copies:
            token = copy.ids[0] if copy.ids else self._end
            if token is not None:
                weight = torch.tensor(copy.weight, dtype=mixed.dtype)
                mixed[token] = torch.logaddexp(mixed[token], weight)
        return mixed

    def push(self, token: int) -> None:
        """Account for the token that was chosen after `mix`."""
        if not self._copies or self._logprobs is None:
            return
        self._network += float(self._logprobs[token])
        written = self._tokenizer.bytes_of(token)
        going = []
        for copy in self._copies:
            if not copy.left.startswith(written):
                continue
            copy.left = copy.left[len(written) :]
            if copy.ids[:1] == [token]:
                del copy.ids[0]
            else:
                copy.ids = self._encode(copy.left.decode("utf-8", "ignore"))
            if copy.left or self._end is not None:
                going.append(copy)
        self._copies = going

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, named=False)
