"""Traces of programs from real runs: what each line changed, and what was printed."""

import ast
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sounding.textbook.running import Run

_MARK = "\x00trace "


@dataclass(frozen=True)
class Traced:
    """A program with the trace of its run."""

    program: str
    lines: tuple[str, ...]
    """The trace as text: each line that ran, with its changes, calls and returns."""
    runs: tuple[tuple[int, str], ...]
    """Each execution of a line inside a function: its number from 1, and what it changed."""
    output: str


def traces(
    programs: Sequence[str], run: Run, *, lines: int = 48, depth: int = 4, value: int = 60
) -> list[Traced | None]:
    """Trace programs in one sandbox; None for those that cannot be traced as plain text.

    These programs raise or print nothing; take more than `lines` trace lines or `depth` nested
    calls; have values whose text is longer than `value` or not deterministic; or contain
    generators, coroutines or statements that span several lines.
    """
    wanted = [program for program in programs if _traceable(program)]
    if not wanted:
        return [None] * len(programs)
    limits = {"lines": lines, "depth": depth, "value": value}
    orders = json.dumps(wanted)
    body = f"""
import os
for program in json.loads({orders!r}):
    receive, send = os.pipe()
    if os.fork() == 0:  # a process of its own for each program
        os.dup2(send, 1)
        os.close(receive)
        import signal
        signal.alarm(2)
        main(program, {limits!r}, "")
        sys.stdout.flush()
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.wait()
    sys.stdout.write({_MARK!r} + text)
    sys.stdout.flush()
"""
    outcome = run(_source("tracer.py") + body)
    texts = outcome.stdout.split(_MARK)[1:]
    said = dict(zip(wanted, [*texts, *[""] * len(wanted)], strict=False))
    return [_traced(program, said.get(program, "")) for program in programs]


def _traced(program: str, text: str) -> Traced | None:
    if not text:
        return None
    said = json.loads(text)
    if not said["output"].strip() or not said["runs"]:
        return None
    runs = tuple((int(number), str(note)) for number, note in said["runs"])
    return Traced(program, tuple(said["trace"]), runs, said["output"])


def _traceable(program: str) -> bool:
    """True if every simple statement and every compound statement's head is on one line."""
    try:
        tree = ast.parse(program)
    except SyntaxError:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.AsyncFunctionDef | ast.With | ast.Try | ast.Match):
            return False
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            if last != node.lineno and (not body or body[0].lineno != node.lineno):
                return False
    return True


@functools.cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
