"""Networks of the tests as the engine runs them: by the C++ kernels or by the reference."""

import torch

from sounding.engine.network import Network
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.transformer import Transformer
from sounding.native.network import KernelNetwork
from sounding.ops.cpu import library
from sounding.weights.raw import RawTensor
from sounding.weights.tensors import from_torch


def as_network(model: Transformer) -> Network:
    """The network that `load_network` would make of these weights: by the kernels where they were
    built and serve it, else by the reference."""
    if library() is not None and model.dtype == torch.bfloat16:
        return kernel_network(model)
    return ReferenceNetwork(model)


def kernel_network(model: Transformer) -> KernelNetwork:
    """The same weights run by the C++ kernels."""
    tensors: dict[str, RawTensor] = {}
    for name, parameter in model.named_parameters():
        raw = from_torch(parameter)
        before, stacked, leaf = name.partition(".ffn.experts.")
        if not stacked:
            tensors[name] = raw
            continue
        for expert in range(len(raw.array)):
            tensors[f"{before}.ffn.experts.{expert}.{leaf}"] = raw[expert]
    return KernelNetwork(model.config, tensors, model.simulation)
