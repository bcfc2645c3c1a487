"""Rotary embedding against its definition.

Catches: halves instead of interleaved pairs, the first instead of the last channels, YaRN with its
usual factor on cosine and sine, YaRN only beyond the original context, the wrong way round.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.config import RopeScaling
from sounding.ops.rope import rope_frequencies, rotate, rotation
from tests.oracles import rope
from tests.oracles.compare import array, assert_matches

CPU = torch.device("cpu")


def yarn_of(scaling: RopeScaling) -> rope.Yarn:
    return rope.Yarn(
        scaling.factor,
        scaling.original_max_position_embeddings,
        scaling.beta_fast,
        scaling.beta_slow,
    )


@pytest.mark.parametrize("width", [2, 6, 32, 64])
@pytest.mark.parametrize("theta", [10000.0, 160000.0])
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling(),
        RopeScaling(factor=4.0, original_max_position_embeddings=4096, beta_fast=16.0),
        RopeScaling(factor=2.0, original_max_position_embeddings=100, beta_slow=0.5),
    ],
)
def test_frequencies_equal_the_oracle(
    width: int, theta: float, scaling: RopeScaling | None
) -> None:
    expected = rope.frequencies(theta, width, yarn_of(scaling) if scaling else None)
    actual = rope_frequencies(width, theta, scaling, CPU)
    relative = np.abs(array(actual) / np.array(expected) - 1)
    assert relative.max() < 2e-6  # float32 powers


@pytest.mark.parametrize(
    ("pair", "theta"),
    [
        (0, 1.0),
        (1, 6.8765604e-1),
        (15, 3.6355387e-3),
        (16, 2.2656249e-3),
        (20, 2.9697779e-4),
        (24, 1.9531253e-5),
        (25, 5.3723124e-6),
        (31, 5.6805294e-7),
    ],
)
def test_yarn_frequencies_equal_the_documented_ones(pair: int, theta: float) -> None:
    """docs/architecture.md 15."""
    frequencies = rope_frequencies(64, 160000.0, RopeScaling(), CPU)
    assert frequencies[pair].item() == pytest.approx(theta, rel=3e-7)


def test_published_window_frequency() -> None:
    assert rope_frequencies(64, 10000.0, None, CPU)[31].item() == pytest.approx(
        1.3335215e-4, rel=3e-7
    )


@settings(max_examples=40)
@given(
    positions=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4),
    heads=st.sampled_from([None, 1, 3]),
    plain=st.integers(0, 5),
    pairs=st.integers(1, 6),
    inverse=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_rotation_equals_the_oracle(
    positions: list[int],
    heads: int | None,
    plain: int,
    pairs: int,
    inverse: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(positions), *(() if heads is None else (heads,)), plain + 2 * pairs)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    frequencies = rope_frequencies(2 * pairs, 10000.0, None, CPU)
    actual = rotate(x, rotation(torch.tensor(positions), frequencies), inverse=inverse)
    expected = np.zeros(shape)
    for row, position in enumerate(positions):
        # The published angles are float32 products; so are the oracle's here.
        angles = [float(np.float32(position) * f) for f in frequencies.numpy()]
        for head in np.ndindex(shape[1:-1]):
            expected[row][head] = rope.rotate(array(x[row][head]), 1, angles, inverse)
    assert_matches(actual, expected, precision=torch.float32)
    assert torch.equal(actual[..., :plain], x[..., :plain])


def test_inverse_leaves_the_distance() -> None:
    """A value rotated at s, seen from t, is the value rotated by s - t."""
    frequencies = rope_frequencies(8, 10000.0, None, CPU)
    value = torch.randn(1, 10, dtype=torch.float64)

    def at(position: int, x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        return rotate(x, rotation(torch.tensor([position]), frequencies), inverse=inverse)

    seen = at(29, at(12, value), inverse=True)
    assert torch.allclose(seen, at(17, value, inverse=True), rtol=0, atol=1e-5)


def test_bfloat16_is_rotated_in_float32() -> None:
    by = rotation(torch.tensor([3, 70000]), rope_frequencies(8, 10000.0, None, CPU))
    x = torch.randn(2, 3, 12).bfloat16()
    assert torch.equal(rotate(x, by), rotate(x.float(), by).bfloat16())


def test_nothing_to_rotate() -> None:
    by = rotation(torch.zeros(0, dtype=torch.int64), rope_frequencies(8, 10000.0, None, CPU))
    assert rotate(torch.zeros(0, 3, 12), by).shape == (0, 3, 12)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradient_of_rotation_is_exact(inverse: bool) -> None:
    by = rotation(torch.tensor([3, 71]), rope_frequencies(4, 10000.0, None, CPU))
    x = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, by, inverse=inverse), (x,))
