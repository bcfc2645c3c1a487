"""The indexer's loss against its definition in scalar loops, and where its gradient goes."""

import math

import pytest
import torch
from torch import Tensor

from sounding.ops.attention import select_entries
from sounding.ops.index_loss import index_loss

WINDOW, RATIO = 5, 4


def by_definition(given: list[Tensor], selected: Tensor | None, start: int) -> float:
    """Sum over queries of KL(p || softmax(I)), one number at a time."""
    q, window, entries, sink, index_q, index_weights, index_keys = given
    total, d = 0.0, q.shape[-1]
    for t in range(len(q)):
        position = start + t
        seen = list(range((position + 1) // RATIO))
        if selected is not None:
            seen = [int(i) for i in selected[t] if i >= 0]
        if not seen:
            continue
        paid = dict.fromkeys(seen, 0.0)
        last = len(window) - len(q) + t
        for h in range(q.shape[1]):
            near = [window[i] for i in range(max(0, last - WINDOW + 1), last + 1)]
            far = [entries[i] for i in seen]
            scores = [math.exp(float(q[t, h] @ key) * d**-0.5) for key in near + far]
            bottom = sum(scores) + math.exp(float(sink[h]))
            for i, score in zip(seen, scores[len(near) :], strict=True):
                paid[i] += score / bottom
        guess = {
            i: math.exp(
                sum(
                    float(index_weights[t, h]) * max(0.0, float(index_q[t, h] @ index_keys[i]))
                    for h in range(index_q.shape[1])
                )
            )
            for i in seen
        }
        for i in seen:
            p = paid[i] / sum(paid.values())
            total += p * math.log(p * sum(guess.values()) / guess[i])
    return total


@pytest.mark.parametrize("start", [0, 3, 140])
@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_the_divergence_of_its_definition(start: int, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(start)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens, heads, width = 150, 2, 8  # more than one tile of queries
    count = (start + tokens) // RATIO
    q, window = normal(tokens, heads, width), normal(min(start, WINDOW - 1) + tokens, width)
    entries, sink = normal(count, width), normal(heads)
    index = normal(tokens, 3, 4), normal(tokens, 3), normal(count, 4)
    selected = select_entries(*index, start=start, ratio=RATIO, limit=6) if sparse else None
    for tensor in (q, window, entries, sink, *index):
        tensor.requires_grad_()
    loss = index_loss(
        q,
        window,
        entries,
        selected,
        sink,
        *index,
        start=start,
        sliding_window=WINDOW,
        ratio=RATIO,
    )
    given = [tensor.detach() for tensor in (q, window, entries, sink, *index)]
    expected = by_definition(given, selected, start)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert all(tensor.grad is None for tensor in (q, window, entries, sink))
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in index)
