"""Exercises made of random tokens, in which one stretch comes twice.

The tokens before a target do not tell it; a network has to look back for the first occurrence.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from sounding.data.token_batch import StreamState, TokenBatch
from sounding.ops.loss import IGNORED
from sounding.train.objective import BatchSource


def copying(vocab_size: int, sequence_tokens: int, rows: int, seed: int) -> BatchSource[TokenBatch]:
    """Sequences whose second half repeats the first; targets are those of the second half.

    A network that looks back far enough brings the loss to 0, one that does not stays at
    ln(vocab_size).
    """
    half = sequence_tokens // 2

    def batch(index: int) -> TokenBatch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        drawn = torch.randint(2, vocab_size, (rows, half), generator=generator)
        tokens = torch.cat((drawn, drawn), 1)
        targets = torch.roll(tokens, -1, 1)
        targets[:, : half - 1] = IGNORED
        targets[:, -1] = IGNORED
        return TokenBatch(tokens.flatten(), targets.flatten(), [2 * half] * rows)

    return _stream(batch)


def repeats(
    tokens: NDArray[np.uint16], sequence_tokens: int, rows: int, seed: int
) -> BatchSource[TokenBatch]:
    """Sequences of tokens drawn from `tokens`, in which one stretch of each is repeated.

    Length, place and distance of the stretch are drawn too; targets are those of the repetition.
    """
    shortest, longest = max(2, sequence_tokens // 8), sequence_tokens // 2

    def sequence(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        drawn = tokens[rng.integers(len(tokens), size=sequence_tokens)].astype(np.int64)
        length = int(rng.integers(shortest, longest, endpoint=True))
        first, gap = np.sort(rng.integers(sequence_tokens - 2 * length + 1, size=2))
        second = gap + length  # at or after first + length
        drawn[second : second + length] = drawn[first : first + length]
        targets = np.full(sequence_tokens, IGNORED)
        targets[second : second + length - 1] = drawn[second + 1 : second + length]
        return drawn, targets

    def batch(index: int) -> TokenBatch:
        rng = np.random.default_rng((seed, index))
        pairs = [sequence(rng) for _ in range(rows)]
        drawn, targets = (
            torch.from_numpy(np.concatenate(part)) for part in zip(*pairs, strict=True)
        )
        return TokenBatch(drawn, targets, [sequence_tokens] * rows)

    return _stream(batch)


def _stream(batch: Callable[[int], TokenBatch]) -> BatchSource[TokenBatch]:
    """Batches 0, 1, ... without end."""

    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        for index in itertools.count(0 if state is None else int(state["batch"])):
            yield batch(index), {"batch": index + 1}

    return open_stream
