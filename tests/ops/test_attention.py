"""Attention and the choice of entries against brute force over absolute positions.

Catches: an entry seen one token early or late, a window one too long or short, a chunk that does
not know where it starts, a sink that carries a value, ties resolved by luck, results that depend on
how queries are cut into tiles.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sounding.ops import attention as ops
from tests.oracles import attention as oracle
from tests.oracles.compare import array, assert_matches

DTYPES = st.sampled_from([torch.float32, torch.float64])


def random(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_choice(seed: int, start: int, t: int, ratio: int, k: int) -> list[list[int]]:
    """Per query some of the visible entries, ascending."""
    generator = np.random.default_rng(seed)
    return [
        sorted(generator.permutation((position + 1) // ratio)[:k].tolist())
        for position in range(start, start + t)
    ]


def padded(choices: Sequence[Sequence[int]], k: int) -> Tensor:
    rows = [[*choice, *[-1] * (k - len(choice))] for choice in choices]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(choices), k)


def check_attend(
    form: str,
    *,
    start: int,
    t: int,
    window: int,
    ratio: int,
    kept: int,
    seed: int,
    dtype: torch.dtype,
    k: int = 2,
    heads: int = 2,
    width: int = 4,
    sink: float = 0.0,
) -> None:
    """One chunk of t queries at `start`, with at least the `kept` keys before it, or all."""
    total = start + t
    k = min(k, total // ratio) if ratio else 0  # as select_entries gives
    q = random(seed, dtype, t, heads, width) * 2
    keys = random(seed + 1, dtype, total, width)
    sinks = random(seed + 2, torch.float32, heads) + sink
    entries = random(seed + 3, dtype, total // ratio, width) if ratio else None
    choices = random_choice(seed, start, t, ratio, k) if form == "selected" else None
    actual = ops.attend(
        q,
        keys[max(0, start - max(kept, window - 1)) :],
        entries,
        padded(choices, k) if choices is not None else None,
        sinks,
        start=start,
        sliding_window=window,
        ratio=ratio,
    )
    empty = np.zeros((0, width))
    expected = [
        oracle.attend_at(
            start + row,
            array(q[row]),
            array(keys),
            empty if entries is None else array(entries),
            array(sinks),
            window,
            ratio,
            None if choices is None else choices[row],
        )
        for row in range(t)
    ]
    shape = (t, heads, width)
    assert actual.dtype == dtype
    assert_matches(actual, np.array(expected).reshape(shape), terms=total + 2, scale=4.0)


@settings(max_examples=60)
@given(
    form=st.sampled_from(["window", "all", "selected"]),
    start=st.integers(0, 20),
    t=st.integers(0, 9),
    window=st.integers(1, 7),
    ratio=st.integers(1, 5),
    kept=st.integers(0, 12),
    seed=st.integers(0, 99),
    dtype=DTYPES,
)
def test_attention_equals_the_oracle(
    form: str,
    start: int,
    t: int,
    window: int,
    ratio: int,
    kept: int,
    seed: int,
    dtype: torch.dtype,
) -> None:
    check_attend(
        form,
        start=start,
        t=t,
        window=window,
        ratio=0 if form == "window" else ratio,
        kept=kept,
        seed=seed,
        dtype=dtype,
    )


@pytest.mark.parametrize("form", ["window", "all", "selected"])
@pytest.mark.parametrize("start", [0, 3])
def test_attend_over_several_tiles(form: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiles of 5, a chunk of 17 has three full ones and a rest."""
    monkeypatch.setattr(ops, "QUERY_TILE", 5)
    check_attend(
        form,
        start=start,
        t=17,
        window=4,
        ratio=0 if form == "window" else 3,
        kept=0,
        seed=5,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("form", ["window", "all", "selected"])
def test_attend_at_published_sizes(form: str) -> None:
    """Window 128, groups of 128 and 4, across the real tile and the first group boundaries."""
    ratio = {"window": 0, "all": 128, "selected": 4}[form]
    check_attend(
        form,
        start=120,
        t=140,
        window=128,
        ratio=ratio,
        kept=0,
        seed=3,
        dtype=torch.float64,
        heads=1,
        width=2,
        k=5,
    )


def test_a_token_that_completes_a_group_sees_it() -> None:
    """And the one before does not. Source: docs/architecture.md 5.4."""
    positions = torch.arange(9)
    assert ops.num_visible(positions, 4).tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    keys, entries = torch.zeros(5, 1), torch.full((1, 1), 8.0)
    out = ops.attend(
        torch.zeros(5, 1, 1),
        keys,
        entries,
        None,
        torch.full((1,), -torch.inf),
        start=0,
        sliding_window=1,
        ratio=4,
    )
    assert out.flatten().tolist() == [0, 0, 0, 4, 4]


def test_nothing_visible_but_oneself() -> None:
    """No entry complete, none selected, a window of one: the own key, less what the sink takes."""
    q, own = torch.zeros(1, 2, 3), torch.tensor([[1.0, 2.0, 3.0]])
    sink = torch.tensor([0.0, -torch.inf])
    for selected in (None, torch.full((1, 2), -1)):
        out = ops.attend(
            q, own, torch.ones(0 if selected is None else 2, 3), selected, sink,
            start=0, sliding_window=1, ratio=4,
        )  # fmt: skip
        assert torch.allclose(out[0], torch.stack((own[0] / 2, own[0])))


@pytest.mark.parametrize("form", ["window", "all", "selected"])
@pytest.mark.parametrize("sink", [-1e4, 1e4, 30.0])
def test_extreme_sinks_give_finite_attention_as_in_the_oracle(form: str, sink: float) -> None:
    check_attend(
        form,
        start=9,
        t=3,
        window=4,
        ratio=0 if form == "window" else 2,
        kept=0,
        seed=1,
        dtype=torch.float32,
        sink=sink,
    )


def test_extreme_scores_stay_finite() -> None:
    q, keys = torch.full((2, 1, 4), 1e9), torch.tensor([[1e9] * 4, [-1e9] * 4])
    out = ops.attend(
        q, keys, None, None, torch.zeros(1), start=0, sliding_window=2, ratio=0
    )  # fmt: skip
    assert torch.equal(out[1, 0], keys[0]) and torch.equal(out[0, 0], keys[0])


def test_bfloat16_inputs_are_attended_in_float32() -> None:
    q, keys = random(0, torch.float32, 6, 2, 4).bfloat16(), random(1, torch.float32, 6, 4)
    low = keys.bfloat16()
    how = {"start": 0, "sliding_window": 3, "ratio": 0}
    sink = torch.zeros(2)
    wide = ops.attend(q.float(), low.float(), None, None, sink, **how)
    assert torch.equal(ops.attend(q, low, None, None, sink, **how), wide.bfloat16())


@pytest.mark.parametrize("form", ["window", "all", "selected"])
def test_gradient_of_attention_is_exact(form: str) -> None:
    ratio = 0 if form == "window" else 2
    q = random(0, torch.float64, 4, 2, 2).requires_grad_()
    keys = random(1, torch.float64, 6, 2).requires_grad_()  # three kept, of which two are read
    entries = random(2, torch.float64, 4, 2).requires_grad_()
    sink = random(3, torch.float64, 2).requires_grad_()
    selected = padded(random_choice(0, 5, 4, 2, 3), 3) if form == "selected" else None

    def run(q: Tensor, keys: Tensor, entries: Tensor, sink: Tensor) -> Tensor:
        return ops.attend(
            q,
            keys,
            entries if ratio else None,
            selected,
            sink,
            start=5,
            sliding_window=3,
            ratio=ratio,
        )

    assert torch.autograd.gradcheck(run, (q, keys, entries, sink))


@settings(max_examples=60)
@given(
    start=st.integers(0, 20),
    t=st.integers(0, 6),
    ratio=st.integers(1, 5),
    limit=st.integers(1, 7),
    heads=st.integers(1, 3),
    budget=st.sampled_from([1, 17, 1 << 24]),
    coarse=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_selected_entries_are_those_of_the_oracle(
    start: int,
    t: int,
    ratio: int,
    limit: int,
    heads: int,
    budget: int,
    coarse: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Scores within rounding, and exactly the oracle's choice.

    Coarse inputs are small integers: scores are exact in either precision and full of ties.
    """
    total = (start + t) // ratio
    q = random(seed, dtype, t, heads, 3)
    weights = random(seed + 1, dtype, t, heads)
    keys = random(seed + 2, dtype, total, 3)
    if coarse:
        q, weights, keys = q.round(), weights.round(), keys.round()
    scores = ops.index_scores(q, weights, keys, start=start, ratio=ratio)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "SCORE_BUDGET", budget)
        actual = ops.select_entries(q, weights, keys, start=start, ratio=ratio, limit=limit)
    assert actual.shape == (t, min(limit, total))
    for row in range(t):
        visible = oracle.visible_entries(start + row, ratio, total)
        expected = oracle.index_scores(array(q[row]), array(keys), array(weights[row]))
        assert_matches(scores[row, : len(visible)], np.array(expected)[: len(visible)], scale=30.0)
        assert scores[row, len(visible) :].eq(-torch.inf).all()
        chosen = oracle.select(expected, start + row, ratio, limit)
        edge = sorted((expected[i] for i in visible), reverse=True)
        decided = len(visible) <= limit or edge[limit - 1] - edge[limit] > 1e-5
        if coarse or decided:
            assert actual[row].tolist() == padded([chosen], actual.shape[1])[0].tolist()


def test_a_negative_head_weight_counts_against() -> None:
    keys = torch.tensor([[1.0], [2.0]])
    scores = ops.index_scores(
        torch.ones(1, 1, 1), torch.tensor([[-3.0]]), keys, start=9, ratio=4
    )  # fmt: skip
    assert scores.tolist() == [[-3.0, -6.0]]


@settings(max_examples=100)
@given(
    rows=st.lists(
        st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 2.0]), min_size=7, max_size=7),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(0, 7),
)
def test_top_k_ties_go_to_the_lower_index(rows: list[list[float]], k: int) -> None:
    actual = ops.top_k(torch.tensor(rows), k)
    for row, chosen in zip(rows, actual.tolist(), strict=True):
        finite = [i for i in range(7) if row[i] > -np.inf]
        best = sorted(sorted(finite, key=lambda i: (-row[i], i))[:k])
        assert chosen == [*best, *[-1] * (k - len(best))]


@pytest.mark.parametrize("length", [17, 64, 1000, 4096])
def test_top_k_does_not_depend_on_the_length(length: int) -> None:
    """Entries that do not count behind the others change nothing, also among many ties."""
    scores = torch.zeros(3, 17)
    scores[1, 5:] = 1
    scores[2, 9] = -1
    longer = torch.full((3, length), -torch.inf)
    longer[:, :17] = scores
    assert torch.equal(ops.top_k(longer, 6), ops.top_k(scores, 6))


def test_selecting_for_no_queries_gives_no_rows() -> None:
    out = ops.select_entries(
        torch.zeros(0, 2, 3), torch.zeros(0, 2), torch.zeros(5, 3), start=0, ratio=4, limit=3
    )
    assert out.shape == (0, 3)


def test_selecting_from_no_entries_gives_empty_rows() -> None:
    out = ops.select_entries(
        torch.zeros(2, 2, 3), torch.zeros(2, 2), torch.zeros(0, 3), start=0, ratio=4, limit=3
    )
    assert out.shape == (2, 0)
