"""Hyper-connections against their definition.

Catches: the transposed mix (it is doubly stochastic either way), the report's order of
normalisations, a missing eps, one iteration more or less, the output written before the mix reads.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.ops import hyper_connection as ops
from tests.oracles import hyper_connection as oracle
from tests.oracles.compare import array, assert_matches


def inputs(
    t: int, m: int, c: int, outputs: int, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Streams, fn, base."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(t, m, c, generator=generator, dtype=dtype),
        torch.randn(outputs, m * c, generator=generator, dtype=dtype),
        torch.randn(outputs, generator=generator, dtype=dtype),
    )


SHAPES = {
    "t": st.integers(1, 3),
    "m": st.integers(1, 5),
    "c": st.integers(1, 6),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "seed": st.integers(0, 99),
}


@settings(max_examples=30)
@given(iterations=st.integers(1, 20), exponent=st.integers(-4, 6), **SHAPES)
def test_coefficients_read_write(
    t: int, m: int, c: int, dtype: torch.dtype, seed: int, iterations: int, exponent: int
) -> None:
    streams, fn, base = inputs(t, m, c, (2 + m) * m, seed, dtype)
    # The square of a wide network's fan-in: logits stay in a range where float32 can follow.
    fn = fn / math.sqrt(m * c)
    streams = streams * 10.0**exponent
    scale = torch.tensor([0.7, 1.3, 2.1], dtype=dtype)
    by = ops.coefficients(
        streams, fn, base, scale, iterations=iterations, norm_eps=1e-6, hc_eps=1e-6
    )
    update = streams.flip(1)[:, 0] * 0.5
    y, written = ops.read(streams, by.pre), ops.write(streams, update, by.post, by.mix)
    for row in range(t):
        x = array(streams[row])
        expected = oracle.coefficients(x, array(fn), array(base), array(scale), iterations)
        # Errors of a logit come back as relative errors of what is exponentiated.
        terms = 2 ** (4 + 2 * m)
        assert_matches(by.pre[row], expected.pre, terms=terms, scale=2.0)
        assert_matches(by.post[row], expected.post, terms=terms, scale=2.0)
        assert_matches(by.mix[row], expected.mix, terms=terms, scale=2.0)
        largest = float(np.abs(x).max()) * 2 * m
        assert_matches(y[row], oracle.read(x, expected.pre), terms=terms, scale=largest)
        after = oracle.write(x, array(update[row]), expected.post, expected.mix)
        assert_matches(written[row], after, terms=terms, scale=largest)


@settings(max_examples=20)
@given(**SHAPES)
def test_collapsing_equals_the_oracle(
    t: int, m: int, c: int, dtype: torch.dtype, seed: int
) -> None:
    streams, fn, base = inputs(t, m, c, m, seed, dtype)
    actual = ops.collapse(
        streams, fn, base, torch.tensor([0.6], dtype=dtype), norm_eps=1e-6, hc_eps=1e-6
    )
    scale = float(torch.tensor(0.6, dtype=dtype))
    for row in range(t):
        expected = oracle.head(array(streams[row]), array(fn), array(base), scale)
        assert_matches(actual[row], expected, terms=2 ** (m + 4), scale=10.0)


def test_sinkhorn_check_value() -> None:
    """docs/architecture.md 15."""
    logits = torch.tensor([[[3 * math.sin(4 * j + k) for k in range(4)] for j in range(4)]])
    expected = torch.tensor(
        [
            [0.0587238, 0.6011509, 0.3198064, 0.0202999],
            [0.0535430, 0.0239459, 0.0798058, 0.8423520],
            [0.8705482, 0.1263461, 0.0031146, 0.0005046],
            [0.0171840, 0.2485560, 0.5972723, 0.1368425],
        ]
    )
    assert torch.allclose(ops.sinkhorn(logits, 20, 1e-6)[0], expected, rtol=0, atol=2e-7)


def test_mix_leads_from_source_to_destination() -> None:
    """All of stream 0 goes to stream 2: the transposed mix would fill stream 0 from stream 2."""
    streams = torch.tensor([[[1.0], [0.0], [5.0]]])
    mix = torch.zeros(1, 3, 3)
    mix[0, 0, 2] = 1
    by = ops.Coefficients(torch.zeros(1, 3), torch.zeros(1, 3), mix)
    assert ops.write(streams, torch.ones(1, 1), by.post, by.mix).flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    logits = torch.tensor([[[size, -size], [size, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    mix = ops.sinkhorn(logits, 20, 1e-6)
    for row in range(2):
        assert_matches(mix[row], oracle.sinkhorn(array(logits[row]), 1e-6, 20), terms=1 << 8)


def test_no_tokens_keep_their_shapes() -> None:
    streams, fn, base = inputs(0, 4, 3, 24, 0, torch.float32)
    by = ops.coefficients(
        streams, fn, base, torch.ones(3), iterations=20, norm_eps=1e-6, hc_eps=1e-6
    )
    assert ops.read(streams, by.pre).shape == (0, 3)
    assert ops.write(streams, streams[:, 0], by.post, by.mix).shape == (0, 4, 3)
    assert ops.collapse(
        streams, fn[:4], base[:4], torch.ones(1), norm_eps=1e-6, hc_eps=1e-6
    ).shape == (0, 3)


def test_bfloat16_is_mixed_in_float32() -> None:
    streams, fn, base = inputs(3, 4, 6, 24, 1, torch.float32)
    low = streams.bfloat16()
    by = ops.coefficients(low, fn, base, torch.ones(3), iterations=20, norm_eps=1e-6, hc_eps=1e-6)
    assert by.mix.dtype == torch.float32
    assert torch.equal(ops.read(low, by.pre), ops.read(low.float(), by.pre).bfloat16())
    written = ops.write(low.float(), low[:, 1].float(), by.post, by.mix).bfloat16()
    assert torch.equal(ops.write(low, low[:, 1], by.post, by.mix), written)


def test_gradients_of_the_hyper_connection_are_exact() -> None:
    streams, fn, base = inputs(2, 3, 4, 15, 2, torch.float64)
    scale = torch.tensor([0.7, 1.3, 2.1], dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (streams, fn, base, scale)]

    def predict(*given: Tensor) -> tuple[Tensor, ...]:
        streams, fn, base, scale = given
        return tuple(
            ops.coefficients(streams, fn, base, scale, iterations=4, norm_eps=1e-6, hc_eps=1e-6)
        )

    def step(*given: Tensor) -> Tensor:
        streams, fn, base, scale = given
        by = ops.coefficients(streams, fn, base, scale, iterations=3, norm_eps=1e-6, hc_eps=1e-6)
        return ops.write(streams, ops.read(streams, by.pre).square(), by.post, by.mix)

    def collapse(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor) -> Tensor:
        return ops.collapse(streams, fn[:3], base[:3], scale[:1], norm_eps=1e-6, hc_eps=1e-6)

    assert torch.autograd.gradcheck(predict, leaves)
    assert torch.autograd.gradcheck(step, leaves)
    assert torch.autograd.gradcheck(collapse, leaves)
