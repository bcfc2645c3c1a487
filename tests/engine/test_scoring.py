"""How likely a network finds given tokens."""

import pytest
import torch
from sounding.engine.generate import split_logits

from sounding.engine.scoring import token_logprobs
from tests.conftest import NetworkMaker
from tests.engine.running import CONFIG, prompt


def test_logprobs_are_those_of_the_logits(network_maker: NetworkMaker) -> None:
    network = network_maker(CONFIG)
    given = [prompt(7), prompt(1), prompt(150)]
    found = token_logprobs(network, given)
    for sequence, logprobs in zip(given, found, strict=True):
        tokens = torch.tensor([sequence])
        logits = split_logits(network, tokens, [[len(sequence)]])[0].double().log_softmax(-1)
        expected = logits[torch.arange(len(sequence) - 1), tokens[0, 1:]]
        torch.testing.assert_close(
            torch.tensor(logprobs, dtype=torch.double), expected, atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="no tokens"):
        token_logprobs(network, [[1], []])
