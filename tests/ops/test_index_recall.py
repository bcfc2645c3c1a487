"""The indexer's recall against its definition in scalar loops, and its two known ends."""

import math

import pytest
import torch
from torch import Tensor

from sounding.ops.index_recall import FIELDS, index_recall
from tests.oracles.attention import index_scores, select

WINDOW, RATIO = 5, 4
SIZES = (1, 3, 16)


def normal(seed: int) -> "list[Tensor]":
    generator = torch.Generator().manual_seed(seed)
    tokens, heads, width, start = 150, 2, 8, seed
    count = (start + tokens) // RATIO
    shapes = (
        (tokens, heads, width), (min(start, WINDOW - 1) + tokens, width), (count, width),
        (heads,), (tokens, 3, 4), (tokens, 3), (count, 4),
    )  # fmt: skip
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def paid_by_definition(given: list[Tensor], t: int, start: int) -> list[float]:
    """Attention of query t to each entry it sees, summed over heads, as a share of all of them."""
    q, window, entries, sink = given[:4]
    last, scale = len(window) - len(q) + t, q.shape[-1] ** -0.5
    paid = [0.0] * ((start + t + 1) // RATIO)
    for h in range(q.shape[1]):
        near = [window[i] for i in range(max(0, last - WINDOW + 1), last + 1)]
        far = [entries[i] for i in range(len(paid))]
        exps = [math.exp(float(q[t, h] @ key) * scale) for key in [*near, *far]]
        bottom = sum(exps) + math.exp(float(sink[h]))
        for i, value in enumerate(exps[len(near) :]):
            paid[i] += value / bottom
    return [value / sum(paid) for value in paid]


def by_definition(given: list[Tensor], start: int, size: int) -> list[float]:
    index_q, weights, keys = (x.numpy() for x in given[4:])
    total = [0.0] * len(FIELDS)
    for t in range(len(given[0])):
        seen = (start + t + 1) // RATIO
        if seen <= size:
            continue
        paid = paid_by_definition(given, t, start)
        scores = index_scores(index_q[t], keys, weights[t])
        picked = select(scores, start + t, RATIO, size)
        best = sorted(range(seen), key=lambda i: -paid[i])[:size]
        total[0] += 1
        total[1] += len(set(picked) & set(best)) / size
        total[2] += size / seen
        total[3] += sum(paid[i] for i in picked)
        total[4] += sum(paid[i] for i in best)
    return total


def measure(given: list[Tensor], start: int) -> Tensor:
    return index_recall(
        *given, start=start, sliding_window=WINDOW, ratio=RATIO, sizes=SIZES
    )  # fmt: skip


@pytest.mark.parametrize("start", [0, 3, 140])
def test_it_is_what_its_definition_says(start: int) -> None:
    given = normal(start)
    expected = [by_definition(given, start, size) for size in SIZES]
    torch.testing.assert_close(
        measure(given, start), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_an_indexer_that_scores_by_attention_picks_it_all() -> None:
    """One head, keys and queries positive: the order of index scores is that of attention."""
    given = [x.abs() for x in normal(7)]
    q, _, entries = given[:3]
    given[0] = q = q[:, :1]
    given[3] = given[3][:1]
    given[4:] = [q, q.new_ones(len(q), 1), entries]
    found = measure(given, 7)
    for queries, recall, chance, covered, coverable in found.tolist():
        assert recall == queries > 0
        assert covered == pytest.approx(coverable)
        assert chance < queries
    worst = measure([*given[:5], -given[5], given[6]], 7)
    assert (worst[:, 1] < worst[:, 2]).all()
    assert (worst[:, 3] < worst[:, 4]).all()
