"""Cross-entropy over the vocabulary for training. See ops/loss.py."""

from typing import Any

import torch
from torch import Tensor

from sounding.ops.cpu.training.call import call, rows
from sounding.ops.cpu.training.products import have_tiles, multiply, outer, pack

_ROWS = 2048  # whose logits exist at once, and give one product for the head's gradient
_PART_ROWS = 256  # of them, made and used up while they are in the cache


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Any:
    """Twin of the reference."""
    return _CrossEntropy.apply(hidden.contiguous(), head, targets.contiguous())


class _Torch:
    """The head's three products."""

    def __init__(self, hidden: Tensor, head: Tensor) -> None:
        self._dense = head.to(hidden.dtype)

    def logits(self, hidden: Tensor, logits: Tensor) -> None:
        torch.mm(hidden, self._dense.T, out=logits)

    def back(self, grad: Tensor, grad_hidden: Tensor) -> None:
        torch.mm(grad, self._dense, out=grad_hidden)

    def add_outer(self, grad: Tensor, hidden: Tensor, grad_head: Tensor) -> None:
        grad_head += grad.T @ hidden


class _Tiles:
    """The products of the head by our kernels."""

    def __init__(self, hidden: Tensor, head: Tensor) -> None:
        self._turned, self._straight = pack(head[None])

    def logits(self, hidden: Tensor, logits: Tensor) -> None:
        multiply(hidden, self._turned, [0, len(hidden)], logits)

    def back(self, grad: Tensor, grad_hidden: Tensor) -> None:
        multiply(grad, self._straight, [0, len(grad)], grad_hidden)

    def add_outer(self, grad: Tensor, hidden: Tensor, grad_head: Tensor) -> None:
        outer(grad, hidden, [0, len(grad)], grad_head, add=True)


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradient while a chunk's logits exist, in their memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        vocab, (learns, head_learns, _) = head.shape[0], ctx.needs_input_grad
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if head_learns else None
        buffer = hidden.new_empty(min(_ROWS, len(hidden)), vocab)
        products = _Tiles(hidden, head) if have_tiles(hidden, head) else _Torch(hidden, head)
        for low in range(0, len(hidden), _ROWS):
            high = min(low + _ROWS, len(hidden))
            for first in range(low, high, _PART_ROWS):
                part = slice(first, min(first + _PART_ROWS, high))
                logits = buffer[part.start - low : part.stop - low]
                products.logits(hidden[part], logits)
                sizes = (rows(len(logits)), vocab)
                call("cross_entropy", logits, *sizes, logits, targets[part], losses[part])
                if learns or head_learns:
                    products.back(logits, grad_hidden[part])
            if grad_head is not None:
                products.add_outer(buffer[: high - low], hidden[low:high], grad_head)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.head_dtype = head.dtype
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        (outer,) = gradients
        if grad_head is not None:  # else the head is frozen
            grad_head = (grad_head * outer).to(ctx.head_dtype)
        return grad_hidden * outer.to(grad_hidden.dtype), grad_head, None
