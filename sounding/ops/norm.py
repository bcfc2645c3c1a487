"""RMS normalisation, with and without a weight."""

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.ops.dispatch import op


def upcast(x: Tensor) -> Tensor:
    """The precision that statistics are taken in: float32, or float64 where x already is."""
    return x if x.dtype == torch.float64 else x.float()


@op(training={"cpu": "sounding.ops.cpu.training.norm:rms_norm"})
def rms_norm(
    x: Float[Tensor, "*batch c"], weight: Float[Tensor, " c"] | None, eps: float
) -> Float[Tensor, "*batch c"]:
    """x * rsqrt(mean(x^2) + eps) * weight, in float32, cast back to the dtype of x.

    Without a weight this is the normalisation of query heads.
    Source: docs/architecture.md 2 and 5.2.
    """
    wide = upcast(x)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * weight.to(wide.dtype)
    return wide.to(x.dtype)
