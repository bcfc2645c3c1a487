"""Entries that native code chooses for the tokens of a CSA layer, in a network that has no other.

Catches: another choice where keys are shared out, where heads do not fill what is multiplied at
once, or where a query comes alone; ties that do not go to the first; a bound that drops an entry
still wanted. How tokens come must not change one bit.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sounding.config import CSA
from sounding.engine.network import Network
from sounding.model.reference_network import ReferenceNetwork
from sounding.model.transformer import Transformer
from sounding.native.kernels import num_threads, set_num_threads
from sounding.ops import cpu
from sounding.presets import tiny
from sounding.simulation import DEPLOYED, EXACT, Simulation
from tests.networks import kernel_network, make_network

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

STRETCH = 2048  # in indexer.cpp: keys above which those of a single query are shared out
Streams = np.ndarray[Any, np.dtype[np.uint16]]


@pytest.fixture(autouse=True)
def _as_many_threads_afterwards() -> Iterator[None]:
    before = num_threads()
    yield
    set_num_threads(before)


def network_of(heads: int, simulation: Simulation) -> Transformer:
    config = dataclasses.replace(
        tiny(),
        num_hidden_layers=1,
        num_hash_layers=0,
        num_nextn_predict_layers=0,
        compress_ratios=(CSA,),
        index_n_heads=heads,
    )
    return make_network(config, dtype=torch.bfloat16, simulation=simulation)


def random_tokens(length: int) -> list[int]:
    return np.random.default_rng(5).integers(512, size=length).tolist()


def streams_of(
    network: Network, tokens: Sequence[int], ends: Sequence[int], *, packed: bool, threads: int = 1
) -> Streams:
    """The streams of all tokens, read in pieces up to each end, into a packed state or a growing
    one."""
    set_num_threads(threads)
    state = network.new_state(packed_tokens=len(tokens) if packed else None)
    return np.concatenate(
        [
            network.predict(tokens[low:high], (), [high - low], [state]).streams
            for low, high in pairwise((0, *ends, len(tokens)))
        ]
    )


@pytest.mark.parametrize("simulation", [EXACT, DEPLOYED], ids=["exact", "deployed"])
@pytest.mark.parametrize("heads", [1, 4, 6, 8])
def test_alone_or_in_company(heads: int, simulation: Simulation) -> None:
    network, tokens = kernel_network(network_of(heads, simulation)), random_tokens(200)
    packed = simulation.kv
    whole = streams_of(network, tokens, (), packed=packed)
    assert np.array_equal(streams_of(network, tokens, range(1, 200), packed=packed), whole)
    assert np.array_equal(streams_of(network, tokens, range(7, 200, 7), packed=packed), whole)


@pytest.mark.parametrize("alike", [False, True], ids=["scores", "ties"])
@pytest.mark.parametrize("simulation", [EXACT, DEPLOYED], ids=["exact", "deployed"])
def test_keys_of_a_single_query_are_shared_out(simulation: Simulation, alike: bool) -> None:
    model, tokens = network_of(4, simulation), random_tokens(CSA * STRETCH * 2 + 300)
    if alike:
        _make_alike(model)
    network, packed, last = kernel_network(model), simulation.kv, len(tokens) - 9
    whole = streams_of(network, tokens, (), packed=packed)
    for threads in (1, 2):
        ends = range(last, len(tokens))
        split = streams_of(network, tokens, ends, packed=packed, threads=threads)
        assert np.array_equal(split[-9:], whole[-9:])


def test_of_equal_scores_the_first_is_chosen() -> None:
    model, tokens = network_of(4, EXACT), random_tokens(200)
    _make_alike(model)
    mine = _numbers(streams_of(kernel_network(model), tokens, (), packed=False))
    expected = _numbers(streams_of(ReferenceNetwork(model), tokens, (), packed=False))
    error = (mine - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.quantile(0.9) < 0.02  # a few tokens go to other experts


def _numbers(streams: Streams) -> torch.Tensor:
    return torch.from_numpy(streams).view(torch.bfloat16).float()


def _make_alike(network: Transformer) -> None:
    """Let every index score be zero."""
    indexer: Any = network.blocks[0].attn.indexer
    indexer.weights_proj.weight.data.zero_()
