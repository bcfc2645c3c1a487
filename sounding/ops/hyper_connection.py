"""Manifold-constrained hyper-connections: how a sub-layer reads and writes the residual streams.

Source: docs/architecture.md 3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.ops.dispatch import op
from sounding.ops.norm import rms_norm, upcast


class Coefficients(NamedTuple):
    """One sub-layer's connection weights, predicted from a token's own streams."""

    pre: Float[Tensor, "t m"]  # how much of each stream the sub-layer reads
    post: Float[Tensor, "t m"]  # how much of its output each stream takes
    mix: Float[Tensor, "t m m2"]  # doubly stochastic: source stream, destination stream


class Connection(NamedTuple):
    """A sub-layer's input, and how its output is to be written to the streams."""

    x: Float[Tensor, "t c"]
    post: Float[Tensor, "t m"]
    mix: Float[Tensor, "t m m2"]
    streams: Float[
        Tensor, "t m c"
    ]  # the input: `write` takes these, so that gradients are summed in one place


@op(twins={"cpu": "sounding.ops.cpu.hyper_connection:connect"})
def connect(
    streams: Float[Tensor, "t m c"],
    fn: Float[Tensor, "n mc"],
    base: Float[Tensor, " n"],
    scale: Float[Tensor, "3"],
    *,
    iterations: int,
    norm_eps: float,
    hc_eps: float,
) -> Connection:
    """Predict the coefficients of a sub-layer and read its input from the streams."""
    by = coefficients(
        streams, fn, base, scale, iterations=iterations, norm_eps=norm_eps, hc_eps=hc_eps
    )
    return Connection(read(streams, by.pre), by.post, by.mix, streams)


def coefficients(
    streams: Float[Tensor, "t m c"],
    fn: Float[Tensor, "n mc"],
    base: Float[Tensor, " n"],
    scale: Float[Tensor, "3"],
    *,
    iterations: int,
    norm_eps: float,
    hc_eps: float,
) -> Coefficients:
    """Predict pre, post and mix from the flattened streams, in float32. n = (2 + m) * m.

    Source: docs/architecture.md 3.1.
    """
    m = streams.shape[1]
    pre, post, mix = _project(streams, fn, norm_eps).split((m, m, m * m), -1)
    pre_base, post_base, mix_base = base.split((m, m, m * m))
    logits = (mix * scale[2] + mix_base).unflatten(-1, (m, m))
    return Coefficients(
        pre=torch.sigmoid(pre * scale[0] + pre_base) + hc_eps,
        post=2 * torch.sigmoid(post * scale[1] + post_base),
        mix=sinkhorn(logits, iterations, hc_eps),
    )


def sinkhorn(
    logits: Float[Tensor, "t m m2"], iterations: int, eps: float
) -> Float[Tensor, "t m m2"]:
    """Make each matrix doubly stochastic: softmax of its rows, then columns and rows in turn.

    It ends on columns, as the published code does and not as the report writes it.
    Source: docs/architecture.md 3.2.
    """
    mix = logits.softmax(-1) + eps
    mix = mix / (mix.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        mix = mix / (mix.sum(-1, keepdim=True) + eps)
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
    return mix


def read(streams: Float[Tensor, "t m c"], pre: Float[Tensor, "t m"]) -> Float[Tensor, "t c"]:
    """sum_m pre_m * stream_m, in float32, cast back."""
    return (upcast(streams) * pre[..., None]).sum(1).to(streams.dtype)


@op(twins={"cpu": "sounding.ops.cpu.hyper_connection:write"})
def write(
    streams: Float[Tensor, "t m c"],
    output: Float[Tensor, "t c"],
    post: Float[Tensor, "t m"],
    mix: Float[Tensor, "t m m2"],
) -> Float[Tensor, "t m c"]:
    """stream'_k = post_k * output + sum_j mix[j, k] * stream_j, in float32, cast back.

    Source: docs/architecture.md 3.3.
    """
    mixed = torch.einsum("tjk,tjc->tkc", mix, upcast(streams))
    return (mixed + post[..., None] * upcast(output)[:, None]).to(streams.dtype)


@op(training={"cpu": "sounding.ops.cpu.hyper_connection:collapse"})
def collapse(
    streams: Float[Tensor, "t m c"],
    fn: Float[Tensor, "m mc"],
    base: Float[Tensor, " m"],
    scale: Float[Tensor, "1"],
    *,
    norm_eps: float,
    hc_eps: float,
) -> Float[Tensor, "t c"]:
    """One vector from the streams, before the final norm. Source: docs/architecture.md 3.4."""
    pre = torch.sigmoid(_project(streams, fn, norm_eps) * scale + base) + hc_eps
    return read(streams, pre)


def read_out(
    streams: Float[Tensor, "t m c"],
    fn: Float[Tensor, "m mc"],
    base: Float[Tensor, " m"],
    scale: Float[Tensor, "1"],
    norm: Float[Tensor, " c"],
    *,
    norm_eps: float,
    hc_eps: float,
) -> Float[Tensor, "t c"]:
    """`collapse` and the norm after it: the input of the vocabulary head."""
    return rms_norm(
        collapse(streams, fn, base, scale, norm_eps=norm_eps, hc_eps=hc_eps), norm, norm_eps
    )


def _project(
    streams: Float[Tensor, "t m c"], fn: Float[Tensor, "n mc"], eps: float
) -> Float[Tensor, "t n"]:
    """(v fn^T) * rsqrt(mean(v^2) + eps) of the flattened streams v, in the published order."""
    flat = upcast(streams.flatten(1))
    return (flat @ fn.to(flat.dtype).T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
