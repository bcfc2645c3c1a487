"""Parameters with their published names; layers treat plain and quantized weights alike.

A quantized weight is two parameters, `weight` in packed form and `scale`; a plain one has no scale.
`format` is the weight's deployed format (docs/architecture.md 9.4), independent of storage.
"""

from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sounding.ops import matmul, norm
from sounding.ops.quant import simulate_weight
from sounding.simulation import EXACT, Simulation

Format = Literal["fp8", "fp4"] | None


class Delta(Protocol):
    """What is trained beside a weight that is not."""

    def added_to(self, weight: matmul.Weight) -> matmul.Weight:
        """The sum of both."""


class Linear(nn.Module):
    """x W^T without bias. `weight` is [o, i]; with `stack`, [stack, o, i] for one per expert."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        format: Format = None,
        simulation: Simulation = EXACT,
        stack: int | None = None,
    ) -> None:
        super().__init__()
        shape = (outputs, inputs) if stack is None else (stack, outputs, inputs)
        self.weight = nn.Parameter(torch.empty(shape))
        self.scale: nn.Parameter | None
        self.register_parameter("scale", None)
        self.format = format
        self.simulate = simulation.linear_inputs and format is not None
        self.simulate_weight = simulation.weights and format is not None
        self.adapter: Delta | None = None
        """Added to the weight at every use (`adapters.py`)."""

    @property
    def stored(self) -> matmul.Weight:
        """The weight as the ops take it, with its adapter."""
        weight = matmul.Weight(self.weight, self.scale)
        if self.simulate_weight and self.format is not None and self.scale is None:
            weight = matmul.Weight(simulate_weight(self.weight, self.format))
        return weight if self.adapter is None else self.adapter.added_to(weight)

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        return matmul.linear(x, self.stored, simulate=self.simulate)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        return norm.rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    """One vector per token, unscaled, in the dtype the network computes in."""

    def __init__(self, vocab_size: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, channels))

    def forward(self, tokens: Int[Tensor, " t"], dtype: torch.dtype) -> Float[Tensor, "t c"]:
        return torch.embedding(self.weight, tokens).to(dtype)
