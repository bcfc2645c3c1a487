"""The program that runs an exercise's tests in the sandbox; `running` sends its text there.

Each test runs in a forked process of its own, so that tests cannot affect each other. This file
imports nothing from the package: the sandbox has the standard library only.
"""

import ast
import contextlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

TEST_SECONDS = 2  # of processor time; the sandbox ends programs that only wait


def main(orders: dict[str, Any], mark: str) -> None:
    """Print each test's result: "" if it passed, else the reason.

    If all pass, everything runs again with another hash seed: results must not depend on it.
    """
    said = run(orders)
    if os.environ.get("PYTHONHASHSEED") == "0":
        if not any(said):
            environment = {**os.environ, "PYTHONHASHSEED": "1"}
            os.execve(sys.executable, sys.orig_argv, environment)
    else:
        said = [reason and f"{reason} (with other hashes of strings)" for reason in said]
    sys.stdout.write(mark + json.dumps(said))


def run(orders: dict[str, Any]) -> list[str]:
    """Return each test's result: "" if it passed, else the reason."""
    load(orders["pytest"], "pytest")
    if orders["shape"] == "tests":
        said = [apart(check_test_file, orders, text) for text in orders["modules"]]
        return [said[0], *("" if reason else "the tests pass it" for reason in said[1:])]
    check = check_script if orders["shape"] == "script" else check_case
    return [apart(check, orders["solution"], test) for test in orders["tests"]]


def apart(check: Callable[..., str], *arguments: Any) -> str:
    """Call a function in a child process and return its result."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        signal.setitimer(signal.ITIMER_PROF, TEST_SECONDS)
        try:
            said = check(*arguments)
        except BaseException as error:
            said = told(error)
        os.write(send, json.dumps(said[:2000]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return str(json.loads(text))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return f"it ran for more than {TEST_SECONDS} s"
    return f"its process ended with status {status}"


def told(error: BaseException) -> str:
    """An exception as text, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename.startswith("<")]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def load(text: str, name: str) -> dict[str, Any]:
    """Run a program as a module of this name and return its namespace."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    exec(compile(text, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


# --------------------------------------------------------------------------------------------------
# One test


def check_case(solution: str, test: dict[str, Any]) -> str:
    """Run the statements, then check an expression's value or the error that code raises."""
    with quiet():
        names = load(solution, "solution")
        exec("\n".join(test["before"]), names)
        if test["raises"] is not None:
            wanted = eval(test["raises"], names)
            try:
                exec(test["code"], names)
            except wanted:
                return ""
            return f"{test['code']} does not raise {test['raises']}"
        value = eval(test["code"], names)
    expected = ast.literal_eval(test["expected"])
    if same(value, expected):
        return ""
    return f"{test['code']} gave {value!r}, not {expected!r}"


def same(value: Any, expected: Any) -> bool:
    """True if equal in value and exact type, recursively; floats within 1e-9."""
    if type(value) is not type(expected):
        return False
    if isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, dict):
        kinds = {key: type(key) for key in expected}
        return value.keys() == expected.keys() and all(
            type(key) is kinds[key] and same(value[key], expected[key]) for key in value
        )
    if isinstance(expected, set):
        return value == expected and sorted(map(typed, value)) == sorted(map(typed, expected))
    return bool(value == expected)


def typed(value: Any) -> tuple[str, str]:
    """A sort key for members of a set that distinguishes 1 from True."""
    return type(value).__name__, repr(value)


def check_script(solution: str, test: dict[str, Any]) -> str:
    """Run a script as the main program with its input, arguments and files."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, text in test["files"].items():
            os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
            with open(name, "w", encoding="utf-8", newline="") as file:
                file.write(text)
        printed, errors, code = run_script(solution, test)
        os.chdir("/")
    if printed != test["stdout"]:
        return f"it printed {printed!r}, not {test['stdout']!r} {errors[-300:]}"
    if code != test["exit"]:
        return f"it ended with {code}, not {test['exit']} {errors[-300:]}"
    return ""


def run_script(text: str, test: dict[str, Any]) -> tuple[str, str, int]:
    """Return a script's stdout, stderr and exit code."""
    sys.argv = ["script.py", *test["args"]]
    sys.stdin = io.TextIOWrapper(io.BytesIO(test["stdin"].encode()), encoding="utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    errors = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            load(text, "__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        except Exception as error:
            code = 1
            print(told(error), file=sys.stderr)
    assert isinstance(output.buffer, io.BytesIO)
    return output.buffer.getvalue().decode(), errors.getvalue(), code


def check_test_file(orders: dict[str, Any], subject: str) -> str:
    """Run all test functions of a file against one version of its subject."""
    with quiet():
        load(subject, "subject")
        names = load(orders["solution"], "test_subject")
        for name, function in list(names.items()):
            if name.startswith("test_"):
                for arguments in getattr(function, "cases", [{}]):
                    try:
                        function(**arguments)
                    except BaseException as error:
                        return f"{name}: {told(error)}"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard output of the tested program, so that it cannot mix with the harness's own."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
