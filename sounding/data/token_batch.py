"""A batch of tokens with their targets, from a loader to a training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sounding.ops.loss import IGNORED

StreamState = dict[str, Any]
"""A JSON value with the position in a stream of batches, to resume from."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences laid end to end, without padding; none of them sees another."""

    tokens: Int[Tensor, " t"]
    targets: Int[Tensor, " t"]
    """The token after each one in the same sequence; IGNORED where no loss is wanted."""
    lengths: list[int]
    """Tokens of each sequence, in order; they add up to t."""
    middles: Sequence[int] = ()
    """For each sequence, the number of tokens at its end that fill a gap in the text before them;
    empty where no sequence has a gap."""

    def to(self, device: torch.device) -> "TokenBatch":
        """Copy the batch to another device."""
        tokens, targets = self.tokens.to(device), self.targets.to(device)
        return TokenBatch(tokens, targets, self.lengths, self.middles)

    def padded(self, num_tokens: int) -> "TokenBatch":
        """The batch with at least `num_tokens` tokens: one more sequence, without targets.

        Matrix products are compiled for each shape they meet, so all batches should have one.
        """
        missing = num_tokens - len(self.tokens)
        if missing <= 0:
            return self
        return TokenBatch(
            torch.cat((self.tokens, self.tokens.new_zeros(missing))),
            torch.cat((self.targets, self.targets.new_full((missing,), IGNORED))),
            [*self.lengths, missing],
            [*self.middles, 0] if self.middles else (),
        )
