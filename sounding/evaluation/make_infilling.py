"""Make infilling problems from MBPP's solutions; running the tests proves each one fair."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sounding.evaluation.measuring import collect
from sounding.evaluation.results import Results
from sounding.tasks.code import Judge, Problem
from sounding.tasks.mbpp import MBPPRow, fair_problems


def infilling_rows(
    rows: Sequence[MBPPRow], judge: Judge, per_problem: int, workers: int
) -> tuple[list[Problem], Counter[str]]:
    """Make at most `per_problem` problems per row, and count the reasons for rows without any."""
    made: dict[int, list[Problem]] = {}
    reasons: Counter[str] = Counter()

    def try_row(row: MBPPRow) -> tuple[MBPPRow, list[Problem], str]:
        return row, *fair_problems(row, judge, per_problem)

    def attempts() -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for row, problems, reason in pool.map(try_row, rows):
                    made[row.number] = problems
                    if reason:
                        reasons[reason] += 1
                    yield {"id": str(row.number)}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    interrupt = collect(Results(None, {}), "solutions", len(rows), attempts())
    if interrupt is not None:
        raise interrupt
    return [problem for number in sorted(made) for problem in made[number]], reasons
