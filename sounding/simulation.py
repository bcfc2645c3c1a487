"""Which numbers of a network are rounded as in the deployed one. Source: docs/architecture.md 9."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is rounded; each field by itself."""

    linear_inputs: bool = False
    """Inputs of quantized linears to FP8, per 128 channels."""
    kv: bool = False
    """Window and compressed entries to FP8 per 64 channels, the rotary channels left alone."""
    indexer: bool = False
    """Index queries and keys rotated by Hadamard, then to FP4 per 32 channels."""
    weights: bool = False
    """Plain weights that are deployed in FP8 or FP4, for training; packed ones are so already."""


EXACT = Simulation()
DEPLOYED = Simulation(linear_inputs=True, kv=True, indexer=True)
QUANTIZATION_AWARE = Simulation(linear_inputs=True, kv=True, indexer=True, weights=True)
