"""Attempts written by a model and judged by running them."""

from collections.abc import Iterator, Sequence

import pytest

from sounding.evaluation.execution import evaluate_task, summarise_attempts
from sounding.evaluation.model import Filled
from sounding.sandbox.trial import Trial, Verdict
from sounding.tasks.code import CodeTask, Problem


def run(trial: Trial) -> Verdict:
    """A sandbox that only looks."""
    return Verdict("" if "return 1" in trial.program else "wrong answer", False)


PROBLEMS = [
    Problem(
        task_id=f"T/{n}",
        prompt=f"def f{n}():\n    ",
        canonical_solution="return 1",
        test=f"assert f{n}() == 1",
        entry_point=f"f{n}",
    )
    for n in range(3)
]


def test_each_attempt_has_its_seed_and_its_row() -> None:
    def fill(gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[Filled]:
        for index in reversed(range(len(gaps))):
            yield Filled(index, f"return {seeds[index] % 2}")

    attempts = [(index, sample) for index in range(3) for sample in range(4)]
    rows = list(evaluate_task(CodeTask(PROBLEMS, run), attempts, fill, seed=10, workers=2))
    assert sorted(str(row["id"]) for row in rows) == sorted(
        f"T/{index}#{sample}" for index, sample in attempts
    )
    assert all(row["passed"] == (int(str(row["sample"])) % 2 == 1) for row in rows)
    summary = summarise_attempts(rows, samples=4, ks=(1, 2, 4), seed=0)
    assert {name: estimate.value for name, estimate in summary.items()} == pytest.approx(
        {"pass@1": 1 / 2, "pass@2": 1 - 1 / 6, "pass@4": 1}
    )
    one = [row for row in rows if row["sample"] == 1]
    assert summarise_attempts(one, samples=1, ks=(1,), seed=0)["pass@1"].value == 1


def test_problems_with_missing_samples_do_not_count() -> None:
    rows = [
        {"task_id": "a", "passed": True},
        {"task_id": "b", "passed": False},
        {"task_id": "b", "passed": False},
    ]
    assert summarise_attempts(rows, samples=2, ks=(1,), seed=0)["pass@1"].value == 0


def test_answers_that_break_the_program_are_counted_by_kind_and_column_0_apart() -> None:
    kinds = ["passed", "NameError", "wrong answer", "SyntaxError", "withheld"]
    rows = [
        {"task_id": str(n), "passed": kind == "passed", "reason": kind, "column": 4 * (n > 1)}
        for n, kind in enumerate(kinds)
    ]
    summary = summarise_attempts(rows, samples=1, ks=(1,), seed=0)
    assert {name: estimate.value for name, estimate in summary.items()} == {
        **{"pass@1": 0.2, "breaks": 0.4, "SyntaxError": 0.2, "NameError": 0.2, "withheld": 0.2},
        "pass@1 in column 0": 0.5,
    }


def test_what_is_withheld_is_not_run() -> None:
    def fill(gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[Filled]:
        yield Filled(0, " \n")

    def never(trial: Trial) -> Verdict:
        raise AssertionError

    [row] = evaluate_task(CodeTask(PROBLEMS, never), [(0, 0)], fill, seed=0, workers=1)
    assert (row["passed"], row["reason"], row["column"]) == (False, "withheld", 4)
