"""Lines taken out and put back."""

from collections.abc import Iterator, Sequence

import pytest

from sounding.evaluation.lines import (
    Item,
    choose_lines,
    copies,
    evaluate_lines,
    precision_table,
    summarise_lines,
)
from sounding.evaluation.model import Filled

TEXT = """import a

# a comment of many words
def first(x):
    value = compute(x)
    return value

def second(y):
    value = compute(y)
    return value

)
"""


@pytest.mark.parametrize("cursor", ["indent", "inside"])
def test_items_are_the_file(cursor: str) -> None:
    items = choose_lines([("f.py", TEXT)], per_file=100, cursor=cursor, seed=0)  # type: ignore[arg-type]
    lines = TEXT.split("\n")
    assert [item.id for item in items] == [f"f.py:{n}" for n in (1, 4, 5, 6, 8, 9, 10)]
    for item in items:
        assert item.prefix + item.answer + item.suffix == TEXT
        line = lines[int(item.id.rpartition(":")[2]) - 1]
        assert line.endswith(item.answer)
        assert item.answer.strip()
        if cursor == "indent":
            assert item.answer == line.strip()
    assert items == choose_lines([("f.py", TEXT)], per_file=100, cursor=cursor, seed=0)  # type: ignore[arg-type]


def test_a_seed_draws_the_same_lines_of_a_file_whatever_stands_beside_it() -> None:
    one = choose_lines([("f.py", TEXT)], per_file=2, cursor="indent", seed=3)
    both = choose_lines([("a.py", TEXT), ("f.py", TEXT)], per_file=2, cursor="indent", seed=3)
    assert both[2:] == one
    assert len(one) == 2
    seeds = [choose_lines([("f.py", TEXT)], per_file=2, cursor="indent", seed=s) for s in range(5)]
    assert any(other != seeds[0] for other in seeds)


def item(number: int, at: int = 0) -> Item:
    lines = TEXT.split("\n")
    line = lines[number - 1]
    at += len(line) - len(line.lstrip())
    before = "".join(f"{one}\n" for one in lines[: number - 1])
    after = "".join(f"\n{one}" for one in lines[number:])
    return Item(f"f:{number}", before + line[:at], after, line[at:])


def test_copying_baselines_take_the_nearest_and_the_best_line() -> None:
    assert copies(item(9)) == ("value = compute(x)", "value = compute(x)")
    assert copies(item(6)) == ("return value", "return value")
    assert copies(item(10, at=4)) == ("rn value", "rn value")
    assert copies(Item("x", "", "", "a = 1")) == ("", "")
    copied, best = copies(item(1))
    assert best == "# a comment of many words" or best  # there is nothing like it
    assert copied


def test_lines_are_judged_without_the_white_space_around_them() -> None:
    items = [item(5), item(9)]

    def fill(gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[Filled]:
        assert gaps == [(one.prefix, one.suffix) for one in items]
        assert seeds == [7, 7]
        yield Filled(1, "value = compute(y) ", 0.75)
        yield Filled(0, "value = compute(z)", 0.25)

    rows = list(evaluate_lines(items, fill, seed=7))
    assert [row["id"] for row in rows] == ["f:9", "f:5"]
    assert [row["model_exact"] for row in rows] == [True, False]
    assert rows[1]["model_similarity"] == pytest.approx(1 - 1 / 18, abs=1e-4)
    summary = summarise_lines(rows, seed=0)
    assert summary["model_exact"].value == 0.5
    assert summary["copy_exact"].value == 0
    assert summary["best_copy_similarity"].value == pytest.approx(1 - 1 / 18, abs=1e-4)
    assert precision_table(rows) == [
        {"confidence": 0.0, "lines": 2, "shown": 1.0, "exact": 0.5},
        {"confidence": 0.3, "lines": 1, "shown": 0.5, "exact": 1.0},
    ]
    assert precision_table([{"model_exact": True}]) == []
