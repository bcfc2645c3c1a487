"""Exercises as chat tasks, each with a correct answer that its grader has passed.

Each task is proven in the sandbox when it is made: its answer must score 1 and a faulty program
must score 0. Tasks that cannot be proven are left out.
"""

import functools
from collections.abc import Iterator, Sequence

from sounding.tasks.chat_task import ChatProblem
from sounding.tasks.checks import (
    CodeCheck,
    MutationCheck,
    TextCheck,
    grade_answer,
)
from sounding.tasks.code import Judge
from sounding.tasks.fences import fenced
from sounding.textbook import asking
from sounding.textbook.asked_exercise import AskedExercise, Message
from sounding.textbook.asking import asked
from sounding.textbook.drawing import Draw
from sounding.textbook.examples import assertions, double_quoted
from sounding.textbook.exercises import Exercise
from sounding.textbook.failed_mutants import Fault, faults
from sounding.textbook.gap_choice import gap
from sounding.textbook.running import Run
from sounding.textbook.tool_repairs import Solved, repaired_by_tools
from sounding.textbook.tracing import Traced, traces

_KEPT_VERDICTS = 512  # several kinds grade the same program, and exercises come in sequence
_MOST_MUTANTS = 4  # in a task that asks for tests
_MOST_TRACE_CHARACTERS = 1800


class ChatProblems:
    """Makes the tasks of exercises. Safe to call from several threads."""

    def __init__(self, judge: Judge, run: Run, seed: int) -> None:
        """`judge` grades answers and `run` runs our own programs, both in the sandbox."""
        self._judge: Judge = functools.lru_cache(_KEPT_VERDICTS)(judge)
        self._run, self._seed = run, seed

    def solved(self, exercise: Exercise, kinds: Sequence[str], each: int) -> Iterator[Solved]:
        """Yield tasks of an exercise, at most `each` per kind, drawn by seed."""
        book = AskedExercise(exercise)
        if not book.usable:
            return
        found: list[Fault] | None = None
        for kind in kinds:
            draw = Draw(f"{self._seed}/{exercise.name}/{kind}")
            if kind == "write":
                yield from self._write(book, draw, each)
            elif kind == "fill":
                yield from self._fill(book, draw, each)
            elif kind == "trace":
                yield from self._trace(book, draw, each)
            else:
                if found is None:
                    own = Draw(f"{self._seed}/{exercise.name}/faults")
                    found = faults(exercise, own, self._run)
                yield from self._with_faults(kind, book, draw, each, found)

    def _with_faults(
        self, kind: str, book: AskedExercise, draw: Draw, each: int, found: list[Fault]
    ) -> Iterator[Solved]:
        if kind == "test":
            yield from self._test(book, draw, found)
            return
        made = 0
        for number, fault in enumerate(draw.shuffled(found)):
            if made == each or not self._right(book) or self._passes(book, fault.mutant.text):
                continue
            solved = (
                _repair(book, draw, fault, number)
                if kind == "repair"
                else repaired_by_tools(book, draw, fault, number, found, self._run, self._judge)
            )
            if solved is not None:
                made += 1
                yield solved

    def _right(self, book: AskedExercise) -> bool:
        return self._passes(book, book.code.solution)

    def _passes(self, book: AskedExercise, program: str) -> bool:
        return grade_answer(book.code, fenced(program), self._judge).score == 1

    def _write(self, book: AskedExercise, draw: Draw, each: int) -> Iterator[Solved]:
        right = [text for text in book.exercise.solutions if self._passes(book, text)]
        for number in range(each if right else 0):
            text = right[number % len(right)]
            name = book.exercise.entry_point
            templates = asking.WRITE if book.exercise.shape == "function" else asking.WRITE_OTHER
            head = book.exercise.signature
            question = asked(
                templates, draw, told=book.told(draw), head=head, name=name, code=fenced(head)
            )
            yield _answered(
                book.problem("write", number, question, fenced(text), book.code),
                {"content": fenced(text)},
            )

    def _fill(self, book: AskedExercise, draw: Draw, each: int) -> Iterator[Solved]:
        program = book.code.solution
        made: set[str] = set()
        for number in range(2 * each):
            chosen = gap(program, draw)
            if chosen is None or chosen.code in made or len(made) == each:
                continue
            made.add(chosen.code)
            check = CodeCheck(
                solution=chosen.code,
                test=book.code.test,
                entry_point=book.code.entry_point,
                prefix=chosen.prefix,
                suffix=chosen.suffix,
                indent=chosen.indent,
                programs=book.code.programs,
                inputs=book.code.inputs,
            )
            answer = fenced(chosen.answer)
            if grade_answer(check, answer, self._judge).score < 1:
                continue
            if grade_answer(check, fenced("pass"), self._judge).score:
                continue
            mark = draw.one(asking.MARKS)
            shown = f"{chosen.prefix}{chosen.indent}{mark}\n{chosen.suffix.lstrip(chr(10))}"
            question = asked(asking.FILL, draw, mark=mark, code=fenced(shown), told=book.told(draw))
            problem = book.problem("fill", number, question, answer, check)
            yield _answered(problem, {"content": answer})

    def _trace(self, book: AskedExercise, draw: Draw, each: int) -> Iterator[Solved]:
        if book.exercise.shape != "function":
            return
        found = [
            traced
            for traced in traces(printing_programs(book.exercise, draw), self._run)
            if traced is not None
            and "```" not in traced.program + traced.output
            and sum(map(len, traced.lines)) <= _MOST_TRACE_CHARACTERS
        ]
        if draw.chance(0.7):  # most exercises have a test on nothing, whose trace says nothing
            found.sort(key=lambda traced: -len(traced.lines))
        for number, traced in enumerate(found[:each]):
            yield from _traced(book, draw, traced, number)

    def _test(self, book: AskedExercise, draw: Draw, found: Sequence[Fault]) -> Iterator[Solved]:
        exercise = book.exercise
        stated = {n: assertions(c) for n, c in enumerate(exercise.cases) if not c.before}
        stated = {n: lines for n, lines in stated.items() if len(lines) == 1}
        noticed = [f for f in found if stated.keys() & f.failed.keys()][:_MOST_MUTANTS]
        if exercise.shape != "function" or len(noticed) < 2 or not stated:
            return
        chosen: list[int] = []
        for fault in noticed:  # the first case that notices each
            if not fault.failed.keys() & set(chosen):
                chosen.append(next(n for n in stated if n in fault.failed))
        rest = [n for n in stated if n not in chosen]
        chosen = sorted({*chosen, *draw.some(rest, max(0, 3 - len(chosen)))})
        lines = [f"    {double_quoted(stated[n][0])}" for n in chosen]
        name = exercise.entry_point
        answer = fenced("\n".join([f"def test_{name}():", *lines]))
        check = MutationCheck(
            entry_point=name,
            subjects=exercise.solutions[:2],
            mutants=tuple(fault.mutant.text for fault in noticed),
            needed=(len(noticed) + 1) // 2,
        )
        if grade_answer(check, answer, self._judge).score < 1:
            return
        code = fenced(exercise.solutions[0])
        question = asked(asking.TEST, draw, code=code, told=book.told(draw), name=name)
        yield _answered(book.problem("test", 0, question, answer, check), {"content": answer})


# --------------------------------------------------------------------------------------------------
# Parts of tasks


def printing_programs(exercise: Exercise, draw: Draw) -> list[str]:
    """For each plain case of a function, a solution that prints the case's value."""
    return [
        f"{draw.one(exercise.solutions).rstrip()}\n\n\nprint({double_quoted(case.code)})\n"
        for case in draw.shuffled(exercise.cases)
        if not case.before and case.expected is not None
    ]


def _answered(problem: ChatProblem, reply: Message) -> Solved:
    return Solved(problem, ({"role": "assistant", **reply},))


def _repair(book: AskedExercise, draw: Draw, fault: Fault, number: int) -> Solved:
    """A task to repair a faulty program in one answer, sometimes with thinking."""
    mutant, answer = fault.mutant, fenced(book.code.solution)
    question = asked(asking.REPAIR, draw, code=fenced(mutant.text), told=book.told(draw))
    seen = fault.seen(book.exercise.cases)
    symptom = draw.one(asking.SYMPTOM)
    if seen and symptom:
        call, value, right = seen
        question += "\n\n" + asked([symptom], draw, call=call, value=value, right=right)
    thinking = bool(seen) and draw.chance(0.5)
    problem = book.problem("repair", number, question, answer, book.code, thinking=thinking)
    if not thinking or seen is None:
        return _answered(problem, {"content": answer})
    call, value, right = seen
    thought = (
        f"`{call}` should be {right} and is {value}.\n`{mutant.wrong}` should be `{mutant.right}`."
    )
    return _answered(problem, {"reasoning_content": thought, "content": answer})


def _traced(book: AskedExercise, draw: Draw, traced: Traced, number: int) -> Iterator[Solved]:
    """Two tasks that ask for a program's output: one answered directly, one after a trace."""
    question = asked(asking.TRACE, draw, code=fenced(traced.program))
    answer = fenced(traced.output, "")
    difficulty = min(5, 1 + len(traced.lines) // 8)
    for thinking in (True, False):
        problem = book.problem(
            "trace",
            2 * number + (not thinking),
            question,
            answer,
            TextCheck(expected=traced.output),
            thinking=thinking,
            difficulty=difficulty,
        )
        thought = {"reasoning_content": "\n".join(traced.lines)} if thinking else {}
        yield _answered(problem, {**thought, "content": answer})
