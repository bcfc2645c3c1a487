"""Linear maps with a plain, FP8 or FP4 weight, selected by its storage."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sounding.ops.dispatch import op
from sounding.ops.norm import upcast
from sounding.ops.quant import LINEAR_INPUT_BLOCK, dequantize_fp4, dequantize_fp8, simulate_fp8


class Weight(NamedTuple):
    """A weight as stored; its dtype is the format (int8 is packed FP4, e4m3 is FP8).

    Packed ones are matrices [..., o, i] with scales; plain ones have any shape.
    """

    values: Tensor
    scale: Tensor | None = None

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "..."]:
        """Dequantize the weight, rounding once."""
        if self.scale is None:
            return self.values.to(dtype)
        if self.values.dtype == torch.int8:
            return dequantize_fp4(self.values, self.scale, dtype)
        return dequantize_fp8(self.values, self.scale, dtype)

    def unstack(self) -> "list[Weight]":
        """The matrices of a stack, e.g. one per expert."""
        values = self.values.unbind(0)
        scales = (None,) * len(values) if self.scale is None else self.scale.unbind(0)
        return [Weight(*pair) for pair in zip(values, scales, strict=True)]


@op(training={"cpu": "sounding.ops.cpu.training.products:linear"})
def linear(
    x: Float[Tensor, "*batch i"], weight: Weight, *, simulate: bool = False
) -> Float[Tensor, "*batch o"]:
    """x W^T in the dtype of x. `simulate` quantizes x to FP8 per 128 channels first.

    Source: docs/architecture.md 9.3; its blockwise scaling is the same sum in another order.
    """
    if simulate:
        x = simulate_fp8(x, LINEAR_INPUT_BLOCK)
    return functional.linear(x, weight.dense(x.dtype))


@op(training={"cpu": "sounding.ops.cpu.training.products:wide_linear"})
def wide_linear(x: Float[Tensor, "t i"], *weights: Weight) -> Float[Tensor, "t o"]:
    """x W^T in float32 or wider, whatever the dtype of x, of each weight, side by side: the scores
    of a vocabulary, what is pooled into an entry."""
    wide = upcast(x)
    return side_by_side([linear(wide, weight) for weight in weights])


def side_by_side(products: list[Float[Tensor, "t _"]]) -> Float[Tensor, "t o"]:
    """Products of one input in one tensor; a single one, such as a vocabulary's, as it is."""
    return products[0] if len(products) == 1 else torch.cat(products, -1)


@op(training={"cpu": "sounding.ops.cpu.training.products:grouped_linear"})
def grouped_linear(
    x: Float[Tensor, "t g i"], weight: Weight, groups: int
) -> Float[Tensor, "t g o"]:
    """Group a of x times its own rows of W [g * o, i]. Source: docs/architecture.md 5.6."""
    dense = weight.dense(x.dtype).unflatten(0, (groups, -1))
    parts = [functional.linear(*pair) for pair in zip(x.unbind(1), dense.unbind(0), strict=True)]
    return torch.stack(parts, 1)
