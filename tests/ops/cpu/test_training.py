"""The twins for training beside their references: values, and the gradient of every input.

Catches: a mask off by one, a key counted twice or not at all at a tile's edge, blank rows that
reach a result, a sum over experts or heads with one missing, a gradient scaled wrongly, a tail
where channels do not fill a vector, instruction sets that disagree.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sounding.ops import (
    cpu,
    experts,
    hyper_connection,
    index_loss,
    loss,
    matmul,
    muon,
    norm,
    pool,
    rope,
)
from sounding.ops.attention import attend
from sounding.ops.dispatch import Backend, use_backend
from sounding.ops.matmul import Weight

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

# Arithmetic is float32 in both, sums in another order; bf16 also rounds in between, elsewhere.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def run(op: Callable[..., Tensor], parts: list[Tensor], backend: Backend) -> list[Tensor]:
    """The result, and the gradient of every floating input under random weights."""
    leaves = [part.detach().clone().requires_grad_(part.is_floating_point()) for part in parts]
    with use_backend(backend):
        result = op(*leaves)
        weights = random(*result.shape, seed=99) if result.ndim else torch.ones(())
        (result.float() * weights).sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_same(op: Callable[..., Tensor], parts: list[Tensor], tolerance: float) -> None:
    expected, actual = run(op, parts, "reference"), run(op, parts, "training")
    assert len(expected) == len(actual) > 1
    for one, other in zip(expected, actual, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if one.numel():
            error = (one.float() - other.float()).abs().max()
            assert error <= tolerance * one.float().abs().max().clamp_min(1e-6)


def assert_threads_do_not_matter(op: Callable[..., Tensor], parts: list[Tensor]) -> None:
    """The same bits of the result and of every gradient."""
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run(op, parts, "training"))
    finally:
        torch.set_num_threads(threads)
    for several in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], several, strict=True))


# --------------------------------------------------------------------------------------------------
# Attention


def attention(
    queries: int,
    earlier: int,
    ratio: int,
    picks: int | None,
    dtype: torch.dtype,
    *,
    heads: int = 3,
    width: int = 24,
    sliding_window: int = 16,
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The op and its tensors: `queries` after `earlier` tokens whose keys are in the window."""
    count = (earlier + queries) // ratio if ratio else 0
    parts = [
        random(queries, heads, width, seed=1, dtype=dtype),
        random(queries + earlier, width, seed=2, dtype=dtype),
        random(heads, seed=3),
    ]
    if count:
        parts.append(random(count, width, seed=4, dtype=dtype))
    selected = None
    if picks:
        order = random(queries, count, seed=5).argsort(1)[:, :picks]
        visible = (torch.arange(queries) + earlier + 1) // ratio
        selected = torch.where(order < visible[:, None], order, -1)

    def op(q: Tensor, window: Tensor, sink: Tensor, entries: Tensor | None = None) -> Tensor:
        where = {"start": earlier, "sliding_window": sliding_window, "ratio": ratio}
        return attend(q, window, entries, selected, sink, **where)

    return op, parts


@DTYPES
@pytest.mark.parametrize(
    ("queries", "earlier", "ratio", "picks"),
    [
        (1, 0, 0, None),
        (5, 0, 0, None),
        (300, 0, 0, None),
        (130, 15, 0, None),  # keys of earlier chunks
        (3, 0, 4, None),  # no entry is visible yet
        (300, 0, 4, None),
        (40, 15, 4, None),
        (300, 0, 4, 8),
        (130, 15, 4, 3),
        (257, 0, 128, None),
    ],
)
def test_attention_kernel_equals_reference(
    queries: int, earlier: int, ratio: int, picks: int | None, dtype: torch.dtype
) -> None:
    assert_same(*attention(queries, earlier, ratio, picks, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("heads", "width", "sliding_window"),
    [(3, 32, 16), (5, 64, 100), (4, 128, 70), (2, 96, 7), (1, 64, 40)],
)
@pytest.mark.parametrize(
    ("queries", "earlier", "ratio", "picks"),
    [
        (1, 0, 0, None),
        (32, 0, 0, None),
        (130, 6, 0, None),  # keys of earlier chunks
        (3, 0, 4, None),  # no entry is visible yet
        (150, 0, 4, None),
        (40, 6, 4, None),
        (300, 0, 4, 8),
        (61, 6, 2, 3),
        (257, 0, 128, None),
    ],
)
def test_attend_on_tiles(
    queries: int,
    earlier: int,
    ratio: int,
    picks: int | None,
    heads: int,
    width: int,
    sliding_window: int,
) -> None:
    """Widths that tiles fill, with rows and keys that do not."""
    shape = {"heads": heads, "width": width, "sliding_window": sliding_window}
    op, parts = attention(queries, earlier, ratio, picks, torch.bfloat16, **shape)
    assert_same(op, parts, TOLERANCE[torch.bfloat16])


def test_attention_does_not_depend_on_threads() -> None:
    """Nor does the gradient of its keys, a sum over all queries: it has one order."""
    op, parts = attention(500, 15, 4, 20, torch.bfloat16, width=64)
    assert_threads_do_not_matter(op, parts)


@pytest.mark.parametrize("picks", [None, 5])
def test_what_attention_is_paid(picks: int | None) -> None:
    queries, count = 200, 50
    selected = None
    if picks:
        order = random(queries, count, seed=5).argsort(1)[:, :picks]
        selected = torch.where(order < ((torch.arange(queries) + 1) // 4)[:, None], order, -1)
    index = [
        random(queries, 2, 8, seed=6).requires_grad_(),
        random(queries, 2, seed=7),
        random(count, 8, seed=8),
    ]
    found = []
    backends: tuple[Backend, ...] = ("reference", "training")
    for backend in backends:
        with use_backend(backend):
            total = index_loss.index_loss(
                random(queries, 3, 24, seed=1),
                random(queries, 24, seed=2),
                random(count, 24, seed=4),
                selected,
                random(3, seed=3),
                *index,
                start=0,
                sliding_window=16,
                ratio=4,
            )
        (gradient,) = torch.autograd.grad(total, index[:1])
        found.append((total.detach(), gradient))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Experts


@DTYPES
@pytest.mark.parametrize("simulate", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("width", "inner"), [(40, 24), (64, 32)])
@pytest.mark.parametrize(("tokens", "num_experts", "picks"), [(1, 4, 2), (100, 3, 1), (77, 9, 3)])
def test_expert_kernel_equals_reference(
    *,
    tokens: int,
    num_experts: int,
    picks: int,
    width: int,
    inner: int,
    simulate: bool,
    shared: bool,
    dtype: torch.dtype,
) -> None:
    """Shapes that fill tiles and others; the last expert has no rows."""
    order = random(tokens, num_experts, seed=1)
    order[:, -1] = -9.0  # an expert that nobody chooses
    chosen = order.topk(picks).indices
    parts = [
        random(tokens, width, seed=2, dtype=dtype),
        random(tokens, picks, seed=3).sigmoid(),
        random(num_experts, inner, width, seed=4) * 0.5,
        random(num_experts, width, inner, seed=5) * 0.5,
        random(num_experts, inner, width, seed=6) * 0.5,
    ]
    if shared:
        parts.append(random(tokens, width, seed=7, dtype=dtype))

    def op(
        x: Tensor, weights: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, *always: Tensor
    ) -> Tensor:
        stacks, more = (Weight(w1), Weight(w2), Weight(w3)), next(iter(always), None)
        return experts.experts(
            x, chosen, weights, *stacks, limit=2.0, simulate=simulate, always=more
        )

    assert_same(op, parts, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_shared_expert_kernel_equals_reference(tokens: int, dtype: torch.dtype) -> None:
    parts = [random(tokens, 40, seed=2, dtype=dtype)]
    parts += [random(*shape, seed=4) * 0.5 for shape in ((24, 40), (40, 24), (24, 40))]

    def op(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        return experts.swiglu(x, Weight(w1), Weight(w2), Weight(w3), limit=2.0)

    assert_same(op, parts, TOLERANCE[dtype])


# --------------------------------------------------------------------------------------------------
# The rest


@DTYPES
@pytest.mark.parametrize("tokens", [1, 300, 2100])
def test_cross_entropy_kernel_equals_reference(tokens: int, dtype: torch.dtype) -> None:
    targets = torch.arange(tokens) % 50
    targets[::7] = loss.IGNORED
    targets[-1] = 3

    def op(hidden: Tensor, head: Tensor) -> Tensor:
        return loss.cross_entropy(hidden, head, targets)

    assert_same(
        op, [random(tokens, 24, seed=1, dtype=dtype), random(50, 24, seed=2)], TOLERANCE[dtype]
    )


@DTYPES
@pytest.mark.parametrize("shape", [(1, 16), (130, 40), (9, 3, 33), (0, 8)])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_kernel_equals_reference(
    shape: tuple[int, ...], weighted: bool, dtype: torch.dtype
) -> None:
    parts = [random(*shape, seed=1, dtype=dtype)]
    if weighted:
        parts.append(random(shape[-1], seed=2))
    assert_same(lambda x, w=None: norm.rms_norm(x, w, 1e-6), parts, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize(
    ("shape", "rotary"), [((70, 24), 16), ((65, 3, 24), 16), ((9, 2, 128), 64), ((5, 48), 40)]
)
@pytest.mark.parametrize("inverse", [True, False])
def test_rotation_kernel_equals_reference(
    shape: tuple[int, ...], rotary: int, inverse: bool, dtype: torch.dtype
) -> None:
    frequencies = rope.rope_frequencies(rotary, 1e4, None, torch.device("cpu"))
    by = rope.rotation(torch.arange(shape[0]) * 7, frequencies)
    assert_same(
        lambda x: rope.rotate(x, by, inverse=inverse),
        [random(*shape, seed=1, dtype=dtype)],
        TOLERANCE[dtype],
    )


@DTYPES
def test_collapse_kernel_equals_reference(dtype: torch.dtype) -> None:
    parts = [
        random(37, 4, 40, seed=1, dtype=dtype),
        random(4, 160, seed=2) * 0.1,
        random(4, seed=3),
        random(1, seed=4),
    ]
    assert_same(
        lambda *given: hyper_connection.collapse(*given, norm_eps=1e-6, hc_eps=1e-6),
        parts,
        TOLERANCE[dtype],
    )


def test_what_is_not_finite_reaches_the_loss() -> None:
    hidden, head = random(9, 24, seed=1), random(50, 24, seed=2)
    hidden[4, 2] = float("nan")
    with use_backend("training"):
        assert loss.cross_entropy(hidden, head, torch.arange(9)).isnan()


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 8), (torch.bfloat16, 32)])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_passes_through_attention(
    value: float, dtype: torch.dtype, width: int
) -> None:
    """From a query to what it reads, and to the gradients of it and of the keys that it sees."""
    op, parts = attention(40, 0, 0, None, dtype, heads=2, width=width)
    parts[0][7, 1, 3] = value
    read, grad_q, grad_window, grad_sink = run(op, parts, "training")
    others = torch.arange(40) != 7
    assert read[7, 1].isnan().all() and read[others].isfinite().all()
    assert grad_q[7, 1].isnan().all() and grad_q[others].isfinite().all()
    assert grad_window[:8].isnan().all() and grad_sink.isfinite().tolist() == [True, False]


def test_ranges_do_not_depend_on_threads() -> None:
    """Gradients of weights are sums over fixed ranges of rows, whoever computes them."""
    x, weight = random(1000, 48, seed=1), random(48, seed=2)
    assert_threads_do_not_matter(lambda x, w: norm.rms_norm(x, w, 1e-6), [x, weight])


# --------------------------------------------------------------------------------------------------
# Pooling


@pytest.mark.parametrize("ratio", [1, 4, 128])
@pytest.mark.parametrize("width", [8, 21])
@pytest.mark.parametrize(("overlapping", "leads"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("groups", [1, 3, 20])
def test_pooling_kernel_equals_reference(
    ratio: int, width: int, overlapping: bool, leads: bool, groups: int
) -> None:
    tokens = (groups + int(overlapping and not leads)) * ratio
    rows = random(tokens, (4 if overlapping else 2) * width, seed=1) * 3
    assert_same(
        lambda rows: pool.pool_groups(rows, ratio, overlapping=overlapping, leads=leads),
        [rows],
        TOLERANCE[torch.float32],
    )


def test_pool_with_gates_that_drop_a_slot_or_take_all() -> None:
    """A gate of -inf counts for nothing; with one above all others, only its slot counts."""
    rows = random(12, 2 * 16, seed=1)
    rows[1, 16:20], rows[2, 20:24] = -torch.inf, 1e4
    rows[4:8, 24] = -torch.inf  # nothing is left
    given = [rows]
    op = lambda rows: pool.pool_groups(rows, 4, overlapping=False, leads=True)  # noqa: E731
    expected, actual = run(op, given, "reference"), run(op, given, "training")
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert expected[0].isnan().sum() == 1


@pytest.mark.parametrize("tokens", [1, 45, 300])
def test_add_places_kernel_equals_reference(tokens: int) -> None:
    places = (torch.arange(tokens) * 3) % 4
    parts = [random(tokens, 2 * 70, seed=1), random(4, 70, seed=2)]
    assert_same(lambda x, bias: pool.add_places(x * 1, bias, places), parts, 1e-5)


def test_pooling_does_not_depend_on_threads() -> None:
    parts = [random(400, 4 * 24, seed=1), random(4, 48, seed=2)]
    places = torch.arange(400) % 4

    def op(x: Tensor, bias: Tensor) -> Tensor:
        return pool.pool_groups(
            pool.add_places(x * 1, bias, places), 4, overlapping=True, leads=True
        )

    assert_threads_do_not_matter(op, parts)


# --------------------------------------------------------------------------------------------------
# Linear maps


@DTYPES
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"),
    [(1, 32, 64), (31, 64, 32), (33, 96, 64), (300, 64, 96), (40, 1088, 32), (600, 32, 1088)],
)
def test_linear_kernel_equals_reference(
    dtype: torch.dtype, tokens: int, inputs: int, outputs: int
) -> None:
    """Rows that do not fill a tile, more than a turn's, sums longer than are added up at once."""
    x = random(tokens, inputs, seed=1, dtype=dtype)
    weight = random(outputs, inputs, seed=2) * inputs**-0.5
    assert_same(lambda x, w: matmul.linear(x, Weight(w)), [x, weight], TOLERANCE[dtype])


def test_linear_reads_rows_at_any_distance() -> None:
    wide = random(50, 3, 64, seed=1, dtype=torch.bfloat16)
    weight = random(32, 64, seed=2)
    for x in (wide[:, 1], wide.transpose(0, 1)[2], wide.permute(0, 2, 1)[..., :1].squeeze(-1)):
        assert_same(lambda x, w: matmul.linear(x, Weight(w)), [x, weight], 3e-2)
    batch = random(2, 5, 64, seed=3, dtype=torch.bfloat16)
    assert_same(lambda x, w: matmul.linear(x, Weight(w)), [batch, weight], 3e-2)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 45, 260])
def test_grouped_linear_kernel_equals_reference(dtype: torch.dtype, tokens: int) -> None:
    x, weight = random(tokens, 2, 64, seed=1, dtype=dtype), random(2 * 96, 64, seed=2) * 0.1
    assert_same(lambda x, w: matmul.grouped_linear(x, Weight(w), 2), [x, weight], TOLERANCE[dtype])


@DTYPES
def test_wide_linear_kernel_equals_reference_and_gives_float32(dtype: torch.dtype) -> None:
    """Float32 comes out, and a float32 gradient goes in."""
    x, weight = random(45, 64, seed=1, dtype=dtype), random(96, 64, seed=2) * 0.1
    assert matmul.wide_linear(x, Weight(weight)).dtype == torch.float32
    assert_same(lambda x, w: matmul.wide_linear(x, Weight(w)), [x, weight], TOLERANCE[dtype])


@DTYPES
def test_weights_side_by_side(dtype: torch.dtype) -> None:
    """Each has its own columns of the result, and its own gradient."""
    x = random(300, 64, seed=1, dtype=dtype)
    weights = [random(outputs, 64, seed=2 + outputs) * 0.1 for outputs in (96, 32, 64)]

    def op(x: Tensor, *weights: Tensor) -> Tensor:
        return matmul.wide_linear(x, *map(Weight, weights))

    assert_same(op, [x, *weights], TOLERANCE[dtype])


def test_products_do_not_depend_on_threads() -> None:
    """Nor do their gradients: every number is one thread's, in one order."""
    x, weight = random(700, 64, seed=1, dtype=torch.bfloat16), random(96, 64, seed=2)
    assert_threads_do_not_matter(lambda x, w: matmul.linear(x, Weight(w)), [x, weight])


# --------------------------------------------------------------------------------------------------
# Muon


@pytest.mark.parametrize("shape", [(32, 32), (3, 64, 160), (2, 160, 64), (5, 24, 64)])
def test_muon_moves_as_the_reference_does(shape: tuple[int, ...]) -> None:
    """Sides that tiles do not fill, the last case, are the reference's anyway."""
    scales = {"weight": 1.0, "gradient": 1e-3, "momentum": 1e-3}
    start = [random(*shape, seed=seed) * s for seed, s in enumerate(scales.values())]

    def move(backend: Backend, dtype: torch.dtype) -> list[Tensor]:
        weight, gradient, momentum = (part.clone() for part in start)
        with use_backend(backend):
            muon.update(
                *([weight], [gradient], [momentum]), mu=0.95, shrink=0.9, length=0.5, dtype=dtype
            )
        assert torch.equal(gradient, start[1])
        return [weight, momentum]

    exact, momentum = move("reference", torch.float32)
    theirs, _ = move("reference", torch.bfloat16)
    ours, own_momentum = move("training", torch.bfloat16)
    torch.testing.assert_close(own_momentum, momentum)
    # Steep polynomials magnify what bfloat16 rounds off, differently in any order of sums; what
    # counts is to be as near to the truth as PyTorch's bfloat16 is.
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()


def test_muon_of_a_zero_gradient_only_shrinks_and_nan_shows() -> None:
    for value, expected in ((0.0, 0.5), (torch.nan, torch.nan)):
        weight, gradient = torch.ones(64, 32), torch.full((64, 32), value)
        with use_backend("training"):
            muon.update(
                *([weight], [gradient], [torch.zeros(64, 32)]),
                mu=0.9,
                shrink=0.5,
                length=0.1,
                dtype=torch.bfloat16,
            )
        assert torch.equal(weight.nan_to_num(7.0), torch.full((64, 32), expected).nan_to_num(7.0))
