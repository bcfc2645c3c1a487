"""Adapters as the C++ kernels read them: structs beside the network's, and their numbers."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.config import ModelConfig
from sounding.native.describe import describe_weight
from sounding.native.structs import NativeAdapterLayer, NativeDelta
from sounding.weights.adapters import Adapter, Delta, require_fit
from sounding.weights.raw import RawTensor, to_float32

_RANK_UNIT = 32  # columns that the kernels read at once
_ATTENTION = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")
_LINEARS = ("w1", "w2", "w3")


class KernelAdapter:
    """The deltas of every layer, in bfloat16."""

    def __init__(self, adapter: Adapter, config: ModelConfig) -> None:
        """Raises ValueError, naming the delta, for one that fits no weight of the network."""
        require_fit(adapter, config, "the adapter")
        self._factor = adapter.factor
        self._kept: list[Any] = []
        layers = [self._layer(adapter, f"layers.{index}") for index in range(len(config.ratios))]
        self.layers = (NativeAdapterLayer * len(layers))(*layers)
        """One after the other, as a sequence of a step names them."""

    def _layer(self, adapter: Adapter, name: str) -> NativeAdapterLayer:
        layer = NativeAdapterLayer()
        for part in _ATTENTION:
            self._set(layer, part, adapter.deltas.get(f"{name}.attn.{part}"))
        for part in _LINEARS:
            shared = adapter.deltas.get(f"{name}.ffn.shared_experts.{part}")
            self._set(layer, f"shared_{part}", shared)
            routed = adapter.deltas.get(f"{name}.ffn.experts.{part}")
            if routed is not None:
                experts = zip(*(_bits(values) for values in _padded(routed)), strict=True)
                deltas = [self._delta(low, high) for low, high in experts]
                stacked = (NativeDelta * len(deltas))(*deltas)
                self._kept.append(stacked)
                setattr(layer, part, ctypes.cast(stacked, ctypes.c_void_p))
        return layer

    def _set(self, layer: NativeAdapterLayer, part: str, delta: Delta | None) -> None:
        if delta is not None:
            setattr(layer, part, self._delta(*(_bits(values) for values in _padded(delta))))

    def _delta(self, low: NDArray[np.uint16], high: NDArray[np.uint16]) -> NativeDelta:
        self._kept += [low, high]
        described = (
            describe_weight("a delta", RawTensor(values, "BF16"), None) for values in (low, high)
        )
        return NativeDelta(*described, self._factor)


def _padded(delta: Delta) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both factors with ranks of zeros added, up to what the kernels read at once."""
    low, high = to_float32(delta.low), to_float32(delta.high)
    missing = -delta.rank % _RANK_UNIT
    none = [(0, 0)] * (low.ndim - 2)
    return (
        np.pad(low, [*none, (0, missing), (0, 0)]),
        np.pad(high, [*none, (0, 0), (0, missing)]),
    )


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to bfloat16, to nearest and ties to even, as bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.ascontiguousarray(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))
