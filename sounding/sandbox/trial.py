"""Runs tests against an answer, each in a sandbox of its own, so that it cannot deceive them.

The answer's process gets its program and, call by call, arguments; it sends values. The tests'
process has the tests and what they expect; what comes from the answer is plain data there, made of
exact builtin types (`typed_json.py`). Each has namespaces of its own and they share one socket, so
an answer can neither read nor change, signal or replace what judges it, and the verdict goes to us
over a pipe that it never had. What is left to an answer is to return values.
"""

import functools
import json
import os
import selectors
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sounding.sandbox.launch import SETUP_SECONDS, Jail, orders_for, refusal
from sounding.sandbox.run import Limits, ended_as

_LONGEST_VERDICT = 4096


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An answer and the tests it stands before."""

    program: str
    """The text with the answer in it."""
    reference: str
    """The same with the right answer: what the tests use beside the answer comes from here."""
    answered: tuple[str, ...]
    """Names of the program that the tests must have from the answer, not from the reference."""
    given: tuple[str, ...]
    """Classes of the program that have nothing of the answer in them: their instances can be sent
    to it as arguments."""
    test: str
    entry_point: str
    calls_check: bool
    """Whether the tests are in `check(candidate)`, or run as they stand."""
    in_place: bool = True
    """Whether the tests see what a call does to its arguments."""


class Verdict(NamedTuple):
    """What the tests say."""

    reason: str
    """Why they do not pass, in one line; "" if they do."""
    changed: bool
    """Whether a call has changed its arguments."""

    @property
    def passed(self) -> bool:
        """Whether all of them pass."""
        return not self.reason


def judge(trial: Trial, limits: Limits | None = None, *, isolate: bool = True) -> Verdict:
    """Run the tests of a trial. Safe to call from several threads.

    Limits hold for each of the two processes, the wall time for both together. What an answer or
    its tests print is lost. Raises NoIsolation where a wall cannot be built.
    """
    limits = limits or Limits()
    orders = asdict(trial)
    answering = {name: orders.pop(name) for name in ("program", "given")}
    orders["given"] = trial.given
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        null = os.open(os.devnull, os.O_RDWR)
        verdict, write = os.pipe()
        stack.callback(os.close, verdict)
        start = functools.partial(_start, stack, limits, isolate)
        try:
            answer = start("answer_process", answering, [null, null, ours.fileno()])
            tests = start("test_process", orders, [write, null, theirs.fileno()])
        finally:
            ours.close()
            theirs.close()
            os.close(null)
            os.close(write)
        return _Watch(answer, tests, verdict, limits).verdict()


def _start(
    stack: ExitStack,
    limits: Limits,
    isolate: bool,
    role: str,
    what: dict[str, Any],
    files: list[int],
) -> Jail:
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="sounding-", ignore_cleanup_errors=True)
    )
    orders = orders_for(asdict(limits), folder, isolate=isolate, runs_others=False)
    jail = Jail({**orders, **what, "role": f"{__package__}.{role}"}, files)
    stack.callback(jail.end)
    return jail


class _Watch:
    """Both processes, until the verdict or a limit."""

    def __init__(self, answer: Jail, tests: Jail, pipe: int, limits: Limits) -> None:
        self._answer, self._tests, self._pipe, self._limits = answer, tests, pipe, limits
        self._said = bytearray()
        self._open: set[object] = {answer, tests, pipe}

    def verdict(self) -> Verdict:
        """Wait for it. Raises NoIsolation where one of them did not start."""
        started = self._wait(SETUP_SECONDS, lambda: self._answer.started and self._tests.started)
        for jail in (self._answer, self._tests):
            if not jail.started:
                raise refusal(jail.said("failed") or "it did not start")
        if not started:
            raise refusal("it did not start in time")
        if not self._wait(self._limits.wall_seconds, lambda: self._pipe not in self._open):
            return Verdict("wall time", False)
        try:
            said = json.loads(self._said)
            reason, changed = str(said["reason"]), bool(said["changed"])
        except ValueError:  # the tests' process has ended without one
            self._wait(1.0, lambda: self._tests.ended)
            return Verdict(f"the tests {_end(self._tests, self._limits)}", False)
        if reason == "ended":
            self._wait(1.0, lambda: self._answer.ended)
            reason = _end(self._answer, self._limits)
        return Verdict(reason, changed)

    def _wait(self, seconds: float, until: Any) -> bool:
        """Read what they say until something is so; False if it is not in time."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for one in self._open:
                selector.register(one.told if isinstance(one, Jail) else self._pipe, 1, one)
            while not until():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in events:
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                        self._open.discard(key.data)
                if not selector.get_map() or (not events and time.monotonic() >= deadline):
                    return bool(until())
        return True

    def _read(self, one: object) -> bool:
        if isinstance(one, Jail):
            return one.read_status()
        piece = os.read(self._pipe, 65536)
        self._said += piece
        return bool(piece) and len(self._said) < _LONGEST_VERDICT


def _end(jail: Jail, limits: Limits) -> str:
    if not jail.ended:
        return "ended early"
    ended, code = ended_as(jail, limits)
    if ended == "signal":
        return f"signal {-code}"
    return ended if ended != "exit" else f"ended early with exit code {code}"
