"""Attention of one query and the indexer's choice (docs/architecture.md 5, 7).

Everything follows from absolute positions: the functions get a whole sequence and a position.
"""

import math

import numpy as np

from tests.oracles import Array


def window_positions(t: int, window: int) -> list[int]:
    """Positions of the tokens the query at t sees directly, itself included."""
    return [s for s in range(t + 1) if t - s < window]


def visible_entries(t: int, r: int, total: int) -> list[int]:
    """Compressed entries whose last token is at or before t, of the `total` there are."""
    return [i for i in range(total) if i * r + r - 1 <= t]


def attend(q: Array, seen: list[Array], sinks: Array) -> Array:
    """q [h, d]; each of seen [d] is key and value of every head; the sink takes weight away."""
    heads, width = q.shape
    out = np.zeros((heads, width))
    for h in range(heads):
        scores = [width**-0.5 * sum(q[h, c] * kv[c] for c in range(width)) for kv in seen]
        largest = max([*scores, float(sinks[h])])
        weights = [math.exp(score - largest) for score in scores]
        total = sum(weights) + math.exp(float(sinks[h]) - largest)
        for weight, kv in zip(weights, seen, strict=True):
            for c in range(width):
                out[h, c] += weight / total * kv[c]
    return out


def attend_at(
    t: int,
    q: Array,
    window_kv: Array,
    entries: Array,
    sinks: Array,
    window: int,
    r: int,
    selected: list[int] | None = None,
) -> Array:
    """The query at position t over its window and the entries it may see (of those selected)."""
    seen = [window_kv[s] for s in window_positions(t, window)]
    for i in visible_entries(t, r, len(entries)) if r else []:
        if selected is None or i in selected:
            seen.append(entries[i])
    return attend(q, seen, sinks)


def index_scores(q: Array, keys: Array, head_weights: Array) -> list[float]:
    """score_i = sum_h w_h * relu(<q_h, k_i>) with q [h, d], keys [i, d]; w may be negative."""
    scores = []
    for key in keys:
        score = 0.0
        for h in range(len(q)):
            dot = sum(float(q[h, c]) * float(key[c]) for c in range(len(key)))
            score += float(head_weights[h]) * max(dot, 0.0)
        scores.append(score)
    return scores


def select(scores: list[float], t: int, r: int, k: int) -> list[int]:
    """The k best of the entries visible at t, ascending; equal scores: the lower index first."""
    visible = visible_entries(t, r, len(scores))
    return sorted(sorted(visible, key=lambda i: (-scores[i], i))[:k])
