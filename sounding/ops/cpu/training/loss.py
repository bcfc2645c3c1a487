"""Cross-entropy over the vocabulary for training. See ops/loss.py."""

from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu.training.call import call, rows

_CHUNK_ELEMENTS = 1 << 24  # logits that exist at once: 32 MB of bfloat16


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Any:
    """Twin of the reference."""
    return _CrossEntropy.apply(hidden.contiguous(), head, targets.contiguous())


class _CrossEntropy(torch.autograd.Function):
    """Takes the gradient while a chunk's logits exist, in the memory of those logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        dense, vocab = head.to(hidden.dtype), head.shape[0]
        learns = any(ctx.needs_input_grad)
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
        size = max(1, _CHUNK_ELEMENTS // vocab)
        buffer = hidden.new_empty(min(size, len(hidden)), vocab)
        for low in range(0, len(hidden), size):
            part = slice(low, low + size)
            some = hidden[part]
            logits = torch.mm(some, dense.T, out=buffer[: len(some)])
            call("cross_entropy", logits, rows(len(some)), vocab, logits, targets[part], losses[part])
            if learns:
                torch.mm(logits, dense, out=grad_hidden[part])
                grad_head += logits.T @ some
        ctx.save_for_backward(grad_hidden, grad_head)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        (outer,) = gradients
        return grad_hidden * outer.to(grad_hidden.dtype), grad_head * outer, None
