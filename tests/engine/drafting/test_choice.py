"""The engine's choice among no drafts, prompt lookup, MTP and DSpark is nearly the best of them."""

import pytest

from tests.engine.drafting.simulated import Machine, Text, seconds_per_token

SOURCES = ("lookup", "mtp", "dspark")
CHEAP = Machine(row=0.03, mtp=0.1, dspark=0.15)  # weights are read from far away
EVEN = Machine(row=0.12, mtp=0.2, dspark=0.5)
DEAR = Machine(row=0.5, mtp=0.3, dspark=0.9)  # a small network in the caches
PROSE = Text(lookup=0.35, found=0.2, mtp=0.55, dspark=0.6)
CODE = Text(lookup=0.8, found=0.6, mtp=0.8, dspark=0.8)
COPY = Text(lookup=0.98, found=1.0, mtp=0.8, dspark=0.85)
HARD = Text(lookup=0.05, found=0.3, mtp=0.15, dspark=0.12)
BROKEN = Text(lookup=0.0, found=0.5, mtp=0.7, dspark=0.0)


@pytest.mark.parametrize(
    ("text", "machine"),
    [(PROSE, CHEAP), (CODE, CHEAP), (COPY, EVEN), (BROKEN, EVEN), (PROSE, DEAR), (HARD, DEAR)],
    ids=["prose", "code", "copy", "broken", "prose-dear", "hard-dear"],
)
def test_within_three_percent_of_the_best_alone(
    text: Text, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {
        names: seconds_per_token(names, [text], machine, monkeypatch)
        for names in ((), *((name,) for name in SOURCES))
    }
    together = seconds_per_token(SOURCES, [text], machine, monkeypatch)
    assert together <= 1.03 * min(alone.values()), (together, alone)


def test_also_over_many_answers_of_different_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one answer has taught is where the next one begins, and is unlearned."""
    texts = [HARD, HARD, HARD, CODE, CODE, CODE, COPY, COPY] * 2
    alone = [
        seconds_per_token(names, texts, EVEN, monkeypatch, tokens=150)
        for names in ((), *((name,) for name in SOURCES))
    ]
    together = seconds_per_token(SOURCES, texts, EVEN, monkeypatch, tokens=150)
    assert together <= 1.03 * min(alone)
