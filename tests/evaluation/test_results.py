"""Results survive crashes and are not mixed up."""

from pathlib import Path

import pytest

from sounding.evaluation.results import Results


def test_a_stopped_evaluation_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = Results(path, {"seed": 1})
    first.add({"id": "a", "x": 1})
    first.add({"id": "b", "x": 2})
    with path.open("a") as file:
        file.write('{"id": "c", "x"')  # killed while writing
    again = Results(path, {"seed": 1})
    assert "a" in again
    assert "c" not in again
    again.add({"id": "c", "x": 3})
    assert Results(path, {"seed": 1}).select(["c", "d", "a"]) == [
        {"id": "c", "x": 3},
        {"id": "a", "x": 1},
    ]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Results(path, {"seed": 1, "k": 2})
    with pytest.raises(ValueError, match=r"seed was 1 and is 5"):
        Results(path, {"seed": 5, "k": 2})
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="has no results of these settings"):
        Results(path, {"seed": 1})
    assert path.read_text() == "something else\n"


def test_without_a_file_rows_are_kept_in_memory() -> None:
    results = Results(None, {})
    results.add({"id": "a"})
    assert results.select(["a"]) == [{"id": "a"}]
