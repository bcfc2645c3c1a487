"""Divergence between a student's and a teacher's next tokens, over the whole vocabulary.

Both sets of logits exist for a few positions at a time; what is kept of a teacher is its last
hidden state. Source: docs/post-training.md 4.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.ops.norm import upcast

CHUNK_TOKENS = 512  # logits of this many tokens exist at once, of student and teacher


def divergence(
    hidden: Float[Tensor, "t c"],
    head: Float[Tensor, "v c"],
    teacher_hidden: Float[Tensor, "t d"],
    teacher_head: Float[Tensor, "v d"],
    *,
    forward_weight: float = 0.0,
) -> Float[Tensor, " t"]:
    """Of each position (1 - w) KL(p || q) + w KL(q || p), with w `forward_weight`.

    p = softmax(hidden head^T) is the student's, q = softmax(teacher_hidden teacher_head^T) the
    teacher's, whose tensors take no gradient. With respect to the student's logits it is
    p (log p - log q - KL(p || q)) of the first and p - q of the second. Heads are rounded to the
    dtype of their hidden states; products and sums are in float32 (float64 for that).
    """
    made: Tensor = _Divergence.apply(hidden, head, teacher_hidden, teacher_head, forward_weight)
    return made


class _Divergence(torch.autograd.Function):
    """Computes logits once for the values, and again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        forward_weight: float,
    ) -> Tensor:
        ctx.save_for_backward(hidden, head, teacher_hidden, teacher_head)
        ctx.forward_weight = forward_weight
        made = [upcast(hidden.new_zeros(0))]
        for low in range(0, len(hidden), CHUNK_TOKENS):
            student = _chunk(hidden, head, low)
            teacher = _chunk(teacher_hidden, teacher_head, low)
            ratio = student - teacher
            value = (1 - forward_weight) * (student.exp() * ratio).sum(-1)
            if forward_weight:
                value -= forward_weight * (teacher.exp() * ratio).sum(-1)
            made.append(value)
        return torch.cat(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, head, teacher_hidden, teacher_head = ctx.saved_tensors
        forward_weight = ctx.forward_weight
        dense = upcast(head.to(hidden.dtype))
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(dense)
        for low in range(0, len(hidden), CHUNK_TOKENS):
            part = slice(low, low + CHUNK_TOKENS)
            student = _chunk(hidden, head, low)
            teacher = _chunk(teacher_hidden, teacher_head, low)
            shares = student.exp()
            ratio = student - teacher
            reverse = (shares * ratio).sum(-1, keepdim=True)
            error = shares * (ratio - reverse) * (1 - forward_weight)
            if forward_weight:
                error += forward_weight * (shares - teacher.exp())
            error *= gradients[0][part, None]
            grad_hidden[part] = (error @ dense).to(hidden.dtype)
            grad_head += error.T @ upcast(hidden[part])
        return grad_hidden, grad_head.to(head.dtype), None, None, None


def _chunk(hidden: Tensor, head: Tensor, low: int) -> Tensor:
    """Log-probabilities of every token at some positions."""
    part = hidden[low : low + CHUNK_TOKENS]
    return (upcast(part) @ upcast(head.to(hidden.dtype)).T).log_softmax(-1)
