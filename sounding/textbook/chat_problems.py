"""Exercises as tasks asked in a conversation, each with a right answer that its grader has passed.

What is needed to prove a task (that its answer scores 1, that a faulty program scores 0) is run in
the sandbox as the task is made; what cannot be proven is left out.
"""

import ast
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sounding.tasks.chat import ChatProblem
from sounding.tasks.checks import (
    CodeCheck,
    FilesCheck,
    MutationCheck,
    TextCheck,
    distinct_values,
    grade_answer,
    grade_files,
)
from sounding.tasks.code import Judge
from sounding.tasks.fences import fenced
from sounding.tasks.workspace import TOOLS, Workspace
from sounding.textbook import asking
from sounding.textbook.asking import asked
from sounding.textbook.drawing import Draw
from sounding.textbook.examples import assertions, double_quoted, short_examples
from sounding.textbook.exercises import Exercise
from sounding.textbook.faults import Fault, faults
from sounding.textbook.gap_choice import gap
from sounding.textbook.problems import check_function
from sounding.textbook.running import Run
from sounding.textbook.telling import wrapped
from sounding.textbook.tracing import Traced, traces

Message = Mapping[str, Any]
SOLUTION, TESTS = "solution.py", "test_solution.py"
_MOST_MUTANTS = 4  # of a task to write tests
_MOST_TRACE_CHARACTERS = 1800
_MOST_CODE_CHARACTERS = 1600


@dataclass(frozen=True)
class Solved:
    """A task, and a conversation that solves it."""

    problem: ChatProblem
    reply: tuple[Message, ...]
    """What follows the messages of the task: the last of them is the answer."""


class ChatProblems:
    """Makes the tasks of exercises. Safe to call from several threads."""

    def __init__(self, judge: Judge, run: Run, seed: int) -> None:
        """`judge` grades answers, `run` runs our own programs, both in the sandbox."""
        self._judge: Judge = functools.lru_cache(65536)(judge)
        self._run, self._seed = run, seed

    def solved(self, exercise: Exercise, kinds: Sequence[str], each: int) -> Iterator[Solved]:
        """Tasks of an exercise, at most `each` of a kind, in an order of their own."""
        book = _Book(exercise)
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
        self, kind: str, book: "_Book", draw: Draw, each: int, found: list[Fault]
    ) -> Iterator[Solved]:
        if kind == "test":
            yield from self._test(book, draw, found)
            return
        made = 0
        for number, fault in enumerate(draw.shuffled(found)):
            if made == each or not self._right(book) or self._passes(book, fault.mutant.text):
                continue
            made += 1
            if kind == "repair":
                yield _repair(book, draw, fault, number)
            elif solved := self._by_tools(book, draw, fault, number, found):
                yield solved

    def _right(self, book: "_Book") -> bool:
        return self._passes(book, book.code.solution)

    def _passes(self, book: "_Book", program: str) -> bool:
        return grade_answer(book.code, fenced(program), self._judge).score == 1

    def _write(self, book: "_Book", draw: Draw, each: int) -> Iterator[Solved]:
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

    def _fill(self, book: "_Book", draw: Draw, each: int) -> Iterator[Solved]:
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

    def _trace(self, book: "_Book", draw: Draw, each: int) -> Iterator[Solved]:
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

    def _test(self, book: "_Book", draw: Draw, found: Sequence[Fault]) -> Iterator[Solved]:
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

    def _by_tools(
        self, book: "_Book", draw: Draw, fault: Fault, number: int, others: Sequence[Fault]
    ) -> Solved | None:
        """A repair by tools, with the results that they really gave."""
        tests = book.test_file()
        if not tests:
            return None
        told = "\n".join(f"# {line}" for line in book.wrapped())
        check = FilesCheck(
            files={SOLUTION: f"{told}\n{fault.mutant.text}", TESTS: tests},
            editable=SOLUTION,
            code=book.code,
        )
        right = f"{told}\n{book.code.solution}"
        question = asked(asking.TOOLS, draw, file=SOLUTION, tests=TESTS)
        problem = book.problem("tools", number, question, right, check, tools=TOOLS)
        session = _Session(Workspace(check, self._run), draw)
        if "tests failed" not in session.look():
            return None  # shown tests do not notice it, or it cannot be loaded
        same_line = [f for f in others if f.mutant.line == fault.mutant.line and f != fault]
        if same_line and draw.chance(0.25):
            wrong = draw.one(same_line).mutant.wrong
            if session.edit(fault.mutant, wrong, loss=False) and "passed" not in session.test():
                session.read(SOLUTION)
                if not session.edit_line(wrong, fault.mutant.right):
                    return None
            else:
                return None
        elif not session.edit(fault.mutant, fault.mutant.right):
            return None
        if "passed" not in session.test():
            return None
        wrong, better = fault.mutant.wrong, fault.mutant.right
        session.say(asked(asking.MENDED, draw, wrong=wrong, right=better))
        if grade_files(check, session.workspace.files, self._judge).score < 1:
            return None
        return Solved(problem, tuple(session.messages))


# --------------------------------------------------------------------------------------------------
# Parts of tasks


class _Book:
    """An exercise as tasks use it."""

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        test = check_function(exercise.cases) if exercise.entry_point else ""
        self.usable = bool(
            test
            and exercise.shape in ("function", "class", "module")
            and distinct_values(test) > 1
            and all("```" not in text for text in (*exercise.solutions, *exercise.descriptions))
            and len(exercise.solutions[0]) <= _MOST_CODE_CHARACTERS
        )
        inputs = _inputs(exercise)
        self.code = CodeCheck(
            solution=exercise.solutions[0],
            test=test or "assert None",
            entry_point=exercise.entry_point or "none",
            programs=exercise.solutions if inputs else (),
            inputs=inputs,
        )

    def told(self, draw: Draw) -> str:
        """What is asked: a description, perhaps examples."""
        text, other = self.exercise.descriptions[0], draw.one(self.exercise.descriptions)
        if other != text and draw.chance(0.4):
            text = f"{text} {other}"
        style = draw.weighted([("", 0.5), ("==", 0.2), ("->", 0.15), (">>>", 0.15)])
        if not style:
            return text
        cases = draw.some(self.exercise.cases, 1 + draw.below(2))
        lines = short_examples(cases, style, self.exercise.solutions[0])
        return f"{text}\n\n{fenced(chr(10).join(lines))}" if lines else text

    def wrapped(self) -> list[str]:
        """The first description in lines."""
        return wrapped(self.exercise.descriptions[0], 86)

    def test_file(self) -> str:
        """The shown tests as a file; "" where too few can be said."""
        name = self.exercise.entry_point
        chosen = [lines for case in self.exercise.cases if (lines := assertions(case))]
        if len(chosen) < 3:
            return ""
        tests = [
            "\n".join([f"def test_{number}():", *(f"    {double_quoted(line)}" for line in lines)])
            for number, lines in enumerate(chosen[:6], 1)
        ]
        names = sorted({name, *self._used(chosen)})
        return "\n\n\n".join([f"from solution import {', '.join(names)}", *tests]) + "\n"

    def _used(self, chosen: Sequence[Sequence[str]]) -> set[str]:
        """Other names of the program that tests use."""
        defined = set()
        for node in ast.parse(self.exercise.solutions[0]).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        text = "\n".join(line for lines in chosen for line in lines)
        return {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)} & defined

    def problem(
        self,
        kind: str,
        number: int,
        question: str,
        answer: str,
        check: Any,
        *,
        tools: Sequence[Message] = (),
        thinking: bool = False,
        difficulty: int | None = None,
    ) -> ChatProblem:
        """A task with a name of its own."""
        return ChatProblem(
            task_id=f"{self.exercise.name}/{kind}/{number}",
            kind=kind,
            difficulty=difficulty or self.exercise.difficulty,
            messages=({"role": "user", "content": question},),
            tools=tuple(tools),
            thinking=thinking,
            answer=answer,
            check=check,
        )


def printing_programs(exercise: Exercise, draw: Draw) -> list[str]:
    """For each plain case of a function, a solution that prints the value of the case."""
    return [
        f"{draw.one(exercise.solutions).rstrip()}\n\n\nprint({double_quoted(case.code)})\n"
        for case in draw.shuffled(exercise.cases)
        if not case.before and case.expected is not None
    ]


def _answered(problem: ChatProblem, reply: Message) -> Solved:
    return Solved(problem, ({"role": "assistant", **reply},))


def _inputs(exercise: Exercise) -> tuple[str, ...]:
    """Arguments of the plain calls among the tests of a function, as literals of tuples."""
    if exercise.shape != "function":
        return ()
    found: dict[str, None] = {}
    for case in exercise.cases:
        call = ast.parse(case.code).body[0]
        if case.before or not isinstance(call, ast.Expr) or not isinstance(call.value, ast.Call):
            continue
        node = call.value
        plain = isinstance(node.func, ast.Name) and node.func.id == exercise.entry_point
        if not plain or node.keywords or not node.args:
            continue
        text = ast.unparse(ast.Tuple(node.args, ast.Load()))
        try:
            ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError):
            continue
        found[text] = None
    return tuple(found) if len(found) > 1 else ()


def _repair(book: _Book, draw: Draw, fault: Fault, number: int) -> Solved:
    """A faulty program to be repaired by an answer, sometimes after thinking."""
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


def _traced(book: _Book, draw: Draw, traced: Traced, number: int) -> Iterator[Solved]:
    """What a program prints, asked twice: to be answered at once, and after its trace."""
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


class _Session:
    """A conversation with tools as it is written down."""

    def __init__(self, workspace: Workspace, draw: Draw) -> None:
        self.workspace, self._draw = workspace, draw
        self.messages: list[Message] = []
        self.results: list[str] = []

    def look(self) -> str:
        """Read the program and run the tests, in one order or the other; what tests say."""
        read_first = self._draw.chance(0.5)
        if read_first:
            self.read(SOLUTION)
        said = self.test()
        if not read_first:
            self.read(SOLUTION)
        return said

    def read(self, path: str) -> str:
        return self._call("read_file", {"path": path})

    def test(self) -> str:
        return self._call("run_tests", {})

    def edit(self, mutant: Any, new: str, *, loss: bool = True) -> bool:
        """Replace the faulty line by another one."""
        return self.edit_line(mutant.wrong, new, loss=loss)

    def edit_line(self, old: str, new: str, *, loss: bool = True) -> bool:
        """Replace a line; False where it comes more than once."""
        said = self._call("edit", {"path": SOLUTION, "old": old, "new": new}, loss=loss)
        return said.startswith("edited")

    def say(self, text: str) -> None:
        """The answer that ends the conversation."""
        self.messages.append({"role": "assistant", "content": text})

    def _call(self, name: str, arguments: Mapping[str, str], *, loss: bool = True) -> str:
        text = json.dumps(arguments, ensure_ascii=False)
        call_id = f"call_{len(self.results) + 1}"
        function = {"name": name, "arguments": text}
        call = {"id": call_id, "type": "function", "function": function}
        message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        if not loss:
            message["loss"] = False  # a step that turns out to be wrong is context, and no lesson
        result = self.workspace.call(name, text)
        self.results.append(result)
        self.messages += [
            message,
            {"role": "tool", "tool_call_id": call_id, "content": result},
        ]
        return result
