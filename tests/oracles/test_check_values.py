"""The oracles themselves, at the numbers of docs/architecture.md 15 (made with the published code).

It would catch an oracle that agrees with `sounding` because both misread the published network.
"""

import math

import numpy as np
import pytest

from tests.oracles import hyper_connection, quant, rope

YARN = rope.Yarn(factor=16, original_tokens=65536, beta_fast=32, beta_slow=1)


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
def test_oracle_gives_the_documented_yarn_frequencies(pair: int, theta: float) -> None:
    assert rope.frequencies(160000, 64, YARN)[pair] == pytest.approx(theta, rel=1e-6)


def test_oracle_gives_the_documented_plain_frequency() -> None:
    assert rope.frequencies(10000, 64)[31] == pytest.approx(1.3335215e-4, rel=1e-6)


def test_oracle_gives_the_documented_sinkhorn_matrix() -> None:
    logits = np.array([[3 * math.sin(4 * j + k) for k in range(4)] for j in range(4)])
    expected = [
        [0.0587238, 0.6011509, 0.3198064, 0.0202999],
        [0.0535430, 0.0239459, 0.0798058, 0.8423520],
        [0.8705482, 0.1263461, 0.0031146, 0.0005046],
        [0.0171840, 0.2485560, 0.5972723, 0.1368425],
    ]
    assert np.abs(hyper_connection.sinkhorn(logits, 1e-6, 20) - expected).max() < 1e-7


def test_oracle_gives_the_documented_fp8_values() -> None:
    out, scales = quant.simulate_fp8(np.linspace(-3, 3, 64), 64)
    assert scales == [2.0**-7]
    assert list(out[:6]) == [-3, -3, -2.75, -2.75, -2.5, -2.5]


def test_oracle_gives_the_documented_fp4_values() -> None:
    out, scales = quant.simulate_fp4(np.linspace(-3, 3, 32), 32)
    assert scales == [0.5]
    assert list(out[:8]) == [-3, -3, -3, -2, -2, -2, -2, -1.5]


def test_oracle_gives_the_documented_hadamard_matrix() -> None:
    matrix = quant.hadamard_matrix(128)
    assert list(np.sign(matrix[1, :4])) == [1, -1, 1, -1]
    assert list(np.sign(matrix[2, :4])) == [1, 1, -1, -1]
    assert abs(matrix[0, 0] - 0.0883883) < 1e-7
    assert np.abs(matrix @ matrix - np.eye(128)).max() < 1e-15


def test_oracle_formats_have_the_documented_extremes() -> None:
    assert max(quant.e4m3_values()) == 448
    assert quant.e4m3_values()[1] == 2.0**-9
    assert [quant.e2m1(x) for x in (0.25, 0.75, 2.5, 3.5, 5, -5.1, 9)] == [0, 1, 2, 4, 4, -6, 6]
