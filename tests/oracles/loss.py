"""Cross-entropy from hidden vectors, averaged over the positions that count."""

import math

from tests.oracles import Array


def cross_entropy(
    hidden: Array, head: Array, targets: list[int], ignore: int
) -> list[float | None]:
    """-log softmax(head h)[target] of each position; None where the target is `ignore`."""
    out: list[float | None] = []
    for h, target in zip(hidden, targets, strict=True):
        if target == ignore:
            out.append(None)
            continue
        logits = [sum(float(row[i]) * float(h[i]) for i in range(len(h))) for row in head]
        largest = max(logits)
        total = sum(math.exp(logit - largest) for logit in logits)
        out.append(math.log(total) + largest - logits[target])
    return out
