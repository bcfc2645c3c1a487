"""Rotary position embedding on the last channels of a head, plain or with YaRN, and its inverse.

Source: docs/architecture.md 4.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sounding import rotary
from sounding.config import RopeScaling
from sounding.ops.dispatch import op
from sounding.ops.norm import upcast


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, float32 [t, pairs]."""

    cos: Float[Tensor, "t pairs"]
    sin: Float[Tensor, "t pairs"]


@lru_cache
def rope_frequencies(
    width: int, theta: float, scaling: RopeScaling | None, device: torch.device
) -> Float[Tensor, " pairs"]:
    """Angle per position of each channel pair, float32; see `sounding.rotary`."""
    return torch.from_numpy(rotary.rope_frequencies(width, theta, scaling).copy()).to(device)


def rotation(positions: Int[Tensor, " t"], frequencies: Float[Tensor, " pairs"]) -> Rotation:
    """The angles of tokens at absolute positions, float32 as the published code computes them."""
    angles = positions.float()[:, None] * frequencies
    return Rotation(angles.cos(), angles.sin())


@op(training={"cpu": "sounding.ops.cpu.training.norm:rotate"})
def rotate(
    x: Float[Tensor, "t *heads d"], by: Rotation, *, inverse: bool = False
) -> Float[Tensor, "t *heads d"]:
    """Turn the last 2 * pairs channels; channels (2i, 2i + 1) form pair i.

    The inverse takes back the rotation that keys carry when they also serve as values.
    """
    cos, sin = by
    if inverse:
        sin = -sin
    if x.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    width = 2 * cos.shape[-1]
    plain, rotary = x[..., :-width], upcast(x[..., -width:])
    even, odd = rotary[..., 0::2], rotary[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    return torch.cat((plain, turned.to(x.dtype)), -1)
