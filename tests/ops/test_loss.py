"""Cross-entropy against its definition.

Catches: a mean instead of a sum, ignored positions that count, a chunk left out or counted twice,
gradients lost where logits are made again.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sounding.ops import loss as ops
from tests.oracles import loss as oracle
from tests.oracles.compare import array, assert_matches


def example(t: int, v: int, c: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden vectors, head, and targets of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(t, c, generator=generator, dtype=dtype)
    head = torch.randn(v, c, generator=generator, dtype=dtype)
    targets = torch.randint(v, (t,), generator=generator)
    ignored = torch.rand(t, generator=generator) < 0.3
    return hidden, head, targets.masked_fill(ignored, ops.IGNORED)


@settings(max_examples=40)
@given(
    t=st.integers(0, 11),
    v=st.integers(1, 7),
    c=st.integers(1, 5),
    chunk=st.sampled_from([1, 3, 1024]),
    size=st.sampled_from([1.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_cross_entropy_equals_the_oracle_in_any_chunks(
    t: int, v: int, c: int, chunk: int, size: float, dtype: torch.dtype, seed: int
) -> None:
    hidden, head, targets = example(t, v, c, seed, dtype)
    hidden = hidden * size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "CHUNK_TOKENS", chunk)
        actual = ops.cross_entropy(hidden, head, targets)
    losses = oracle.cross_entropy(array(hidden), array(head), targets.tolist(), ops.IGNORED)
    counted = [value for value in losses if value is not None]
    expected = torch.tensor(sum(counted), dtype=torch.float64).numpy()
    assert_matches(actual, expected, terms=1 + t * v * c, scale=size * 10 * max(t, 1))


def test_the_loss_of_ignored_targets_is_zero() -> None:
    targets = torch.full((3,), ops.IGNORED)
    assert ops.cross_entropy(torch.ones(3, 2), torch.ones(4, 2), targets) == 0


def test_only_the_product_is_taken_in_bfloat16() -> None:
    hidden, head, targets = example(50, 6, 32, 0, torch.float32)
    low, low_head = hidden.bfloat16(), head.bfloat16()
    actual = ops.cross_entropy(low, low_head, targets)
    assert actual.dtype == torch.float32
    logits = (low @ low_head.T).float()
    expected = functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_beside_torch(dtype: torch.dtype) -> None:
    """A head in float32 under hidden vectors of either dtype, as in training."""
    hidden, head, targets = example(70, 40, 32, 2, torch.float32)
    hidden = hidden.to(dtype)
    found = []
    for loss in (
        lambda hidden, head: ops.cross_entropy(hidden, head, targets),
        lambda hidden, head: functional.cross_entropy(
            hidden.float() @ head.T, targets, reduction="sum"
        ),
    ):
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        (3 * loss(*leaves)).backward()
        found.append([leaf.grad for leaf in leaves])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).abs().max() <= tolerance * theirs.float().abs().max()


def test_gradient_of_cross_entropy_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CHUNK_TOKENS", 2)
    hidden, head, targets = example(5, 4, 3, 1, torch.float64)
    assert torch.autograd.gradcheck(
        lambda hidden, head: ops.cross_entropy(hidden, head, targets),
        (hidden.requires_grad_(), head.requires_grad_()),
    )
