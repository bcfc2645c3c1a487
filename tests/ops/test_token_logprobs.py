"""Log-probabilities over kept tokens are torch's, and so are their gradients."""

import pytest
import torch
from torch import Tensor

from sounding.ops import token_logprobs as room
from sounding.ops.token_logprobs import Kept, token_logprobs

VOCABULARY = 11


def given(count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCABULARY, 5, dtype=torch.float64, requires_grad=True)
    return hidden, head, torch.randint(VOCABULARY, (count,))


def kept_with(tokens: Tensor) -> tuple[Kept, Tensor]:
    """A random selection that has each position's token in it, ragged and as a mask."""
    mask = torch.rand(len(tokens), VOCABULARY) < 0.4
    mask[torch.arange(len(tokens)), tokens] = True
    return Kept(mask.nonzero()[:, 1].int(), mask.sum(-1)), mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("cut", [False, True])
def test_values_and_gradients_are_those_of_torch(
    temperature: float, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHUNK_TOKENS", 3)  # a last chunk of one
    hidden, head, tokens = given()
    kept, mask = kept_with(tokens) if cut else (None, torch.ones(len(tokens), VOCABULARY) > 0)
    made = token_logprobs(hidden, head, tokens, temperature=temperature, kept=kept)
    logits = (hidden @ head.T / temperature).masked_fill(~mask, -torch.inf)
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(made.logprobs, expected.log_prob(tokens))
    shares = logits.softmax(-1)
    entropy = -torch.xlogy(shares, shares).sum(-1)
    torch.testing.assert_close(made.entropy, entropy)
    outer = torch.randn(len(tokens), dtype=torch.float64)
    ours = torch.autograd.grad((made.logprobs * outer).sum(), (hidden, head))
    theirs = torch.autograd.grad((expected.log_prob(tokens) * outer).sum(), (hidden, head))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_of_bf16_are_not_rounded() -> None:
    """Products of bfloat16 numbers are summed in float32: a logit near 40 keeps its hundredths."""
    hidden = torch.full((1, 256), 1.0, dtype=torch.bfloat16)
    head = torch.stack([torch.full((256,), 0.15625), torch.full((256,), 0.15625)])
    head[1, 0] = 0.1640625
    made = token_logprobs(hidden, head, torch.tensor([1])).logprobs
    expected = (head.double().sum(-1)).log_softmax(-1)[1]
    torch.testing.assert_close(made[0].double(), expected, rtol=0, atol=1e-5)


def test_no_positions_are_no_numbers() -> None:
    hidden, head, tokens = given()
    assert token_logprobs(hidden[:0], head, tokens[:0]).logprobs.shape == (0,)
