"""Runs tests against an answer, each in a sandbox of its own, so that it cannot deceive them.

The answer's process gets its program and, call by call, arguments; it sends values. The tests'
process has the tests and what they expect; what comes from the answer is plain data there, made of
exact builtin types (`typed_json.py`). Each has namespaces of its own and they share one socket, so
an answer can neither read nor change, signal or replace its judge, and the verdict arrives over a
pipe that the answer never had. An answer can only return values.
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
    """An answer and its tests."""

    program: str
    """The text with the answer in it."""
    reference: str
    """The text with the right answer: other names that the tests use come from here."""
    answered: tuple[str, ...]
    """Names of the program that the tests must have from the answer, not from the reference."""
    given: tuple[str, ...]
    """Classes of the program that have nothing of the answer in them: their instances can be sent
    to it as arguments."""
    test: str
    entry_point: str
    calls_check: bool
    """True if the tests are in `check(candidate)`, False if they run as a module."""
    in_place: bool = True
    """True if the tests see changes that a call makes to its arguments."""


class Verdict(NamedTuple):
    """The result of the tests."""

    reason: str
    """The reason of the failure, in one line; "" if they pass."""
    changed: bool
    """True if a call has changed its arguments."""

    @property
    def passed(self) -> bool:
        """True if all tests pass."""
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
                raise refusal(jail.event("failed") or "it did not start")
        if not started:
            raise refusal("it did not start in time")
        if not self._wait(self._limits.wall_seconds, lambda: self._pipe not in self._open):
            return Verdict("wall time", False)
        try:
            verdict = json.loads(self._said)
            reason, changed = str(verdict["reason"]), bool(verdict["changed"])
        except ValueError:  # the tests' process has ended without one
            self._wait(1.0, lambda: self._tests.ended)
            return Verdict(f"the tests {_end(self._tests, self._limits)}", False)
        if reason == "ended":
            self._wait(1.0, lambda: self._answer.ended)
            reason = _end(self._answer, self._limits)
        return Verdict(reason, changed)

    def _wait(self, seconds: float, until: Any) -> bool:
        """Read events of both processes until `until()` is true; False after `seconds`."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for one in self._open:
                selector.register(one.status_pipe if isinstance(one, Jail) else self._pipe, 1, one)
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
