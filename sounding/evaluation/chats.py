"""Tasks asked in a conversation: answers, tools where there are any, grades.

Conversations run side by side, each in a thread of its own; the engine or the server behind `Chat`
puts them together.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sounding.agent.loop import Chat, converse
from sounding.evaluation.execution import attempt_id
from sounding.evaluation.statistics import Estimate, bootstrap, pass_at_k, wilson
from sounding.tasks.chat import ChatTask
from sounding.tasks.task import Grade

Row = dict[str, Any]


def evaluate_chats(
    task: ChatTask,
    attempts: Sequence[tuple[int, int]],
    chat: Chat,
    *,
    seed: int,
    most_turns: int,
    width: int,
) -> Iterator[Row]:
    """A row per attempt, as it ends: id, task_id, group, difficulty, sample, passed, messages.

    An attempt is a problem's index and the number of the sample. `width` run at a time. An answer
    that was cut off does not pass; of a repair by tools the files are graded as they were left.
    """

    def attempt(index: int, sample: int) -> Row:
        problem = task[index]
        said = converse(
            chat,
            problem.messages,
            task.open(index),
            most_turns=most_turns if problem.tools else 1,
            thinking=problem.thinking,
            seed=seed + sample,
        )
        cut_off = said.ended == "length" and not problem.tools
        grade = (
            Grade(0.0, "not finished") if cut_off else task.grade_conversation(index, said.messages)
        )
        return {
            "id": attempt_id(problem.task_id, sample),
            "task_id": problem.task_id,
            "group": group_of(problem.kind, thinking=problem.thinking),
            "difficulty": problem.difficulty,
            "sample": sample,
            "passed": grade.score == 1,
            "reason": grade.reason,
            "ended": said.ended,
            "turns": said.turns,
            "messages": list(said.messages),
        }

    yield from _side_by_side([(index, sample) for index, sample in attempts], attempt, width)


def _side_by_side(
    attempts: Sequence[tuple[int, int]], act: Callable[[int, int], Row], width: int
) -> Iterator[Row]:
    """What calls return, as they end."""
    with ThreadPoolExecutor(width) as pool:
        waiting: set[Future[Row]] = {pool.submit(act, *one) for one in attempts}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def group_of(kind: str, *, thinking: bool) -> str:
    """The name of what is counted together."""
    return f"{kind}, thinking" if thinking else kind


def summarise_chats(
    rows: Sequence[Row], *, samples: int, ks: Sequence[int], seed: int
) -> dict[str, Estimate]:
    """pass@k over all problems whose samples are all judged, and of each kind of them.

    With one sample the interval is Wilson's, otherwise that of resampled problems.
    """
    found = {}
    groups = sorted({row["group"] for row in rows})
    for name in ("", *groups) if len(groups) > 1 else ("",):
        counts = [passed for group, _, passed in _counts(rows, samples) if name in ("", group)]
        for k in ks:
            title = f"{name} pass@{k}".strip()
            if samples == 1:
                found[title] = wilson(sum(counts), len(counts))
            else:
                shares = [(pass_at_k(samples, count, k), 1.0) for count in counts]
                found[title] = bootstrap(shares, seed=seed)
    return found


def by_difficulty(rows: Sequence[Row], *, samples: int, ks: Sequence[int]) -> list[Row]:
    """A line for each kind and difficulty: number of problems, and pass@k."""
    cells: dict[tuple[str, int], list[int]] = {}
    for group, difficulty, passed in _counts(rows, samples):
        cells.setdefault((group, difficulty), []).append(passed)
    return [
        {
            "kind": group,
            "difficulty": difficulty,
            "problems": len(counts),
            **{
                f"pass@{k}": sum(pass_at_k(samples, count, k) for count in counts) / len(counts)
                for k in ks
            },
        }
        for (group, difficulty), counts in sorted(cells.items())
    ]


def compared(
    before: Sequence[Row], after: Sequence[Row], *, ks: Sequence[int], seed: int
) -> dict[str, Estimate]:
    """How much pass@k has risen, by kind, on the tasks of both; intervals resample tasks in pairs.

    Raises ValueError where no task is in both, or the numbers of samples differ or are below k.
    """
    first, second = _passed(before), _passed(after)
    both = [name for name in first if name in second]
    if not both:
        raise ValueError("the two have no task in common; compare results of the same tasks")
    found: dict[str, list[tuple[str, int, int, int]]] = {}
    for name in both:
        group, samples, passed = first[name]
        _, again, passed_after = second[name]
        if again != samples:
            raise ValueError(f"{name} has {samples} samples and {again}; compare equal numbers")
        for key in ("", group):
            found.setdefault(key, []).append((name, samples, passed, passed_after))
    table = {}
    for key in sorted(found) if len(found) > 2 else [""]:
        for k in ks:
            rises = [(pass_at_k(n, b, k) - pass_at_k(n, a, k), 1.0) for _, n, a, b in found[key]]
            table[f"{key} pass@{k} rises by".strip()] = bootstrap(rises, seed=seed)
    return table


def _passed(rows: Sequence[Row]) -> dict[str, tuple[str, int, int]]:
    """Group, number of samples, and how many passed, by task."""
    found: dict[str, tuple[str, int, int]] = {}
    for row in rows:
        group, samples, passed = found.get(row["task_id"], (row["group"], 0, 0))
        found[row["task_id"]] = (group, samples + 1, passed + bool(row["passed"]))
    return found


def reasons(rows: Sequence[Row]) -> dict[str, int]:
    """How often answers failed for each reason."""
    return dict(Counter(row["reason"] for row in rows).most_common(20))


def _counts(rows: Sequence[Row], samples: int) -> list[tuple[str, int, int]]:
    """(group, difficulty, samples that passed) of each problem with all its samples."""
    problems: dict[str, list[Row]] = {}
    for row in rows:
        problems.setdefault(row["task_id"], []).append(row)
    return [
        (of[0]["group"], of[0]["difficulty"], sum(row["passed"] for row in of))
        for of in problems.values()
        if len(of) == samples
    ]
