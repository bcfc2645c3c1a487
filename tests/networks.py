"""Small random networks of the tests, and networks as the engine runs them.

A random network here is made to be discriminating rather than realistic: every parameter matters
(norm weights differ from 1, biases, sinks and places in a group differ from 0), so that leaving one
out, or taking it in the wrong order, changes the result.
"""

import dataclasses
from collections.abc import Callable

import torch

from sounding.config import DSparkConfig, ModelConfig
from sounding.engine.network import Network
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.transformer import Transformer
from sounding.native.network import KernelNetwork
from sounding.ops.cpu import library
from sounding.simulation import EXACT, Simulation
from sounding.train.runs import copying
from sounding.weights.raw import RawTensor
from sounding.weights.tensors import from_torch

NetworkMaker = Callable[..., Transformer]


def make_network(
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    simulation: Simulation = EXACT,
) -> Transformer:
    """A network with every parameter drawn from `seed`, the same numbers for every dtype."""
    network = Transformer(config, simulation, dtype)
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf == "tid2eid":
                rows = torch.rand(len(parameter), config.n_routed_experts, generator=generator)
                parameter.copy_(rows.argsort(-1)[:, : config.num_experts_per_tok])
            elif leaf.startswith("hc_") and leaf.endswith("scale"):
                parameter.copy_(1 + 0.1 * normal(parameter))
            elif leaf.startswith("hc_") and leaf.endswith("base"):
                parameter.copy_(0.5 * normal(parameter))
            elif "norm" in name:
                parameter.copy_(1 + 0.1 * normal(parameter))
            elif leaf == "bias":
                parameter.copy_(0.1 * normal(parameter))
            elif leaf in ("ape", "attn_sink") or name == "embed.weight":
                parameter.copy_(normal(parameter))
            else:
                parameter.copy_(normal(parameter) * parameter.shape[-1] ** -0.5)
    network.to(dtype)
    for name, parameter in network.named_parameters():
        if dtype == torch.bfloat16 and ("hc_" in name or name.endswith("gate.bias")):
            parameter.data = parameter.float()  # as checkpoints have it
    return network.requires_grad_(False)


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
