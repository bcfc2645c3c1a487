"""What a network can be given, and its logits however that is split."""

import pytest
import torch
from sounding.engine.generate import checked_prompt, require_tokens, split_logits

from sounding.model.transformer import Transformer
from sounding.presets import tiny
from tests.conftest import make_network


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_network(tiny(), dtype=torch.float64)


def test_pieces_of_each_sequence_may_differ(model: Transformer) -> None:
    tokens = torch.arange(2 * 140).view(2, 140) * 13 % 512
    steps: list[int] = []
    ragged = split_logits(model, tokens, [[140], [3, 130, 7]], steps.append)
    whole = split_logits(model, tokens, [[140], [140]])
    assert steps == [143, 130, 7]
    torch.testing.assert_close(ragged, whole)


@pytest.mark.parametrize("token", [-1, 512])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    message = f"token id {token} is outside the model's vocabulary of 512"
    with pytest.raises(ValueError, match=message):
        require_tokens(torch.tensor([[1, token]]), 512)
    with pytest.raises(ValueError, match=message):
        checked_prompt([1, token], 1, tiny())


def test_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        checked_prompt([], 1, tiny())
    with pytest.raises(ValueError, match="exceed the 1048576 positions of the model"):
        checked_prompt([1], 2**20, tiny())
    with pytest.raises(ValueError, match="exceed the 20 positions"):
        checked_prompt([1], 20, tiny(), 20)
