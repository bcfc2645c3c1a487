"""The divergence and its gradient are the formula's, in float64, in chunks of any size."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sounding.ops import divergence as room
from sounding.ops.divergence import divergence


def given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    hidden = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    head = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    teacher_hidden = torch.randn(8, 4, dtype=torch.float64)  # of another width
    return hidden, head, teacher_hidden, torch.randn(13, 4, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_values_are_sums_over_the_vocabulary(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_TOKENS", 3)
    hidden, head, teacher_hidden, teacher_head = given()
    made = divergence(hidden, head, teacher_hidden, teacher_head, forward_weight=share)
    p = (hidden @ head.T).softmax(-1)
    q = (teacher_hidden @ teacher_head.T).softmax(-1)
    reverse = functional.kl_div(q.log(), p, reduction="none").sum(-1)
    forward = functional.kl_div(p.log(), q, reduction="none").sum(-1)
    torch.testing.assert_close(made, (1 - share) * reverse + share * forward)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_formula(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """p (log p - log q - KL) and p - q at the logits, carried to both factors by hand."""
    monkeypatch.setattr(room, "CHUNK_TOKENS", 5)
    hidden, head, teacher_hidden, teacher_head = given()
    weights = torch.rand(8, dtype=torch.float64)
    made = divergence(hidden, head, teacher_hidden, teacher_head, forward_weight=share)
    found = torch.autograd.grad((made * weights).sum(), (hidden, head))
    with torch.no_grad():
        p = (hidden @ head.T).softmax(-1)
        q = (teacher_hidden @ teacher_head.T).softmax(-1)
        ratio = p.log() - q.log()
        logits = (1 - share) * p * (ratio - (p * ratio).sum(-1, keepdim=True)) + share * (p - q)
        logits *= weights[:, None]
        torch.testing.assert_close(found[0], logits @ head)
        torch.testing.assert_close(found[1], logits.T @ hidden)


def test_numbers_of_gradcheck() -> None:
    hidden, head, teacher_hidden, teacher_head = given()
    assert torch.autograd.gradcheck(
        lambda h, w: divergence(h, w, teacher_hidden, teacher_head, forward_weight=0.4),
        (hidden, head),
    )


def test_equal_networks_do_not_diverge() -> None:
    hidden, head, *_ = given()
    assert divergence(hidden, head, hidden.detach(), head.detach()).abs().max() < 1e-12
