"""Run solutions against the tests of their exercises, in the sandbox.

All tests of a solution run in one sandbox. The caller passes `run`: the sandbox, or a substitute
on a machine that is a sandbox itself.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sounding.sandbox.run import Limits, Outcome, require_isolation, run_python
from sounding.textbook.exercises import Exercise

Run = Callable[[str], Outcome]  # runs a program in a sandbox

_MARK = "\x00results "


def test_program(exercise: Exercise, solution: str) -> str:
    """A program that runs all tests of an exercise on a solution and prints their results."""
    orders = json.dumps(_orders(exercise, solution))
    return f"{_source('harness.py')}\n\nmain(json.loads({orders!r}), {_MARK!r})\n"


def _orders(exercise: Exercise, solution: str) -> dict[str, Any]:
    orders: dict[str, Any] = {
        "shape": exercise.shape,
        "solution": solution,
        "pytest": _source("small_pytest.py"),
    }
    if exercise.shape == "tests":
        orders |= {"modules": [exercise.subject, *exercise.mutants]}
    elif exercise.shape == "script":
        orders |= {"tests": [asdict(case) for case in exercise.script_cases]}
    else:
        orders |= {"tests": [asdict(case) for case in exercise.cases]}
    return orders


def failures(exercise: Exercise, solution: str, run: Run) -> list[str]:
    """Messages of the failed tests, one line per test; empty if the solution passes all."""
    outcome = run(test_program(exercise, solution))
    _, found, text = outcome.stdout.rpartition(_MARK)
    if not outcome.ok or not found:
        return [f"ended by {outcome.ended} ({outcome.code}): {outcome.stderr.strip()[-300:]}"]
    said: list[str] = json.loads(text)
    return [
        f"{name}: {reason}" for name, reason in zip(_labels(exercise), said, strict=True) if reason
    ]


def reports(exercise: Exercise, programs: Sequence[str], run: Run) -> list[list[str]]:
    """Results of each test for each program, "" if it passes; all in one sandbox.

    [] for programs that have not finished when the sandbox ends.
    """
    orders = [_orders(exercise, program) for program in programs]
    body = f"""
for orders in json.loads({json.dumps(orders)!r}):
    sys.stdout.write({_MARK!r} + json.dumps(run(orders)))
    sys.stdout.flush()
"""
    texts = run(_source("harness.py") + body).stdout.split(_MARK)[1:]
    said = []
    for text in texts:
        with contextlib.suppress(ValueError):  # cut short
            said.append(json.loads(text))
    return [*said, *[[] for _ in range(len(programs) - len(said))]]


def sandboxed(seconds: float, *, isolate: bool) -> Run:
    """A runner with a time limit. Raises NoIsolation if it cannot isolate programs."""
    limits = Limits(wall_seconds=seconds, cpu_seconds=max(1, math.ceil(seconds)))
    if isolate:
        require_isolation()
    return lambda program: run_python(program, limits, isolate=isolate)


def all_failures(
    exercises: Sequence[Exercise], run: Run, workers: int = 1
) -> Iterator[tuple[Exercise, list[str]]]:
    """Yield each exercise with the failures of its solutions, in order."""

    def check(exercise: Exercise) -> list[str]:
        return [
            f"solution {number}: {line}"
            for number, solution in enumerate(exercise.solutions, 1)
            for line in failures(exercise, solution, run)
        ]

    with ThreadPoolExecutor(workers) as pool:
        yield from zip(exercises, pool.map(check, exercises), strict=True)


def _labels(exercise: Exercise) -> list[str]:
    if exercise.shape == "tests":
        return ["subject", *(f"mutant {n}" for n in range(1, len(exercise.mutants) + 1))]
    if exercise.shape == "script":
        return [f"test {n}" for n in range(1, len(exercise.script_cases) + 1)]
    return [f"test {case.text!r}" for case in exercise.cases]


@functools.cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
