"""Routing and experts against their definition.

Catches: biased scores used as weights, softmax or sigmoid affinity, weights that are not
normalised or not scaled, a clamp forgotten or two-sided on the gate, tokens sent back to the wrong
row, an expert without tokens.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.ops import experts as ops
from sounding.ops.matmul import Weight
from sounding.ops.quant import quantize_fp4, quantize_fp8, simulate_fp8
from tests.oracles import experts as oracle
from tests.oracles.compare import array, assert_matches

DTYPES = st.sampled_from([torch.float32, torch.float64])


def random(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_choice(seed: int, t: int, experts: int, k: int) -> Tensor:
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(experts)[:k] for _ in range(t)]
    return torch.tensor(np.array(rows), dtype=torch.int64).reshape(t, k)


@settings(max_examples=40)
@given(
    t=st.integers(0, 4),
    experts=st.integers(1, 6),
    c=st.integers(1, 5),
    size=st.sampled_from([0.1, 1.0, 10.0]),
    scale=st.sampled_from([1.0, 1.5, 2.5]),
    dtype=DTYPES,
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_routing_equals_the_oracle(
    t: int,
    experts: int,
    c: int,
    size: float,
    scale: float,
    dtype: torch.dtype,
    data: st.DataObject,
    seed: int,
) -> None:
    k = data.draw(st.integers(1, experts))
    x = random(seed, dtype, t, c) * size
    gate = random(seed + 1, dtype, experts, c)
    chosen = random_choice(seed, t, experts, k)
    scores = ops.affinity(x, gate)
    weights = ops.routing_weights(scores, chosen, scale)
    for row in range(t):
        expected = np.array(oracle.scores(array(x[row]), array(gate)))
        logits = array(gate) @ array(x[row])
        # torch takes softplus(x) for x itself above 20, which is what it is in float32.
        assert np.abs(expected**2 - logits)[logits > 20].max(initial=0) < 3e-9
        expected = np.sqrt(np.where(logits > 20, logits, expected**2))
        largest = float(np.abs(logits).max()) + 1  # an error of the logit is one of the score
        assert_matches(scores[row], expected, terms=c, scale=largest)
        given_scores = [float(s) for s in scores[row]]
        share = oracle.routing_weights(given_scores, chosen[row].tolist(), scale)
        assert_matches(weights[row], np.array(share), terms=k)


def test_affinity_at_extremes() -> None:
    """softplus(x) is x for large x; far below zero it is exp(x), and not yet zero."""
    x = torch.tensor([[1e6], [1e-3], [-1e-3], [-50.0]])
    scores = ops.affinity(x, torch.ones(1, 1)).flatten()
    assert scores[0].item() == pytest.approx(1e3)
    assert scores[3].item() == pytest.approx(np.exp(-25), rel=1e-5)
    assert scores[1] > scores[2]


def test_routing_takes_bfloat16_in_float32() -> None:
    x, gate = random(0, torch.float32, 3, 64).bfloat16(), random(1, torch.float32, 4, 64)
    scores = ops.affinity(x, gate.bfloat16())
    assert torch.equal(scores, ops.affinity(x.float(), gate.bfloat16().float()))


@settings(max_examples=40)
@given(
    t=st.integers(0, 5),
    experts=st.integers(1, 5),
    c=st.integers(1, 4),
    inner=st.integers(1, 5),
    size=st.sampled_from([1.0, 6.0, 1000.0]),
    limit=st.sampled_from([10.0, 1.5]),
    dtype=DTYPES,
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_experts_equal_the_oracle(
    t: int,
    experts: int,
    c: int,
    inner: int,
    size: float,
    limit: float,
    dtype: torch.dtype,
    data: st.DataObject,
    seed: int,
) -> None:
    k = data.draw(st.integers(1, experts))
    x = random(seed, dtype, t, c) * size
    w1, w3 = random(seed + 1, dtype, 2, experts, inner, c)
    w2 = random(seed + 2, dtype, experts, c, inner)
    chosen = random_choice(seed, t, experts, k)
    weights = random(seed + 3, dtype, t, k).abs()
    stacks = (Weight(w1), Weight(w2), Weight(w3))
    routed = ops.experts(x, chosen, weights, *stacks, limit=limit)
    alone = ops.swiglu(x, *(stack.unstack()[0] for stack in stacks), limit=limit)
    for row in range(t):
        arrays = (array(w1), array(w2), array(w3))
        expected = oracle.combine(
            array(x[row]), *arrays, chosen[row].tolist(), weights[row].tolist(), limit
        )
        largest = min(limit, 4 * c * size) * limit * 10  # of the products behind the sum
        assert_matches(routed[row], expected, terms=k * inner * c, scale=largest)
        one = oracle.swiglu(array(x[row]), arrays[0][0], arrays[1][0], arrays[2][0], limit)
        assert_matches(alone[row], one, terms=inner * c, scale=largest)


def test_up_is_clamped_from_both_sides_and_gate_from_above() -> None:
    """Up from both sides, gate from above only. Source: docs/architecture.md 10."""

    def run(gate: float, up: float) -> float:
        w1, w3, w2 = torch.tensor([[gate]]), torch.tensor([[up]]), torch.ones(1, 1)
        out = ops.swiglu(torch.ones(1, 1), Weight(w1), Weight(w2), Weight(w3), limit=10.0)
        return out.item()

    ten = 10 / (1 + np.exp(-10))
    assert run(50, 1) == pytest.approx(ten)
    assert run(10, 50) == pytest.approx(ten * 10)
    assert run(10, -50) == pytest.approx(ten * -10)
    assert run(-12, 1) == pytest.approx(-12 / (1 + np.exp(12)))


def test_company_changes_nothing() -> None:
    """A token's result is the same alone, among others, and in another order."""
    x, chosen = random(0, torch.float64, 7, 3), random_choice(0, 7, 5, 2)
    weights = random(1, torch.float64, 7, 2)
    stacks = [Weight(random(2 + i, torch.float64, 5, *shape)) for i, shape in
              enumerate(((4, 3), (3, 4), (4, 3)))]  # fmt: skip
    together = ops.experts(x, chosen, weights, *stacks, limit=10.0)
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    shuffled = ops.experts(x[order], chosen[order], weights[order], *stacks, limit=10.0)
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-12)
    for row in range(7):
        one = slice(row, row + 1)
        alone = ops.experts(x[one], chosen[one], weights[one], *stacks, limit=10.0)
        assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-12)


def test_packed_experts_are_the_numbers_they_stand_for() -> None:
    """FP4 and FP8 stacks, and the routing weight rounded with the input of w2, not after it."""
    x, chosen = random(0, torch.float32, 6, 64), random_choice(0, 6, 3, 2)
    weights = random(1, torch.float32, 6, 2).abs()
    dense = [random(2 + i, torch.float32, 3, 64, 64) * 0.125 for i in range(3)]
    for pack in (quantize_fp4, quantize_fp8):
        packed = [Weight(*pack(stack)) for stack in dense]
        plain = [Weight(stack.dense(torch.float32)) for stack in packed]
        for simulate in (False, True):
            actual, expected = (
                ops.experts(x, chosen, weights, *stacks, limit=10.0, simulate=simulate)
                for stacks in (packed, plain)
            )
            assert torch.allclose(actual, expected, rtol=0, atol=1e-6)


def test_simulated_inputs_carry_the_routing_weight() -> None:
    x, weight = random(0, torch.float32, 5, 32), torch.full((5, 1), 0.3)
    w1, w2, w3 = (Weight(w) for w in random(1, torch.float32, 3, 32, 32) * 0.2)
    rounded = simulate_fp8(x, 128)
    gate = (rounded @ w1.values.T).clamp(max=10)
    up = (rounded @ w3.values.T).clamp(-10, 10)
    inner = simulate_fp8(torch.nn.functional.silu(gate) * up * weight, 128)
    actual = ops.swiglu(x, w1, w2, w3, limit=10.0, weight=weight, simulate=True)
    assert torch.allclose(actual, inner @ w2.values.T, rtol=0, atol=1e-6)


def test_gradients_of_routing_and_experts_are_exact() -> None:
    x, gate = random(0, torch.float64, 4, 3), random(1, torch.float64, 5, 3)
    w1, w2 = random(2, torch.float64, 5, 4, 3), random(3, torch.float64, 5, 3, 4)
    w3 = random(4, torch.float64, 5, 4, 3)
    chosen = random_choice(0, 4, 5, 2)  # some of the five experts serve several tokens

    def run(x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        weights = ops.routing_weights(ops.affinity(x, gate), chosen, 1.5)
        return ops.experts(x, chosen, weights, Weight(w1), Weight(w2), Weight(w3), limit=3.0)

    leaves = [leaf.requires_grad_() for leaf in (x, gate, w1, w2, w3)]
    assert torch.autograd.gradcheck(run, leaves)


def test_gradient_of_the_routing_weights_alone() -> None:
    weights = random(1, torch.float64, 3, 2).requires_grad_()
    x, chosen = random(0, torch.float64, 3, 2), random_choice(0, 3, 3, 2)
    stacks = [Weight(random(2 + i, torch.float64, 3, 2, 2)) for i in range(3)]
    assert torch.autograd.gradcheck(
        lambda weights: ops.experts(x, chosen, weights, *stacks, limit=10.0), (weights,)
    )
