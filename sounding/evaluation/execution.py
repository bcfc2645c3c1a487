"""Grade programs by execution: a model generates programs, a pool of sandboxes runs their tests.

Generation and tests overlap: earlier answers are tested while later ones are generated.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sounding.evaluation.model import FillGaps
from sounding.evaluation.statistics import Estimate, bootstrap, pass_at_k, wilson
from sounding.tasks.task import Grade, Task

WITHHELD = "withheld"  # the reason if no answer was given
BREAKS = ("SyntaxError", "IndentationError", "TabError", "NameError", "UnboundLocalError")


def evaluate_task(
    task: Task,
    attempts: Sequence[tuple[int, int]],
    fill: FillGaps,
    *,
    seed: int,
    workers: int,
) -> Iterator[dict[str, object]]:
    """Yield a row per graded attempt: id, task_id, sample, passed, reason, answer.

    An attempt is an example's index and a sample number, which is added to the seed. The id of a
    row is TASK_ID#SAMPLE.
    """
    gaps = [(task[index].prompt, task[index].suffix) for index, _ in attempts]
    seeds = [seed + sample for _, sample in attempts]
    waiting: deque[tuple[int, str, Future[Grade]]] = deque()

    def row(number: int, text: str, grade: Grade) -> dict[str, object]:
        index, sample = attempts[number]
        name = task[index].task_id
        return {
            "id": attempt_id(name, sample),
            "task_id": name,
            "sample": sample,
            "passed": grade.score == 1,
            "reason": grade.reason,
            "column": len(task[index].prompt) - task[index].prompt.rfind("\n") - 1,
            "answer": text,
        }

    with ThreadPoolExecutor(workers) as pool:
        for number, text, _ in fill(gaps, seeds):
            future = pool.submit(_grade, task, attempts[number][0], text)
            waiting.append((number, text, future))
            while waiting and (waiting[0][2].done() or len(waiting) > 4 * workers):
                first, answer, judged = waiting.popleft()
                yield row(first, answer, judged.result())
        for number, text, judged in waiting:
            yield row(number, text, judged.result())


def _grade(task: Task, index: int, answer: str) -> Grade:
    """Grade an answer; a withheld answer is not run."""
    return task.grade(index, answer) if answer.strip() else Grade(0.0, WITHHELD)


def attempt_id(task_id: str, sample: int) -> str:
    """The id of an attempt's row."""
    return f"{task_id}#{sample}"


def summarise_attempts(
    rows: Sequence[dict[str, Any]], *, samples: int, ks: Sequence[int], seed: int
) -> dict[str, Estimate]:
    """pass@k over the problems whose samples are all graded.

    With one sample the interval is Wilson's, otherwise it resamples problems. Also reports the
    shares of answers that break the program, by kind (see `BREAKS`), and of withheld answers, and
    pass@1 of gaps in column 0, where the answer includes the indentation.
    """
    passed: dict[str, list[bool]] = {}
    for row in rows:
        passed.setdefault(row["task_id"], []).append(row["passed"])
    counts = [sum(of) for of in passed.values() if len(of) == samples]
    if samples == 1:
        return {"pass@1": wilson(sum(counts), len(counts)), **_shares(rows)}
    return {
        f"pass@{k}": bootstrap([(pass_at_k(samples, count, k), 1.0) for count in counts], seed=seed)
        for k in ks
    }


def _shares(rows: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
    reasons = Counter(row.get("reason") for row in rows)
    shares = {"breaks": wilson(sum(reasons[kind] for kind in BREAKS), len(rows))} if rows else {}
    for kind in (*BREAKS, WITHHELD):
        if reasons[kind]:
            shares[kind] = wilson(reasons[kind], len(rows))
    first = [row["passed"] for row in rows if row.get("column") == 0]
    if first:
        shares["pass@1 in column 0"] = wilson(sum(first), len(first))
    return shares
