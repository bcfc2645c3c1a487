"""Cross-entropy over the vocabulary for training. See ops/loss.py."""

from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu.training.call import call, rows

_ROWS = 2048  # whose logits exist at once, and give one product for the head's gradient
_PART_ROWS = 256  # of them, made and used up while they are in the cache


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
        buffer = hidden.new_empty(min(_ROWS, len(hidden)), vocab)
        for low in range(0, len(hidden), _ROWS):
            high = min(low + _ROWS, len(hidden))
            for first in range(low, high, _PART_ROWS):
                part = slice(first, min(first + _PART_ROWS, high))
                logits = buffer[part.start - low : part.stop - low]
                torch.mm(hidden[part], dense.T, out=logits)
                sizes = (rows(len(logits)), vocab)
                call("cross_entropy", logits, *sizes, logits, targets[part], losses[part])
                if learns:
                    torch.mm(logits, dense, out=grad_hidden[part])
            if learns:
                grad_head += buffer[: high - low].T @ hidden[low:high]
        ctx.save_for_backward(grad_hidden, grad_head)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        (outer,) = gradients
        return grad_hidden * outer.to(grad_hidden.dtype), grad_head * outer, None
