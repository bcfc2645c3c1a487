"""Shared by all tests: Hypothesis without deadlines, and small random networks.

A random network here is made to be discriminating rather than realistic: every parameter matters
(norm weights differ from 1, biases, sinks and places in a group differ from 0), so that leaving one
out, or taking it in the wrong order, changes the result.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings

from sounding.config import ModelConfig
from sounding.model.transformer import Transformer
from sounding.simulation import EXACT, Simulation

# Machines are shared and the first call of an op is slow: time says nothing about a result.
settings.register_profile(
    "sounding",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("sounding")

# Tensors here are small, and threads of tests that share two cores spend their time waiting.
torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def network_maker() -> NetworkMaker:
    """`make_network`, each network made once per session; treat them as constants."""
    made: dict[object, Transformer] = {}

    def maker(config: ModelConfig, **how: object) -> Transformer:
        key = (config, *sorted(how.items()))
        if key not in made:
            made[key] = make_network(config, **how)  # type: ignore[arg-type]
        return made[key]

    return maker
