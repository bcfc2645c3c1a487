"""The native `connect` and `write` beside their references, values and gradients.

Catches: a wrong tail where channels do not fill a vector, a lane that leaks into its neighbour, a
gradient without one of its three ways (streams, norm, mix), results that depend on company.
"""

import pytest
import torch
from torch import Tensor

from sounding.ops import cpu
from sounding.ops import hyper_connection as ops
from sounding.ops.cpu import hyper_connection as native
from sounding.ops.dispatch import Backend, use_backend
from sounding.ops.hyper_connection import Connection

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

# Rounding to bf16 at the end is the only difference of the dtypes: arithmetic is float32 in both.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# Gradients of fn, base and scale are sums over tokens, whose terms cancel: largest term by largest.
SUM_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def inputs(
    tokens: int, m: int, channels: int, dtype: torch.dtype, size: float = 1.0
) -> list[Tensor]:
    """Streams, fn, base, scale, and the sub-layer's output."""
    generator = torch.Generator().manual_seed(tokens + m + channels)
    n = (2 + m) * m
    return [
        (torch.randn(tokens, m, channels, generator=generator) * size).to(dtype),
        torch.randn(n, m * channels, generator=generator) * (m * channels) ** -0.5,
        torch.randn(n, generator=generator),
        torch.tensor([0.7, 1.3, 2.0]),
        (torch.randn(tokens, channels, generator=generator) * size).to(dtype),
    ]


def connect(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor) -> Connection:
    return ops.connect(streams, fn, base, scale, iterations=20, norm_eps=1e-6, hc_eps=1e-6)


def run(parts: list[Tensor], backend: Backend = "auto") -> list[Tensor]:
    """x, post, mix, the written streams, and the gradients of all inputs."""
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    streams, fn, base, scale, output = leaves
    with use_backend(backend):
        x, post, mix, given = connect(streams, fn, base, scale)
        written = ops.write(given, output + x, post, mix)
        weights = torch.linspace(-1, 1, written.numel()).view_as(written)
        (written.float() * weights).sum().backward()
    return [x, post, mix, written, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "m", "channels"),
    [
        *[(1, 4, 128), (150, 4, 32), (16, 4, 96), (47, 4, 384), (2100, 4, 32)],  # fill tiles
        *[(16, 4, 16), (17, 4, 15), (65, 2, 33), (130, 3, 70), (3, 8, 5), (5, 1, 48)],
    ],
)
def test_same_as_the_reference(tokens: int, m: int, channels: int, dtype: torch.dtype) -> None:
    parts = inputs(tokens, m, channels, dtype)
    expected, actual = run(parts, "reference"), run(parts)
    assert len(actual) == 9
    for index, (one, other) in enumerate(zip(expected, actual, strict=True)):
        assert one.dtype == other.dtype
        tolerance = (SUM_TOLERANCE if index in (5, 6, 7) else TOLERANCE)[dtype]
        assert (one.float() - other.float()).abs().max() <= tolerance * one.float().abs().max()


def test_coefficients_of_bfloat16_streams_are_as_exact_as_those_of_float32() -> None:
    """fn goes into products with bfloat16 streams unrounded, as the reference has it."""
    streams, *others = inputs(50, 4, 384, torch.bfloat16)[:4]
    with use_backend("reference"):
        expected = connect(streams, *others)
    actual = connect(streams, *others)
    torch.testing.assert_close(actual.post, expected.post, rtol=5e-6, atol=1e-7)
    torch.testing.assert_close(actual.mix, expected.mix, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_kernel_equals_reference_at_extreme_scales(size: float) -> None:
    parts = inputs(20, 4, 40, torch.float32, size)
    for one, other in zip(run(parts, "reference")[:4], run(parts)[:4], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6 * size)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_not_finite_stays_in_its_token(bad: float, dtype: torch.dtype) -> None:
    parts = inputs(40, 4, 64, dtype)
    clean = run(parts)[:4]
    parts[0][7, 2, 5] = bad
    reference, actual = run(parts, "reference")[:4], run(parts)[:4]
    others = [row for row in range(40) if row != 7]
    for one, other, before in zip(reference, actual, clean, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert not other[7].isfinite().all()
        assert torch.equal(other[others], before[others])


@pytest.mark.parametrize("channels", [56, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype, channels: int) -> None:
    parts = inputs(600, 4, channels, dtype)  # more than the tokens of one partial sum
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        whole = run(parts)
        torch.set_num_threads(1)
        alone = run(parts)
        some = run([parts[0][50:83], *parts[1:4], parts[4][50:83]])
    finally:
        torch.set_num_threads(threads)
    # Rows first; gradients of fn, base and scale are sums over rows, which torch takes elsewhere.
    on_tiles = dtype == torch.bfloat16 and native.tiles_serve(4, channels)
    count = 9 if on_tiles else 5
    for one, other in zip(whole[:count], alone[:count], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole[:4], some[:4], strict=True):
        assert torch.equal(one[50:83], other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_empty_and_strided(dtype: torch.dtype) -> None:
    parts = inputs(6, 4, 32, dtype)
    assert run([parts[0][:0], *parts[1:4], parts[4][:0]])[3].shape == (0, 4, 32)
    streams = parts[4][:, None].expand(-1, 4, -1)  # as the network begins: one row for all streams
    with use_backend("reference"):
        expected = connect(streams, *parts[1:4])
    for one, other in zip(expected, connect(streams, *parts[1:4]), strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


def test_what_the_kernel_cannot_do_goes_to_the_reference() -> None:
    many = inputs(3, 9, 4, torch.float32)[:4]
    settings = {"iterations": 20, "norm_eps": 1e-6, "hc_eps": 1e-6}
    assert native.connect(*many, **settings) is NotImplemented  # type: ignore[arg-type]
    assert connect(*many).mix.shape == (3, 9, 9)
    wide = [part.double() for part in inputs(3, 4, 4, torch.float32)[:4]]
    assert connect(*wide).x.dtype == torch.float64
