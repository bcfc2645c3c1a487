"""Traces of programs, made by really running them: what each line did, and what was printed."""

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
    """A run of a program, line by line."""

    program: str
    lines: tuple[str, ...]
    """What happened, as text: each line that ran, with what it changed, calls and returns."""
    runs: tuple[tuple[int, str], ...]
    """Each run of a line inside of a function: its number from 1, and what it changed."""
    output: str


def traces(
    programs: Sequence[str], run: Run, *, lines: int = 48, depth: int = 4, value: int = 60
) -> list[Traced | None]:
    """Run programs in one sandbox; None for those that cannot be traced in plain text.

    These are programs that raise or print nothing, that take more than so many lines or levels of
    calls, that have values whose text is longer than `value` or not certain, that have generators
    or coroutines, and statements over several lines.
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
    if os.fork() == 0:  # a program of its own for each
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
    """Whether every statement stands on one line, and heads of compound ones do."""
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
