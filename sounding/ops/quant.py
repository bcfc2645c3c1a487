"""Low-precision number formats: FP8 and FP4 blocks with power-of-two scales.

Weights are packed and unpacked here as a checkpoint stores them; activations are quantized and
dequantized at once (`simulate_*`), with a straight-through gradient, as the deployed network does.
Source: docs/architecture.md 9, docs/checkpoints.md 3.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

FP8_MAX = 448.0  # largest e4m3 value
FP4_MAX = 6.0  # largest e2m1 value
FP4_TABLE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the low three bits; bit 3 is the sign
WEIGHT_TILE = 128  # FP8 weights: one scale per 128 x 128 tile
FP4_BLOCK = 32  # FP4: one scale per 32 consecutive inputs
LINEAR_INPUT_BLOCK = 128  # inputs of quantized linears
KV_BLOCK = 64  # channels of a key/value entry that share a scale

_FP8_AMAX_FLOOR = 1e-4
_FP4_AMAX_FLOOR = 6 * 2.0**-126
_SCALE_BIAS = 127  # e8m0: value = 2^(byte - 127), byte 255 is NaN


# --------------------------------------------------------------------------------------------------
# Scales


def power_of_two_scale(
    amax: Float[Tensor, "*batch"], top: float, floor: float
) -> Float[Tensor, "*batch"]:
    """2^ceil(log2(max(amax, floor) / top)): the smallest power of two that keeps amax within top.

    The exponent is read from the number, not computed by a logarithm, so exact powers stay exact.
    """
    mantissa, exponent = torch.frexp(amax.clamp_min(floor) / top)
    return torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())


def encode_scale(scale: Float[Tensor, "*batch"]) -> Shaped[Tensor, "*batch"]:
    """Powers of two as e8m0 bytes (torch.float8_e8m0fnu)."""
    exponent = torch.frexp(scale.float())[1] - 1
    return (exponent + _SCALE_BIAS).to(torch.uint8).view(torch.float8_e8m0fnu)


def decode_scale(
    scale: Shaped[Tensor, "*batch"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch"]:
    """Stored scales as numbers: e8m0 bytes, or the float32 scales of Base checkpoints."""
    return scale.to(torch.float32).to(dtype)


# --------------------------------------------------------------------------------------------------
# Weights


def quantize_fp8(
    weight: Float[Tensor, "*batch o i"],
) -> tuple[Shaped[Tensor, "*batch o i"], Shaped[Tensor, "*batch p q"]]:
    """A weight as e4m3 values and one e8m0 scale per 128 x 128 tile (the last tiles may be cut)."""
    rows, columns = weight.shape[-2:]
    tiles = _tiles(weight.float())
    scale = power_of_two_scale(tiles.abs().amax((-3, -1)), FP8_MAX, _FP8_AMAX_FLOOR)
    scaled = tiles / scale[..., :, None, :, None]
    values = scaled.flatten(-2).flatten(-3, -2)[..., :rows, :columns]
    return values.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), encode_scale(scale)


def dequantize_fp8(
    weight: Shaped[Tensor, "*batch o i"],
    scale: Shaped[Tensor, "*batch p q"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*batch o i"]:
    """value[o, i] = weight[o, i] * scale[o // 128, i // 128]."""
    rows, columns = weight.shape[-2:]
    # Base scales are any float32 numbers: rounding comes last.
    exact = torch.promote_types(dtype, torch.float32)
    wide = decode_scale(scale, exact)
    wide = wide.repeat_interleave(WEIGHT_TILE, -2)[..., :rows, :]
    wide = wide.repeat_interleave(WEIGHT_TILE, -1)[..., :columns]
    return (weight.to(exact) * wide).to(dtype)


def quantize_fp4(
    weight: Float[Tensor, "*batch o i"],
) -> tuple[Int[Tensor, "*batch o half"], Shaped[Tensor, "*batch o q"]]:
    """A weight as packed e2m1 pairs (int8) and one e8m0 scale per row and 32 inputs.

    Raises ValueError unless the input width is a multiple of 32.
    """
    _require_fp4_width(weight)
    values, scale = fp4_blocks(weight.float())
    return pack_fp4(values.flatten(-2)), encode_scale(scale)


def dequantize_fp4(
    packed: Int[Tensor, "*batch o half"],
    scale: Shaped[Tensor, "*batch o q"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*batch o i"]:
    """value[o, i] = table[code] * scale[o, i // 32]; the low nibble of a byte comes first."""
    exact = torch.promote_types(dtype, torch.float32)  # float16 cannot hold every scale
    values = unpack_fp4(packed, exact).unflatten(-1, (-1, FP4_BLOCK))
    return (values * decode_scale(scale, exact)[..., None]).flatten(-2).to(dtype)


def repack_fp4_as_fp8(
    packed: Int[Tensor, "*batch o half"], scale: Shaped[Tensor, "*batch o q"]
) -> tuple[Shaped[Tensor, "*batch o i"], Shaped[Tensor, "*batch p q2"]]:
    """Convert FP4 to e4m3 with one scale per tile, exactly, for readers without FP4.

    A tile's scale is its largest FP4 scale / 64, so values reach at most 6 * 64 = 384.
    Raises ValueError when the scales of one tile differ by more than 2^14, where the smallest
    FP4 value would fall below the e4m3 subnormals. Source: docs/checkpoints.md 3.3.
    """
    values = unpack_fp4(packed, torch.float32)
    rows, columns = values.shape[-2:]
    blocks = decode_scale(scale)
    largest = _tiles(blocks, WEIGHT_TILE // FP4_BLOCK).amax((-3, -1))
    tile_scale = (largest / 64).clamp_min(2.0**-_SCALE_BIAS)  # e8m0 goes no lower
    wide = tile_scale.repeat_interleave(WEIGHT_TILE, -2)[..., :rows, :]
    wide = wide.repeat_interleave(WEIGHT_TILE // FP4_BLOCK, -1)[..., : blocks.shape[-1]]
    factor = (blocks / wide).repeat_interleave(FP4_BLOCK, -1)[..., :columns]
    repacked = (values * factor).to(torch.float8_e4m3fn)
    if not torch.equal(repacked.float(), values * factor):
        raise ValueError(
            "FP4 weights cannot be repacked as FP8 exactly: the scales within a 128 x 128 tile "
            "differ by more than 2^14; convert through bf16 instead"
        )
    return repacked, encode_scale(tile_scale)


def pack_fp4(values: Float[Tensor, "*batch i"]) -> Int[Tensor, "*batch half"]:
    """Exact e2m1 values as codes, two per byte, the even element in the low nibble."""
    table = values.new_tensor(FP4_TABLE)
    codes = torch.bucketize(values.abs().contiguous(), table).to(torch.uint8)
    codes |= values.signbit().to(torch.uint8) << 3
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).view(torch.int8)


def unpack_fp4(
    packed: Int[Tensor, "*batch half"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch i"]:
    """The e2m1 values of packed codes, without their scales."""
    codes = packed.view(torch.uint8)
    pairs = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()
    table = torch.tensor([*FP4_TABLE, *(-value for value in FP4_TABLE)], dtype=dtype)
    return table.to(packed.device)[pairs]


def _tiles(weight: Tensor, columns: int = WEIGHT_TILE) -> Tensor:
    """Cut the last two dimensions into tiles [..., p, 128, q, columns], the last zero-padded."""
    bottom, right = -weight.shape[-2] % WEIGHT_TILE, -weight.shape[-1] % columns
    padded = pad(weight, (0, right, 0, bottom))
    return padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, WEIGHT_TILE))


def _require_fp4_width(weight: Tensor) -> None:
    if weight.shape[-1] % FP4_BLOCK:
        raise ValueError(
            f"a weight of {weight.shape[-1]} inputs cannot be FP4: its scales cover blocks of "
            f"{FP4_BLOCK}, so the width must be a multiple of that"
        )


# --------------------------------------------------------------------------------------------------
# Activations


def fp8_blocks(
    x: Float[Tensor, "*batch d"], block: int
) -> tuple[Float[Tensor, "*batch n block"], Float[Tensor, "*batch n"]]:
    """Values on the e4m3 grid and the scale of each block; a last short block is zero-padded.

    Source: docs/architecture.md 9.1.
    """
    blocks = pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    scale = power_of_two_scale(blocks.abs().amax(-1), FP8_MAX, _FP8_AMAX_FLOOR)
    scaled = (blocks / scale[..., None]).clamp(-FP8_MAX, FP8_MAX)
    return scaled.to(torch.float8_e4m3fn).to(x.dtype), scale


def simulate_fp8(x: Float[Tensor, "*batch d"], block: int) -> Float[Tensor, "*batch d"]:
    """Quantize to FP8 in blocks of the last dimension and back; the gradient passes unchanged."""
    return _StraightThrough.apply(x, "fp8", block)


def simulate_fp4(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Quantize to FP4 in blocks of 32 and back; the gradient passes unchanged.

    Source: docs/architecture.md 9.2.
    """
    return _StraightThrough.apply(x, "fp4", FP4_BLOCK)


def simulate_weight(
    weight: Float[Tensor, "*batch o i"], format: Literal["fp8", "fp4"]
) -> Float[Tensor, "*batch o i"]:
    """A weight as it will be after quantization; the gradient passes unchanged to the original.

    Raises ValueError for FP4 unless the input width is a multiple of 32.
    """
    if format == "fp8":
        return _StraightThrough.apply(weight, "tiles", WEIGHT_TILE)
    _require_fp4_width(weight)
    return _StraightThrough.apply(weight, "fp4", FP4_BLOCK)


class _StraightThrough(torch.autograd.Function):
    """Rounding has no useful gradient; training treats it as the identity (docs/training.md 6)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, block: int) -> Tensor:
        if kind == "tiles":
            return dequantize_fp8(*quantize_fp8(x), x.dtype)
        wide = x if x.dtype == torch.float64 else x.float()
        values, scale = fp8_blocks(wide, block) if kind == "fp8" else fp4_blocks(wide)
        return (values * scale[..., None]).flatten(-2)[..., : x.shape[-1]].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def fp4_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values on the e2m1 grid and the scale of each block of 32."""
    blocks = x.unflatten(-1, (-1, FP4_BLOCK))
    scale = power_of_two_scale(blocks.abs().amax(-1), FP4_MAX, _FP4_AMAX_FLOOR)
    return round_fp4(blocks / scale[..., None]), scale


def round_fp4(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Round to the nearest e2m1 value, ties to the even code, saturating at 6.

    The grid has steps of 1/2 below 2, 1 below 4 and 2 above, and its even codes are the even
    multiples of those steps, so rounding multiples half-to-even is the tie rule of the hardware.
    """
    x = x.clamp(-FP4_MAX, FP4_MAX)
    step = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0)).to(x.dtype)
    return torch.round(x / step) * step


def hadamard(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Rotate by the Sylvester Hadamard matrix times d^-0.5, by log2(d) butterflies.

    It spreads outliers over all channels before FP4 rounding. Source: docs/architecture.md 7.
    """
    width = x.shape[-1]
    span = 1
    while span < width:
        pairs = x.unflatten(-1, (-1, 2, span))
        low, high = pairs.unbind(-2)
        x = torch.stack((low + high, low - high), -2).flatten(-3)
        span *= 2
    return x * math.pow(width, -0.5)
