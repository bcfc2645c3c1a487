"""Summaries of a model's mechanisms, on numbers made by hand."""

from typing import Any

import pytest

from sounding.evaluation.mechanisms import (
    load_table,
    long_documents,
    recall_table,
    summarise_mechanisms,
)

ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "drafts": [[3, 10]],
        "loads": [[4, 4, 4, 4], [16, 0, 0, 0]],
        "recall": {"10": [[4.0, 3.0, 1.0, 2.0, 3.5]], "2": [[4.0, 1.0, 1.0, 1.0, 2.0]]},
    },
    {
        "id": "b",
        "drafts": [[9, 10]],
        "loads": [[4, 4, 4, 4], [0, 16, 0, 0]],
        "recall": {"10": [[12.0, 9.0, 2.0, 6.0, 9.0]], "2": [[0.0, 0.0, 0.0, 0.0, 0.0]]},
    },
]


def test_shares_are_over_all_documents() -> None:
    found = summarise_mechanisms(ROWS, [16], seed=0)
    assert found["mtp_acceptance"].value == pytest.approx(12 / 20)
    assert found["mtp_acceptance"].low == pytest.approx(0.3)  # the worst of two documents
    assert found["mtp_acceptance"].high == pytest.approx(0.9)
    assert found["index_recall@16"].value == pytest.approx(13 / 20)
    assert list(summarise_mechanisms([{**ROWS[0], "recall": {}}], [16], seed=0)) == [
        "mtp_acceptance"
    ]


def test_entropy_is_of_the_summed_load() -> None:
    table = load_table(ROWS, [{"layer": "0"}, {"layer": "1"}])
    assert table[0] == {"layer": "0", "load_entropy": pytest.approx(1), "most": 1, "least": 1}
    assert table[1] == {"layer": "1", "load_entropy": pytest.approx(0.5), "most": 2, "least": 0}


def test_recall_is_by_layer_in_order() -> None:
    two, ten = recall_table(ROWS, [16], seed=0)
    assert (two["layer"], two["picked"], two["queries"], two["recall"]) == (2, 16, 4, 0.25)
    assert ten["layer"] == 10
    assert ten["recall"] == pytest.approx(12 / 16)
    assert (ten["chance"], ten["covered"], ten["coverable"]) == (3 / 16, 8 / 16, 12.5 / 16)
    assert (ten["low"], ten["high"]) == (pytest.approx(0.75), pytest.approx(0.75))
    assert recall_table([{**ROWS[1], "recall": {"2": ROWS[1]["recall"]["2"]}}], [16], seed=0) == []


def test_short_documents_are_left_out_and_long_ones_cut() -> None:
    documents = [("short", "ab"), ("wide", "ééé"), ("long", "abcdef")]
    found = dict(long_documents(documents, lambda s: [*map(ord, s)], at_least=4, at_most=5))
    assert found == {"long": [97, 98, 99, 100, 101]}
