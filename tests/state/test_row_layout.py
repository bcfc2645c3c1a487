"""Sizes follow from one table, and are those of the states that the networks make."""

import pytest
import torch

from sounding.engine.network import Network
from sounding.model.reference_network import ReferenceNetwork
from sounding.ops.attention import num_visible
from sounding.ops.cpu import library
from sounding.state.row_layout import all_lists, entries_read
from tests.engine.running import CONFIG
from tests.networks import NetworkMaker, kernel_network

TOKENS = [3, 1, 4, 1, 5, 9, 2] * 40


def filled(network: Network, num_tokens: int) -> int:
    """Bytes of a growing state that all blocks have read so many tokens into."""
    state = network.new_state(rewind_tokens=4)
    tokens = TOKENS[:num_tokens]
    if tokens:
        made = network.predict(tokens, [], [num_tokens], [state])
        network.draft(made.streams, tokens, [num_tokens], [state])
    return state.nbytes


@pytest.mark.parametrize("num_tokens", [0, 3, 17, 131, 280])
def test_a_reference_state_is_as_large_as_announced(
    network_maker: NetworkMaker, num_tokens: int
) -> None:
    network = ReferenceNetwork(network_maker(CONFIG, dtype=torch.float64))
    assert network.state_bytes(num_tokens, rewind_tokens=4) == filled(network, num_tokens)


@pytest.mark.skipif(library() is None, reason="no native kernels")
@pytest.mark.parametrize("num_tokens", [3, 17, 131, 280])
def test_a_kernel_state_has_only_spare_rows_besides(
    network_maker: NetworkMaker, num_tokens: int
) -> None:
    """Catches: projections, which are float32, counted as bfloat16."""
    network = kernel_network(network_maker(CONFIG, dtype=torch.bfloat16))
    spare = sum(  # as if each token of a chunk brought an entry, a quarter more, and 64
        (num_tokens + num_tokens // 4 + 64 - rows.kept_rows(num_tokens)) * rows.width * 2
        for rows in all_lists(CONFIG)
        if rows.per_group
    )
    announced = network.state_bytes(num_tokens, rewind_tokens=4)
    assert announced <= filled(network, num_tokens) <= announced + spare


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 127, 128, 4096])
def test_entries_read_are_those_that_the_last_token_sees(num_tokens: int) -> None:
    last = torch.tensor([num_tokens - 1])
    entries = scored = 0
    for ratio in CONFIG.ratios:
        entries += min(CONFIG.sliding_window, num_tokens)
        seen = int(num_visible(last, ratio)) if ratio else 0
        if ratio == 4 and seen > CONFIG.index_topk:
            scored += seen
            seen = CONFIG.index_topk
        entries += seen
    assert entries_read(CONFIG, num_tokens) == (entries, scored)
