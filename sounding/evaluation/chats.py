"""Evaluate chat tasks: generate answers, run tools if a task has any, and grade.

Conversations run concurrently, each in its own thread; the engine or server behind `Chat` batches
them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sounding.agent.loop import Chat, converse
from sounding.evaluation.eval_options import EvalOptions
from sounding.evaluation.execution import attempt_id
from sounding.evaluation.measuring import Measured, collect, digest_of
from sounding.evaluation.results import Results
from sounding.evaluation.statistics import Estimate, bootstrap, pass_at_k, wilson
from sounding.tasks.chat_task import ChatTask
from sounding.tasks.task import Grade

Row = dict[str, Any]


def measure_chats(
    task: ChatTask,
    chat: Chat,
    options: EvalOptions,
    source: Mapping[str, Any],
    *,
    most_turns: int,
) -> Measured:
    """pass@k of the conversations of a task. `source` identifies what answers as `chat`.

    Results that `options.out` already holds are not measured again.
    """
    settings = {
        **source,
        "tasks": digest_of([json.dumps(task[index].row()) for index in range(len(task))]),
        "seed": options.seed,
        "samples": options.samples,
        "turns": most_turns,
        "timeout": options.timeout,
        "isolated": not options.unsafe,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
    }
    results = Results(options.out, settings)
    attempts = [(index, sample) for index in range(len(task)) for sample in range(options.samples)]
    names = [attempt_id(task[index].task_id, sample) for index, sample in attempts]
    left = [attempt for attempt, name in zip(attempts, names, strict=True) if name not in results]
    rows = evaluate_chats(
        task, left, chat, seed=options.seed, most_turns=most_turns, width=options.width
    )
    interrupt = collect(results, "tasks", len(attempts), rows)
    done = results.select(names)
    samples, ks = options.samples, options.ks
    metrics = summarise_chats(done, samples=samples, ks=ks, seed=options.seed)
    more = {
        "by difficulty": by_difficulty(done, samples=samples, ks=ks),
        "outcomes": reasons(done),
    }
    return Measured("tasks", settings, metrics, len(done), len(attempts), more, interrupt)


def evaluate_chats(
    task: ChatTask,
    attempts: Sequence[tuple[int, int]],
    chat: Chat,
    *,
    seed: int,
    most_turns: int,
    width: int,
) -> Iterator[Row]:
    """Yield a row per finished attempt: id, task_id, group, difficulty, sample, passed, messages.

    An attempt is a problem's index and a sample number. `width` attempts run at a time. An answer
    that was cut off fails. A repair with tools is graded by the final state of the files.
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
    """Results of calls, in order of completion."""
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
    """Name of the group in which a problem is counted."""
    return f"{kind}, thinking" if thinking else kind


def summarise_chats(
    rows: Sequence[Row], *, samples: int, ks: Sequence[int], seed: int
) -> dict[str, Estimate]:
    """pass@k over all problems whose samples are all graded, and per kind.

    With one sample the interval is Wilson's, otherwise it resamples problems.
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
    """A row per kind and difficulty: number of problems, and pass@k."""
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
    """Increase of pass@k, by kind, on the tasks of both; intervals resample tasks in pairs.

    Raises ValueError if no task is in both, or if numbers of samples differ or are below k.
    """
    first, second = _passed(before), _passed(after)
    both = [name for name in first if name in second]
    if not both:
        raise ValueError("the two results have no common task; compare results of the same tasks")
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
    """Group, number of samples, and number of passed samples, by task."""
    found: dict[str, tuple[str, int, int]] = {}
    for row in rows:
        group, samples, passed = found.get(row["task_id"], (row["group"], 0, 0))
        found[row["task_id"]] = (group, samples + 1, passed + bool(row["passed"]))
    return found


def reasons(rows: Sequence[Row]) -> dict[str, int]:
    """Number of failed answers by reason."""
    return dict(Counter(row["reason"] for row in rows).most_common(20))


def _counts(rows: Sequence[Row], samples: int) -> list[tuple[str, int, int]]:
    """(group, difficulty, passed samples) of each problem with all its samples."""
    problems: dict[str, list[Row]] = {}
    for row in rows:
        problems.setdefault(row["task_id"], []).append(row)
    return [
        (of[0]["group"], of[0]["difficulty"], sum(row["passed"] for row in of))
        for of in problems.values()
        if len(of) == samples
    ]
