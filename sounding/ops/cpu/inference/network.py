"""What native code is told of a network, and calls into it: the structs of network.h and weight.h.

Pointers in a struct are addresses of tensors, which whoever fills it must keep alive.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sounding.ops.cpu import address, library
from sounding.ops.matmul import Weight, side_by_side
from sounding.ops.quant import FP4_BLOCK, WEIGHT_TILE

_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2, torch.int8: 3}
# Scales outside leave no room for the value's own exponent in a bfloat16.
_LEAST_SCALE, _LARGEST_SCALE = 10, 240
DONE = -1  # what `run` returns otherwise is in network.cpp
_POINTER = ctypes.c_void_p
_INT = ctypes.c_int64


class NativeWeight(ctypes.Structure):
    """struct Weight of weight.h."""

    _fields_ = (
        ("values", _POINTER),
        ("scales", _POINTER),
        ("rows", _INT),
        ("columns", _INT),
        ("row_bytes", _INT),
        ("scale_row", _INT),
        ("format", ctypes.c_int32),
        ("simulate", ctypes.c_int32),
        ("first", _INT),
    )


class NativeVector(ctypes.Structure):
    """struct Vector of network.h."""

    _fields_ = (("data", _POINTER), ("bfloat16", _INT))


class NativeHyperConnection(ctypes.Structure):
    """struct HyperConnection of network.h."""

    _fields_ = (("fn", _POINTER), ("base", _POINTER), ("scale", _POINTER))


class NativePooling(ctypes.Structure):
    """struct Pooling of network.h."""

    _fields_ = (
        ("wkv", NativeWeight),
        ("wgate", NativeWeight),
        ("ape", NativeVector),
        ("norm", NativeVector),
        ("width", _INT),
    )


class NativeLayer(ctypes.Structure):
    """struct Layer of network.h."""

    _fields_ = (
        ("ratio", _INT),
        ("frequencies", _POINTER),
        *((name, NativeVector) for name in ("attn_norm", "ffn_norm", "q_norm", "kv_norm", "sink")),
        ("attn_hc", NativeHyperConnection),
        ("ffn_hc", NativeHyperConnection),
        *((name, NativeWeight) for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")),
        ("compressor", NativePooling),
        ("index_compressor", NativePooling),
        *((name, NativeWeight) for name in ("index_wq_b", "index_weights", "gate")),
        ("bias", NativeVector),
        ("table", _POINTER),
        *((name, NativeWeight) for name in ("w1", "w2", "w3")),
        *((name, NativeWeight) for name in ("shared_w1", "shared_w2", "shared_w3")),
    )


class NativeNetwork(ctypes.Structure):
    """struct Network of network.h."""

    _fields_ = (
        *(
            (name, _INT)
            for name in (
                "channels streams heads head_dim rotary q_rank groups o_rank window index_heads "
                "index_width index_limit experts choices inner vocabulary iterations simulate_kv "
                "simulate_index"
            ).split()
        ),
        *(
            (name, ctypes.c_double)
            for name in ("norm_eps", "hc_eps", "swiglu_limit", "routed_scale")
        ),
    )


class NativeEnds(ctypes.Structure):
    """struct Ends of network.h."""

    _fields_ = (
        ("embedding", NativeWeight),
        ("head", NativeWeight),
        ("hc", NativeHyperConnection),
        ("norm", NativeVector),
    )


class NativeRows(ctypes.Structure):
    """struct Rows of network.h: a list of rows in memory of its own; row i is at i % slots."""

    _fields_ = (
        ("data", _POINTER),
        ("used", _POINTER),
        ("slots", _INT),
        ("row_bytes", _INT),
        ("length", _INT),
        ("kept", _INT),
        ("bounded", _INT),
        ("shared", _INT),
        ("format", _INT),
    )


ROW_FORMATS = {torch.float32: 0, torch.bfloat16: 1, "kv": 2, "index": 3}


def describe_weight(weight: Weight, *, simulate: bool = False) -> NativeWeight | None:
    """A weight for native code, or None where it has to go through the reference."""
    values, scale = weight
    plain = values.dtype in (torch.float32, torch.bfloat16) and scale is None
    packed = values.dtype in (torch.float8_e4m3fn, torch.int8) and scale is not None
    if not (plain or packed) or not values.is_contiguous() or values.device.type != "cpu":
        return None
    rows, columns = values.shape[-2:]
    scale_row = 0
    if scale is not None:
        if scale.dtype != torch.float8_e8m0fnu or not scale.is_contiguous():
            return None
        exponents = scale.view(torch.uint8)
        if exponents.min() < _LEAST_SCALE or exponents.max() > _LARGEST_SCALE:
            return None
        columns *= 2 if values.dtype == torch.int8 else 1
        scale_row = -(-columns // (FP4_BLOCK if values.dtype == torch.int8 else WEIGHT_TILE))
    return NativeWeight(
        values.data_ptr(),
        None if scale is None else scale.data_ptr(),
        rows,
        columns,
        values.shape[-1] * values.element_size(),
        scale_row,
        _FORMATS[values.dtype],
        simulate,
        0,
    )


def describe_vector(values: Tensor) -> NativeVector | None:
    """A small parameter for native code, or None for one of another precision."""
    if values.dtype not in (torch.float32, torch.bfloat16) or not values.is_contiguous():
        return None
    return NativeVector(values.data_ptr(), values.dtype == torch.bfloat16)


def read_out(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm: Tensor,
    *,
    norm_eps: float,
    hc_eps: float,
) -> Any:
    """See the reference in `ops/hyper_connection.py`; serves bfloat16 without gradients."""
    tokens, m, channels = streams.shape
    weight = describe_vector(norm)
    floats = all(part.dtype == torch.float32 and part.is_contiguous() for part in (fn, base, scale))
    fits = m <= 8 and channels % 16 == 0 and floats
    if streams.dtype != torch.bfloat16 or torch.is_grad_enabled() or not fits or weight is None:
        return NotImplemented
    network = NativeNetwork(channels=channels, streams=m, norm_eps=norm_eps, hc_eps=hc_eps)
    by = NativeHyperConnection(fn.data_ptr(), base.data_ptr(), scale.data_ptr())
    streams = streams.contiguous()
    out = streams.new_empty(tokens, channels)
    _kernels().network_collapse(
        ctypes.byref(network),
        ctypes.byref(by),
        ctypes.byref(weight),
        address(streams),
        _INT(tokens),
        address(out),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


def wide_linear(x: Tensor, *weights: Weight) -> Any:
    """See the reference in `ops/matmul.py`; serves bfloat16 throughout, without gradients."""
    served = all(x.dtype == weight.values.dtype == torch.bfloat16 for weight in weights)
    if torch.is_grad_enabled() or not served or x.ndim != 2:
        return NotImplemented
    products = []
    for weight in weights:
        described = describe_weight(weight)
        if described is None:
            return NotImplemented
        products.append(linear(x, described))
    return side_by_side(products)


def packed_linear(x: Tensor, weight: Weight, *, simulate: bool = False) -> Any:
    """See the reference in `ops/matmul.py`; serves packed weights, without gradients."""
    served = x.dtype == torch.bfloat16 and weight.scale is not None and x.ndim > 1
    if torch.is_grad_enabled() or not served:
        return NotImplemented
    described = describe_weight(weight, simulate=simulate)
    if described is None:
        return NotImplemented
    return linear(x.flatten(0, -2), described).to(x.dtype).unflatten(0, x.shape[:-1])


def linear(x: Tensor, weight: NativeWeight) -> Tensor:
    """x W^T in float32 for rows of bfloat16 and any described weight."""
    x = x.contiguous()
    out = torch.empty(len(x), weight.rows)
    _kernels().network_linear(
        ctypes.byref(weight),
        address(x),
        _INT(len(x)),
        address(out),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


class Reading(NamedTuple):
    """What is read of a chunk that goes from tokens to logits."""

    ends: NativeEnds
    rows: Sequence[int]
    logits: Tensor
    """[rows, vocabulary], to be written."""


def run(
    network: NativeNetwork,
    layers: "ctypes.Array[Any]",
    streams: Tensor,
    tokens: Tensor,
    lengths: list[int],
    lists: "ctypes.Array[Any]",
    chosen: Tensor,
    scores: Tensor,
    reading: Reading | None = None,
) -> int:
    """Run blocks over `streams` in place, or from tokens to logits; see `network_run` in
    network.cpp for what it returns."""
    rows: Sequence[int] = () if reading is None else reading.rows
    result: int = _kernels().network_run(
        ctypes.byref(network),
        layers,
        _INT(len(layers)),
        None if reading is None else ctypes.byref(reading.ends),
        address(streams),
        address(tokens),
        _INT(len(tokens)),
        (_INT * len(lengths))(*lengths),
        _INT(len(lengths)),
        lists,
        address(chosen),
        address(scores),
        (_INT * len(rows))(*rows),
        _INT(len(rows)),
        None if reading is None else address(reading.logits),
        ctypes.c_int(torch.get_num_threads()),
    )
    return result


def _kernels() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None, "chosen only where the library was built"
    kernels.network_run.restype = _INT
    return kernels
