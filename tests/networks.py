"""Networks of the tests as the engine runs them: by the C++ kernels or by the reference."""

import dataclasses

import torch

from sounding.config import DSparkConfig
from sounding.engine.network import Network
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.transformer import Transformer
from sounding.native.network import KernelNetwork
from sounding.ops.cpu import library
from sounding.train.runs import copying
from sounding.weights.raw import RawTensor
from sounding.weights.tensors import from_torch

_PLAIN = copying().model  # a window of 16
DSPARK = dataclasses.replace(
    _PLAIN,
    compress_ratios=(*_PLAIN.ratios, 0, 0, 0),
    dspark=DSparkConfig(
        block_size=4,
        noise_token_id=7,
        target_layer_ids=(2, 0),  # in another order than the layers'
        markov_rank=6,
        n_routed_experts=3,
        n_activated_experts=2,
    ),
)
"""A small network with a DSpark drafter, whose experts are not the network's."""


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
