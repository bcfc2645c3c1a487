"""Log-probabilities of given tokens, without all logits in memory at once, differentiable."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.ops.norm import upcast

CHUNK_TOKENS = 512  # logits of this many tokens exist at once


class Kept(NamedTuple):
    """The tokens that a sampler left at each position, by top-p, top-k or min-p; ragged."""

    ids: Int[Tensor, " n"]
    counts: Int[Tensor, " t"]

    def mask(self, low: int, high: int, vocabulary: int) -> Tensor:
        """True where a token of these positions was left, [high - low, v]."""
        first = int(self.counts[:low].sum())
        counts = self.counts[low:high]
        ids = self.ids[first : first + int(counts.sum())]
        rows = torch.arange(len(counts), device=ids.device).repeat_interleave(counts)
        mask = torch.zeros(len(counts), vocabulary, dtype=torch.bool, device=ids.device)
        mask[rows, ids.long()] = True
        return mask


class TokenLogprobs(NamedTuple):
    """Of each position: its token's log-probability, and the entropy of all (no gradient)."""

    logprobs: Float[Tensor, " t"]
    entropy: Float[Tensor, " t"]


def token_logprobs(
    hidden: Float[Tensor, "t c"],
    head: Float[Tensor, "v c"],
    tokens: Int[Tensor, " t"],
    *,
    temperature: float = 1.0,
    kept: Kept | None = None,
) -> TokenLogprobs:
    """log softmax(hidden head^T / temperature)[token], over the kept tokens where some were cut.

    The head is rounded to the dtype of hidden, as it is deployed; product and sums are in float32
    (float64 for that), unlike those of `cross_entropy`: differences between samplers and trainers
    are of the size of a rounding in bfloat16.
    """
    return TokenLogprobs(*_TokenLogprobs.apply(hidden, head, tokens, temperature, kept))


class _TokenLogprobs(torch.autograd.Function):
    """Computes logits once for the values, and again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        tokens: Tensor,
        temperature: float,
        kept: Kept | None,
    ) -> tuple[Tensor, Tensor]:
        dense = upcast(head.to(hidden.dtype))
        chosen, entropy = [], []
        for low in range(0, len(hidden), CHUNK_TOKENS):
            logprobs = _chunk(hidden, dense, low, temperature, kept)
            target = tokens[low : low + CHUNK_TOKENS, None]
            chosen.append(logprobs.gather(1, target)[:, 0])
            shares = logprobs.exp()
            # A token that was cut has no share, and -inf for a logarithm.
            entropy.append(-(shares * logprobs.masked_fill(shares == 0, 0.0)).sum(-1))
        ctx.save_for_backward(hidden, head, tokens)
        ctx.temperature, ctx.kept = temperature, kept
        empty = upcast(hidden.new_zeros(0))
        made = torch.cat(chosen or [empty]), torch.cat(entropy or [empty])
        ctx.mark_non_differentiable(made[1])
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, head, tokens = ctx.saved_tensors
        dense = upcast(head.to(hidden.dtype))
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(dense)
        for low in range(0, len(hidden), CHUNK_TOKENS):
            part = slice(low, low + CHUNK_TOKENS)
            outer = (gradients[0][part] / ctx.temperature)[:, None]
            # d logprob / d logits = one-hot - softmax.
            error = _chunk(hidden, dense, low, ctx.temperature, ctx.kept).exp_() * -outer
            error.scatter_add_(1, tokens[part, None], outer)
            grad_hidden[part] = (error @ dense).to(hidden.dtype)
            grad_head += error.T @ upcast(hidden[part])
        return grad_hidden, grad_head.to(head.dtype), None, None, None


def _chunk(
    hidden: Tensor, dense: Tensor, low: int, temperature: float, kept: Kept | None
) -> Tensor:
    """Log-probabilities of every token at some positions; -inf for tokens that were cut."""
    part = hidden[low : low + CHUNK_TOKENS]
    logits = upcast(part) @ dense.T
    if temperature != 1:
        logits = logits / temperature
    if kept is not None:
        mask = kept.mask(low, low + len(part), len(dense))
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.log_softmax(-1)
