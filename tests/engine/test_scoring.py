"""Logits of given tokens under any split, and how likely a network finds the tokens."""

import numpy as np
import pytest
import torch

from sounding.engine.network import Network
from sounding.engine.scoring import split_logits, token_logprobs
from sounding.presets import tiny
from tests.conftest import NetworkMaker, make_network
from tests.engine.running import CONFIG, prompt
from tests.networks import as_network


@pytest.fixture(scope="module", params=[torch.float64, torch.bfloat16])
def network(request: pytest.FixtureRequest) -> Network:
    return as_network(make_network(tiny(), dtype=request.param))


def test_pieces_of_each_sequence_may_differ(network: Network) -> None:
    tokens = (np.arange(2 * 140).reshape(2, 140) * 13 % 512).tolist()
    steps: list[int] = []
    ragged = split_logits(network, tokens, [[140], [3, 130, 7]], steps.append)
    whole = split_logits(network, tokens, [[140], [140]])
    assert steps == [143, 130, 7]
    np.testing.assert_allclose(ragged, whole, rtol=1.3e-6, atol=1e-5)


def test_logprobs_are_those_of_the_logits(network_maker: NetworkMaker) -> None:
    network = as_network(network_maker(CONFIG))
    given = [prompt(7), prompt(1), prompt(150)]
    found = token_logprobs(network, given)
    for sequence, logprobs in zip(given, found, strict=True):
        logits = torch.from_numpy(split_logits(network, [sequence], [[len(sequence)]])[0])
        expected = logits.double().log_softmax(-1)
        wanted = expected[
            torch.arange(len(sequence) - 1), torch.tensor(sequence[1:], dtype=torch.long)
        ]
        torch.testing.assert_close(
            torch.tensor(logprobs, dtype=torch.double), wanted, atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="no tokens"):
        token_logprobs(network, [[1], []])
