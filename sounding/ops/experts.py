"""Routing of tokens to experts, and the experts themselves: clamped SwiGLU, grouped by expert.

Source: docs/architecture.md 10.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sounding.ops.dispatch import op
from sounding.ops.matmul import Weight, linear
from sounding.ops.norm import upcast


def affinity(x: Float[Tensor, "t c"], weight: Float[Tensor, "e c"]) -> Float[Tensor, "t e"]:
    """sqrt(softplus(x W^T)) in float32: how well each expert suits each token.

    Where softplus underflows (below -104) the affinity is 1e-19 and not 0, whose square root has no
    gradient and whose normalisation no value.
    """
    logits = upcast(x) @ upcast(weight).T
    return functional.softplus(logits).clamp_min(torch.finfo(logits.dtype).tiny).sqrt()


def routing_weights(
    scores: Float[Tensor, "t e"], chosen: Int[Tensor, "t k"], scale: float
) -> Float[Tensor, "t k"]:
    """The chosen experts' affinities, normalised over them, times the routed scaling factor."""
    picked = scores.gather(1, chosen)
    return picked / picked.sum(-1, keepdim=True) * scale


@op(training={"cpu": "sounding.ops.cpu.training.experts:swiglu"})
def swiglu(
    x: Float[Tensor, "t c"],
    w1: Weight,
    w2: Weight,
    w3: Weight,
    *,
    limit: float,
    weight: Float[Tensor, "t 1"] | None = None,
    simulate: bool = False,
) -> Float[Tensor, "t c"]:
    """w2(silu(min(w1 x, limit)) * clamp(w3 x, -limit, limit) * weight), inner part in float32.

    The routing weight goes in before w2, so before that layer's input is quantized.
    """
    gate = upcast(linear(x, w1, simulate=simulate)).clamp(max=limit)
    up = upcast(linear(x, w3, simulate=simulate)).clamp(-limit, limit)
    inner = functional.silu(gate) * up
    if weight is not None:
        inner = inner * weight
    return linear(inner.to(x.dtype), w2, simulate=simulate)


@op(training={"cpu": "sounding.ops.cpu.training.experts:experts"})
def experts(
    x: Float[Tensor, "t c"],
    chosen: Int[Tensor, "t k"],
    weights: Float[Tensor, "t k"],
    w1: Weight,
    w2: Weight,
    w3: Weight,
    *,
    limit: float,
    simulate: bool = False,
    always: Float[Tensor, "t c"] | None = None,
) -> Float[Tensor, "t c"]:
    """Sum of each token's chosen experts, in float32. w1, w3 are [e, inner, c], w2 [e, c, inner].

    What a shared expert gave it `always` is added, and the sum cast to the dtype of x. Every token
    adds its experts in order of their index, so its result does not depend on the tokens beside it.
    """
    output = torch.zeros_like(upcast(x))
    stacks = (w1.unstack(), w2.unstack(), w3.unstack())
    for index in chosen.unique().tolist():
        token, choice = (chosen == index).nonzero(as_tuple=True)
        one, two, three = (stack[index] for stack in stacks)
        result = swiglu(
            x[token],
            one,
            two,
            three,
            limit=limit,
            weight=weights[token, choice, None],
            simulate=simulate,
        )
        output = output.index_add(0, token, upcast(result))
    return output if always is None else (output + upcast(always)).to(x.dtype)
