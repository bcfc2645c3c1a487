"""Runs files of tests inside of the sandbox and prints what failed; `workspace.py` sends its text.

It imports nothing of this package: the sandbox has the standard library only.
"""

import ast
import contextlib
import io
import json
import signal
import sys
import traceback
import types
from typing import Any

_TEST_SECONDS = 2
_MOST_FAILURES = 2
_MOST_CHARACTERS = 160  # of a value


class TooLong(BaseException):
    """A test has had its time."""


def main(orders: str, mark: str) -> None:
    """Load files as modules, run their functions test_*, print failures and counts."""
    files: dict[str, str] = json.loads(orders)["files"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        said = run(files)
    sys.stdout.write(mark + said)
    sys.stdout.flush()


def run(files: dict[str, str]) -> str:
    """What happened, in a few lines."""
    signal.signal(signal.SIGALRM, _end)
    tests: list[tuple[str, Any]] = []
    for path in sorted(files, key=lambda name: name.startswith("test_")):
        name = path.removesuffix(".py")
        module = types.ModuleType(name)
        sys.modules[name] = module
        error = _tried(lambda path=path, m=module: exec(_compiled(files, path), m.__dict__))
        if error is not None:
            return f"{path} could not be loaded\n{_told(error, files)}"
        if path.startswith("test_"):
            tests += [(n, f) for n, f in module.__dict__.items() if n.startswith("test_")]
    failed = [error for _, test in tests if (error := _tried(test)) is not None]
    if not failed:
        return f"all {len(tests)} tests passed" if len(tests) != 1 else "the test passed"
    told = [_told(error, files) for error in failed[:_MOST_FAILURES]]
    return "\n".join([*told, f"{len(failed)} of {len(tests)} tests failed"])


def _compiled(files: dict[str, str], path: str) -> types.CodeType:
    return compile(files[path], path, "exec", dont_inherit=True)


def _end(*_: Any) -> None:
    raise TooLong(f"it ran for more than {_TEST_SECONDS} s")


def _tried(act: Any) -> BaseException | None:
    signal.setitimer(signal.ITIMER_REAL, _TEST_SECONDS)
    try:
        act()
    except BaseException as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _told(error: BaseException, files: dict[str, str]) -> str:
    """The place of a failure, its line, and the value or the error that there was."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    steps = list(traceback.walk_tb(error.__traceback__))
    places = [(f, n) for f, n in steps if f.f_code.co_filename in files]
    if not places:
        return _named(error)
    frame, number = places[0]
    path = frame.f_code.co_filename
    line = files[path].split("\n")[number - 1].strip()
    lines = [f"{path}, line {number}: {line}"]
    if type(error) is AssertionError and len(places) == 1:
        return "\n".join(lines + _value(line, frame))
    inner, at = places[-1]
    if len(places) > 1:
        where = inner.f_code.co_filename
        lines.append(f"{where}, line {at}: {files[where].split(chr(10))[at - 1].strip()}")
    return "\n".join([*lines, _named(error)])


def _named(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:_MOST_CHARACTERS]


def _value(line: str, frame: Any) -> list[str]:
    """What the left side of a failed comparison is."""
    try:
        test = ast.parse(line).body[0].test  # type: ignore[attr-defined]
        asked = test.left if isinstance(test, ast.Compare) else test
        code = ast.unparse(asked)
        value = repr(eval(code, frame.f_globals, frame.f_locals))
    except BaseException:
        return []
    return [f"{code} is {value}"[: 2 * _MOST_CHARACTERS]]
