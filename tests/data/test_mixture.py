"""Mixtures: shares hold in every stretch, weights move, any place resumes, mistakes are named."""

import json
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.data.data_rows import DataRows, LoaderSettings, Row
from sounding.data.dataset import Dataset
from sounding.data.fim import FimSettings
from sounding.data.loader import Loader
from sounding.data.mixture import Mixture
from sounding.data.shares import Share, require_mixture
from sounding.text.tokenizer import SMALLEST_VOCABULARY, Tokenizer, train
from tests.data.conftest import code


@pytest.fixture(scope="module")
def datasets(tokenizer: Tokenizer) -> dict[str, Dataset]:
    """Three datasets whose texts begin with different comments, one of them tiny."""
    sizes = {"corpus": 40, "problems": 3, "book": 12}
    return {
        name: Dataset.from_texts([f"# {name}\n{code(seed)}" for seed in range(size)], tokenizer)
        for name, size in sizes.items()
    }


SETTINGS = LoaderSettings(sequence_length=128, window_documents=16, fim=FimSettings(rate=0.5))


def mixture(
    datasets: dict[str, Dataset],
    weights: dict[str, float],
    final: dict[str, float] | None = None,
    *,
    seed: int = 0,
    span_rows: int | None = None,
) -> Mixture:
    parts = [
        (
            Share(name=name, path="", weight=weight, final_weight=(final or {}).get(name)),
            DataRows(datasets[name], SETTINGS),
        )
        for name, weight in weights.items()
    ]
    return Mixture(parts, seed=seed, span_rows=span_rows)


def names(stream: Mixture, count: int) -> list[str]:
    """Which dataset each of the first rows is of, told by which place moved."""
    found, before = [], dict[str, Any]()
    for _, state in islice(stream.follow(), count):
        found += [name for name, place in state["parts"].items() if before.get(name) != place]
        before = state["parts"]
    return found


def content(row: Row) -> list[list[int]]:
    return [piece.tokens.tolist() for piece in row]


def test_every_stretch_has_its_shares(datasets: dict[str, Dataset]) -> None:
    weights = {"corpus": 7.0, "problems": 1.0, "book": 2.0}
    chosen = names(mixture(datasets, weights), 600)
    assert len(chosen) == 600
    for begin in range(0, 600, 100):
        counts = Counter(chosen[begin : begin + 100])
        for name, weight in weights.items():
            assert abs(counts[name] - 10 * weight) <= 2
    assert chosen != names(mixture(datasets, weights, seed=1), 600)


def test_weights_move_along_a_line_and_stay(datasets: dict[str, Dataset]) -> None:
    first, last = {"corpus": 1.0, "book": 0.0}, {"corpus": 0.25, "book": 0.75}
    chosen = names(mixture(datasets, first, last, span_rows=400), 600)
    shares = [Counter(chosen[at : at + 100])["book"] / 100 for at in range(0, 600, 100)]
    for share, expected in zip(shares, [0.094, 0.281, 0.469, 0.656, 0.75, 0.75], strict=True):
        assert abs(share - expected) <= 0.03


def test_each_dataset_is_read_in_its_own_order(datasets: dict[str, Dataset]) -> None:
    """What else is in the mixture, and how much of it, changes none of a dataset's rows."""
    mixed = mixture(datasets, {"corpus": 0.6, "problems": 0.4})
    chosen = names(mixed, 80)
    rows = [content(row) for row, _ in islice(mixed.follow(), 80)]
    for name in ("corpus", "problems"):
        mine = [row for row, owner in zip(rows, chosen, strict=True) if owner == name]
        alone = islice(DataRows(datasets[name], SETTINGS).follow(), len(mine))
        assert mine == [content(row) for row, _ in alone]


def moving(datasets: dict[str, Dataset]) -> Mixture:
    first, last = {"corpus": 3.0, "book": 1.0}, {"corpus": 1.0, "book": 3.0}
    return mixture(datasets, first, last, span_rows=30)


@pytest.fixture(scope="module")
def steps(datasets: dict[str, Dataset]) -> list[tuple[Row, dict[str, Any]]]:
    return list(islice(moving(datasets).follow(), 40))


@settings(max_examples=12)
@given(after=st.integers(0, 38))
def test_any_place_resumes(
    datasets: dict[str, Dataset], steps: list[tuple[Row, dict[str, Any]]], after: int
) -> None:
    state = json.loads(json.dumps(steps[after][1]))
    resumed = islice(moving(datasets).follow(state), 39 - after)
    assert [(content(row), place) for row, place in resumed] == [
        (content(row), place) for row, place in steps[after + 1 :]
    ]


def test_ranks_share_what_one_reads(datasets: dict[str, Dataset]) -> None:
    def batches(rows: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        made = mixture(datasets, {"corpus": 0.5, "book": 0.5})
        stream = Loader(made, rows=rows, rank=rank, world=world).batches()
        return [batch.tokens.tolist() for batch, _ in islice(stream, 6)]

    pairs = zip(batches(2, 0, 2), batches(2, 1, 2), batches(4), strict=True)
    for one, other, both in pairs:
        assert sorted(one + other) == sorted(both)


def test_going_on_with_other_weights_and_another_dataset(datasets: dict[str, Dataset]) -> None:
    _, state = list(islice(mixture(datasets, {"corpus": 1.0, "problems": 1.0}).follow(), 30))[-1]
    assert state["parts"].keys() == {"corpus", "problems"}
    _, later = next(mixture(datasets, {"book": 1.0, "corpus": 1e-9}).follow(state))
    assert later["row"] == 31
    assert later["parts"]["corpus"] == state["parts"]["corpus"]
    assert later["parts"]["book"]["row"] == 1


def test_states_of_something_else_are_refused(datasets: dict[str, Dataset]) -> None:
    _, alone = next(DataRows(datasets["corpus"], SETTINGS).follow())
    made = mixture(datasets, {"corpus": 1.0, "book": 1.0})
    with pytest.raises(ValueError, match="belongs to a single dataset and not to a mixture"):
        made.follow(alone)
    _, state = list(islice(made.follow(), 4))[-1]
    swapped = {**datasets, "book": datasets["problems"]}
    with pytest.raises(ValueError, match="mixture: this loader state belongs to another dataset"):
        mixture(swapped, {"corpus": 1.0, "book": 1.0}).follow(state)
    with pytest.raises(ValueError, match="another dataset"):
        DataRows(datasets["corpus"], SETTINGS).follow(state)


def share(name: str = "a", weight: float = 1.0, final_weight: float | None = None) -> Share:
    return Share(name=name, path="somewhere", weight=weight, final_weight=final_weight)


def test_weights_that_are_refused(datasets: dict[str, Dataset]) -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^weight of 'a' = .* must be a finite number"):
            share(weight=wrong)
        with pytest.raises(ValueError, match=r"final_weight of 'a' = .* must be a finite number"):
            share(final_weight=wrong)
    with pytest.raises(ValueError, match="weight of 'a' is 0 throughout"):
        share(weight=0.0)
    with pytest.raises(ValueError, match="a dataset of a mixture has no name"):
        share("")
    with pytest.raises(ValueError, match="two datasets of a mixture are named 'a'"):
        require_mixture([share(), share()])
    with pytest.raises(ValueError, match="all weights of the mixture are 0 at the end"):
        require_mixture([share(final_weight=0.0), share("b", final_weight=0.0)])
    with pytest.raises(ValueError, match="all weights of the mixture are 0 at first"):
        require_mixture([share(weight=0.0, final_weight=1.0)])
    require_mixture([])
    with pytest.raises(ValueError, match="needs at least one dataset"):
        mixture(datasets, {})
    with pytest.raises(ValueError, match="span_rows = None must be at least 1"):
        mixture(datasets, {"corpus": 1.0}, {"corpus": 0.5})
    with pytest.raises(ValueError, match="a mixture has no epochs"):
        mixture(datasets, {"corpus": 1.0}).follow(epochs=1)


def test_datasets_of_other_tokenizers_are_refused(datasets: dict[str, Dataset]) -> None:
    other = Dataset.from_texts(["e\n"], train(["some other text"] * 3, SMALLEST_VOCABULARY))
    with pytest.raises(ValueError, match="different tokenizers"):
        mixture({**datasets, "book": other}, {"corpus": 1.0, "book": 1.0})
