"""Entries that native code chooses for the tokens of a CSA layer, in a network that has no other.

Catches: another choice where keys are shared out, where heads do not fill what is multiplied at
once, or where a query comes alone; ties that do not go to the first; a bound that drops an entry
still wanted. How tokens come must not change one bit.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sounding.model.native import serves

from sounding.config import CSA
from sounding.model.state import growing_state, packed_state
from sounding.model.transformer import Transformer
from sounding.ops import cpu
from sounding.ops.dispatch import use_backend
from sounding.presets import tiny
from sounding.simulation import DEPLOYED, EXACT, Simulation
from tests.conftest import make_network

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

STRETCH = 2048  # in indexer.cpp: keys above which those of a single query are shared out


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def network_of(heads: int, simulation: Simulation) -> Transformer:
    config = dataclasses.replace(
        tiny(),
        num_hidden_layers=1,
        num_hash_layers=0,
        num_nextn_predict_layers=0,
        compress_ratios=(CSA,),
        index_n_heads=heads,
    )
    network = make_network(config, dtype=torch.bfloat16, simulation=simulation)
    for name, parameter in network.named_parameters():
        if "hc_" in name or name.endswith("gate.bias"):
            parameter.data = parameter.float()  # as checkpoints have it
    assert serves(network)
    return network


def random_tokens(length: int) -> torch.Tensor:
    return torch.randint(512, (length,), generator=torch.Generator().manual_seed(5))


def streams_of(network: Transformer, pieces: list[torch.Tensor], threads: int = 1) -> torch.Tensor:
    """The streams of all tokens, read piece by piece into a packed state or a growing one."""
    if network.blocks[0].attn.simulation.kv:
        state = packed_state(network.config, max_tokens=sum(map(len, pieces)))
    else:
        state = growing_state(network.config)
    torch.set_num_threads(threads)
    try:
        return torch.cat([network(piece, states=[state]).streams for piece in pieces])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("simulation", [EXACT, DEPLOYED], ids=["exact", "deployed"])
@pytest.mark.parametrize("heads", [1, 4, 6, 8])
def test_alone_or_in_company(heads: int, simulation: Simulation) -> None:
    network, tokens = network_of(heads, simulation), random_tokens(200)
    whole = streams_of(network, [tokens])
    assert torch.equal(streams_of(network, list(tokens.split(1))), whole)
    assert torch.equal(streams_of(network, list(tokens.split(7))), whole)


@pytest.mark.parametrize("alike", [False, True], ids=["scores", "ties"])
@pytest.mark.parametrize("simulation", [EXACT, DEPLOYED], ids=["exact", "deployed"])
def test_keys_of_a_single_query_are_shared_out(simulation: Simulation, alike: bool) -> None:
    network, tokens = network_of(4, simulation), random_tokens(CSA * STRETCH * 2 + 300)
    if alike:
        _make_alike(network)
    whole = streams_of(network, [tokens])
    for threads in (1, 2):
        split = streams_of(network, [tokens[:-9], *tokens[-9:].split(1)], threads)
        assert torch.equal(split[-9:], whole[-9:])


def test_of_equal_scores_the_first_is_chosen() -> None:
    network, tokens = network_of(4, EXACT), random_tokens(200)
    _make_alike(network)
    mine = streams_of(network, [tokens]).float()
    with use_backend("reference"):
        expected = streams_of(network, [tokens]).float()
    error = (mine - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.quantile(0.9) < 0.02  # a few tokens go to other experts


def _make_alike(network: Transformer) -> None:
    """Let every index score be zero."""
    indexer: Any = network.blocks[0].attn.indexer
    indexer.weights_proj.weight.zero_()
