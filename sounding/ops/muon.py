"""Muon's update: momentum, orthogonalised. Source: docs/training.md 5.2 and 5.3.

M <- mu M + G;  O = NS(mu M + G);  W <- shrink W - length O.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.ops.dispatch import op

_STEEP = (3.4445, -4.7750, 2.0315)  # drives small singular values up fast, without settling
_SETTLE = (2.0, -1.5, 0.5)  # converges to 1 once they are near it
NEWTON_SCHULZ = (_STEEP,) * 8 + (_SETTLE,) * 2


@op(
    training={"cpu": "sounding.ops.cpu.training.muon:update"},
    device_of=lambda weights, *others, **options: weights[0],
)
def update(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    mu: float,
    shrink: float,
    length: float,
    dtype: torch.dtype,
) -> None:
    """Change weights and momenta in place. A tensor is a matrix or a stack of them, [..., n, m],
    with the same n and m in all. `dtype` is that of Newton-Schulz.
    """
    ahead = look_ahead(gradients, momenta, mu)
    move(weights, orthogonalise(ahead, dtype), shrink, length)


def look_ahead(gradients: list[Tensor], momenta: list[Tensor], mu: float) -> list[Tensor]:
    """Nesterov's momentum: where the next step would lead. Changes the momenta in place."""
    torch._foreach_mul_(momenta, mu)
    torch._foreach_add_(momenta, gradients)
    return list(torch._foreach_add(gradients, momenta, alpha=mu))


def orthogonalise(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Every matrix in the tensors replaced by its nearest orthogonal one, all in one batch."""
    shape = tensors[0].shape[-2:]
    stacked = torch.cat([tensor.reshape(-1, *shape) for tensor in tensors])
    parts = newton_schulz(stacked, dtype).split([t.numel() // shape.numel() for t in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def move(weights: list[Tensor], directions: list[Tensor], shrink: float, length: float) -> None:
    """W <- shrink W - length O, in place."""
    torch._foreach_mul_(weights, shrink)
    torch._foreach_add_(weights, directions, alpha=-length)


def newton_schulz(
    matrices: Float[Tensor, "b n m"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b n m"]:
    """The nearest (semi-)orthogonal matrix of each, i.e. U V^T of its singular vectors.

    X <- a X + b (X X^T) X + c (X X^T)^2 X from X / ||X||_F, eight steep and two settling steps.
    Computed in `dtype`; bfloat16 is stable enough.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT  # X X^T is then the smaller Gram matrix
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = (x / norm.clamp_min(torch.finfo(norm.dtype).tiny)).to(dtype)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
