"""Cross-entropy over the vocabulary, without all logits in memory at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding.ops.dispatch import op
from sounding.ops.norm import upcast

IGNORED = -100  # target of a position that does not count
CHUNK_TOKENS = 1024  # logits of this many tokens exist at once


@op(training={"cpu": "sounding.ops.cpu.training.loss:cross_entropy"})
def cross_entropy(
    hidden: Float[Tensor, "t c"], head: Float[Tensor, "v c"], targets: Int[Tensor, " t"]
) -> Float[Tensor, ""]:
    """Sum over counted positions of -log softmax(hidden head^T)[target].

    A sum, so that losses of chunks and processes add up; divide by the number of counted targets.
    The product is taken in the dtype of hidden, everything after it in float32 (float64 for that).
    """
    loss: Tensor = _CrossEntropy.apply(hidden, head, targets)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradient while a chunk's logits exist, so that they are computed once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        dense = head.to(hidden.dtype)
        learns = any(ctx.needs_input_grad)
        total = upcast(hidden.new_zeros(()))
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(upcast(head))
        for low in range(0, hidden.shape[0], CHUNK_TOKENS):
            part = slice(low, low + CHUNK_TOKENS)
            logits = upcast(hidden[part] @ dense.T)
            counted = targets[part] != IGNORED
            target = targets[part].clamp_min(0)[:, None]
            logits -= logits.amax(-1, keepdim=True)
            aimed = logits.gather(1, target)[:, 0]
            sums = logits.exp_().sum(-1)
            total += (sums.log() - aimed)[counted].sum()
            if learns:  # softmax - one-hot, on counted rows
                logits *= (counted / sums)[:, None]
                logits.scatter_add_(1, target, -counted[:, None].to(logits.dtype))
                error = logits.to(hidden.dtype)
                grad_hidden[part] = error @ dense
                grad_head += error.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        (outer,) = gradients
        return grad_hidden * outer.to(grad_hidden.dtype), grad_head * outer, None
