"""Trace a program line by line inside the sandbox; `tracing.py` sends this file's text there.

This file imports nothing from the package: the sandbox has the standard library only.
"""

import ast
import contextlib
import io
import json
import sys
from typing import Any


class GivenUp(BaseException):
    """Raised if a trace would be too long or not plain text."""


def main(program: str, limits: dict[str, int], mark: str) -> None:
    """Print the trace and the output of a program as JSON; nothing if it cannot be traced."""
    output = io.StringIO()
    tracer = Tracer(program, output, limits)
    code = compile(program, "<program>", "exec", dont_inherit=True)
    try:
        with contextlib.redirect_stdout(output):
            sys.settrace(tracer.enter)
            try:
                exec(code, {"__name__": "__main__"})
            finally:
                sys.settrace(None)
    except BaseException:
        return
    said = {"trace": tracer.lines, "runs": tracer.runs, "output": output.getvalue()}
    sys.stdout.write(mark + json.dumps(said))


class Tracer:
    """Records the execution of a program: a line of text for each line that ran."""

    def __init__(self, program: str, output: io.StringIO, limits: dict[str, int]) -> None:
        self._source = program.split("\n")
        self._output, self._limits = output, limits
        self.lines: list[str] = []
        self.runs: list[tuple[int, str]] = []
        """For each line that ran in a function: its number and what it changed."""
        self._depth = 0
        self._printed = 0
        self._bodies = _bodies(ast.parse(program))

    def enter(self, frame: Any, event: str, argument: Any) -> Any:
        """The trace function for a new frame; None for frames outside the program."""
        code = frame.f_code
        if code.co_filename != "<program>":
            return None
        if code.co_name == "<module>":
            return self._module
        if code.co_name.startswith("<"):
            return None  # comprehensions and lambdas are part of their line
        if code.co_flags & 0x2A0 or self._depth >= self._limits["depth"]:  # generators, async
            raise GivenUp
        self._depth += 1
        given = ", ".join(f"{n}={self._text(v)}" for n, v in frame.f_locals.items())
        self._say(f"call {code.co_name}({given})")
        return _Function(self, frame).step

    def _module(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "exception":
            raise GivenUp
        self.printed()
        return self._module

    def printed(self) -> None:
        """Record the output printed since the last call."""
        text = self._output.getvalue()
        new, self._printed = text[self._printed :], len(text)
        for line in new.splitlines():
            self._say(f"prints {line}")

    def leave(self, value: Any) -> None:
        """Record the value that a function returns."""
        self._depth -= 1
        self._say(f"returns {self._text(value)}")

    def line(self, number: int, note: str) -> None:
        """Record that a line ran and what it changed."""
        self.runs.append((number, note))
        text = self._source[number - 1].strip()
        self._say(f"{text}  # {note}" if note and note != text else text)

    def decision(self, number: int, following: int, texts: dict[str, str]) -> str:
        """The outcome of a condition or loop, inferred from the next line that ran; or ""."""
        if number not in self._bodies:
            return ""
        first, last, targets = self._bodies[number]
        inside = first <= following <= last
        if targets is None:
            return str(inside)
        known = [f"{name} = {texts[name]}" for name in targets if name in texts]
        return ", ".join(known) if inside else "done"

    def changes(self, before: dict[str, str], now: dict[str, Any]) -> tuple[dict[str, str], str]:
        """Texts of all variables, and a note of those that changed."""
        texts = {n: self._text(v) for n, v in now.items() if not callable(v)}
        changed = [f"{n} = {t}" for n, t in texts.items() if before.get(n) != t]
        return texts, ", ".join(changed)

    def _text(self, value: Any) -> str:
        text = repr(value)
        if len(text) > self._limits["value"] or " at 0x" in text or "<" in text[:1]:
            raise GivenUp
        if isinstance(value, set | frozenset) and len(value) > 1:
            raise GivenUp  # its order is not deterministic
        return text

    def _say(self, text: str) -> None:
        self.lines.append(text)
        if len(self.lines) > self._limits["lines"]:
            raise GivenUp


class _Function:
    """Traces one call of a function of the program."""

    def __init__(self, tracer: Tracer, frame: Any) -> None:
        self._tracer = tracer
        self._before, _ = tracer.changes({}, frame.f_locals)
        self._line = 0

    def step(self, frame: Any, event: str, argument: Any) -> Any:
        """Trace function: called before each line and on return."""
        if event == "exception":
            raise GivenUp
        if event in ("line", "return"):
            self._flush(frame, frame.f_lineno if event == "line" else 0)
            self._line = frame.f_lineno
        if event == "return":
            self._tracer.leave(argument)
        return self.step

    def _flush(self, frame: Any, following: int) -> None:
        """Record what the last line did, now that it has finished."""
        self._before, note = self._tracer.changes(self._before, frame.f_locals)
        if self._line:
            note = note or self._tracer.decision(self._line, following, self._before)
            self._tracer.line(self._line, note)
        self._tracer.printed()


def _bodies(tree: ast.Module) -> dict[int, tuple[int, int, list[str] | None]]:
    """For the line of each condition or loop: the lines of its body, and a for loop's variables."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.For):
            last = node.body[-1].end_lineno
            assert last is not None
            targets = None
            if isinstance(node, ast.For):
                targets = [n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)]
            found[node.lineno] = (node.body[0].lineno, last, targets)
    return found
