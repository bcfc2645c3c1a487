"""A ragged chunk: the next tokens of several sequences, laid end to end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One sequence's part of a chunk."""

    rows: slice  # where its tokens lie in the chunk
    start: int  # absolute position of its first token
    length: int


@dataclass(frozen=True)
class Chunk:
    """Tokens, and the boundaries between sequences.

    Operations on single tokens apply to all rows at once; attention and compression run span by
    span, so sequences are independent and nothing is padded.
    """

    tokens: Int[Tensor, " t"]
    spans: tuple[Span, ...]

    @cached_property
    def positions(self) -> Int[Tensor, " t"]:
        """The absolute position of each token."""
        parts = [torch.arange(span.start, span.start + span.length) for span in self.spans]
        return torch.cat(parts).to(self.tokens.device) if parts else self.tokens.new_zeros(0)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Each sequence's part of a tensor whose rows are the chunk's tokens."""
        return rows.split([span.length for span in self.spans])


def make_chunk(tokens: Int[Tensor, " t"], lengths: Sequence[int], starts: Sequence[int]) -> Chunk:
    """Lay out a chunk: sequence i has lengths[i] tokens from position starts[i] on.

    Raises ValueError if the lengths do not add up to the number of tokens.
    """
    if sum(lengths) != len(tokens) or min(lengths, default=0) < 0:
        raise ValueError(
            f"lengths {list(lengths)} must be counts that add up to the {len(tokens)} tokens given"
        )
    spans, low = [], 0
    for start, length in zip(starts, lengths, strict=True):
        spans.append(Span(slice(low, low + length), start, length))
        low += length
    return Chunk(tokens, tuple(spans))
