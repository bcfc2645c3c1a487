"""Faulty versions of an exercise's solution, each proven faulty by a test that it fails."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sounding.textbook.drawing import Draw
from sounding.textbook.examples import double_quoted
from sounding.textbook.exercises import Case, Exercise
from sounding.textbook.mutations import Mutant, mutants
from sounding.textbook.running import Run, reports

_TRIED = 10  # of a program
_NO_VERDICT = ("it ran for more than", "its process ended")
_GAVE = re.compile(r"gave (.*), not (.*)", re.DOTALL)
_MOST_CHARACTERS = 60  # of a value that is told


@dataclass(frozen=True)
class Fault:
    """A mutant and the tests that it fails."""

    mutant: Mutant
    failed: Mapping[int, str]
    """Messages of the failed tests, by test number."""

    def seen(self, cases: Sequence[Case]) -> tuple[str, str, str] | None:
        """A failing call, its wrong value and the right one; None if none is short enough."""
        for number, said in self.failed.items():
            case, found = cases[number], _GAVE.search(said)
            if case.before or not found:
                continue
            value, right = found[1], found[2]
            if max(len(value), len(right)) <= _MOST_CHARACTERS:
                return double_quoted(case.code), value, right
        return None


def faults(exercise: Exercise, draw: Draw, run: Run) -> list[Fault]:
    """Mutants of the first solution that fail its tests without a timeout or a crash.

    Kinds of mutants alternate, since wrong variables far outnumber all other kinds.
    """
    waiting: dict[str, list[Mutant]] = {}
    for mutant in draw.shuffled(mutants(exercise.solutions[0])):
        waiting.setdefault(mutant.kind, []).append(mutant)
    tried: list[Mutant] = []
    while waiting and len(tried) < _TRIED:
        for kind in list(waiting):
            tried.append(waiting[kind].pop())
            if not waiting[kind]:
                del waiting[kind]
    if not tried:
        return []
    said = reports(exercise, [mutant.text for mutant in tried], run)
    found = []
    for mutant, reasons in zip(tried, said, strict=True):
        failed = {number: reason for number, reason in enumerate(reasons) if reason}
        if failed and not any(reason.startswith(_NO_VERDICT) for reason in failed.values()):
            found.append(Fault(mutant, failed))
    return found
