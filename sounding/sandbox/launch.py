"""Starts jails: keeps a bare interpreter ready that forks them, and watches each of them.

What runs inside is `jail.py`. The interpreter is started once per process and dies with it.
"""

import atexit
import contextlib
import functools
import json
import os
import platform
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sounding.sandbox import seccomp

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
BARE = ("-s", "-S", "-B", "-P")  # no site packages, no bytecode files, no folder of the program
SETUP_SECONDS = 60.0  # for a busy machine to build the walls; not counted as the program's time
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_INSIDE = (
    "typed_json",
    "answer_process",
    "test_process",
)  # in the order of their imports


class NoIsolation(OSError):
    """A wall of the sandbox cannot be built here, so nothing was run."""


def refusal(reason: str) -> NoIsolation:
    """The error for a program that is not run, with the way out."""
    return NoIsolation(
        f"generated code cannot be isolated on this machine ({reason}), so it is not run; the "
        "sandbox needs Linux 5.14 that lets this user make user namespaces. Where the machine is "
        "itself disposable, --unsafe-no-isolation runs the code without walls"
    )


def orders_for(limits: dict[str, Any], folder: str, *, isolate: bool, runs_others: bool) -> Any:
    """The orders of a jail, except for the program. Raises NoIsolation on other platforms.

    `folder` is empty and the jail's own; `runs_others`: it may become another executable.
    """
    orders = {
        "folder": folder,
        "isolate": isolate,
        "limits": limits,
        "python": interpreter(),
        "arguments": BARE,
        "environment": ENVIRONMENT if isolate else {**ENVIRONMENT, "HOME": folder},
    }
    if isolate:
        if sys.platform != "linux" or not seccomp.supported():
            raise refusal(f"there is none for {sys.platform} on {platform.machine()}")
        visible, links, hidden = _visible()
        orders |= {"visible": visible, "links": links, "hidden": hidden}
        orders["filter"] = seccomp.build_filter(runs_others=runs_others).hex()
        orders["pivot_root"] = _PIVOT_ROOT[platform.machine()]
    return orders


class Jail:
    """A program in a jail: its status events, and its end."""

    def __init__(self, orders: dict[str, Any], files: Sequence[int]) -> None:
        """`files` become its stdout and stderr, and the channel of a side of a trial."""
        self.started = self.ended = 0.0
        self._status = bytearray()
        self.status_pipe, tell = os.pipe()
        lifeline, self._lifeline = os.pipe()
        written = os.memfd_create("orders")
        try:
            with open(written, "w", encoding="utf-8", closefd=False) as file:
                json.dump(orders, file)
            os.lseek(written, 0, os.SEEK_SET)
            _nursery().fork([written, tell, lifeline, *files])
        except BaseException:
            self.end()
            raise
        finally:
            for one in (written, tell, lifeline):
                os.close(one)

    def read_status(self) -> bool:
        """Read status events, when `status_pipe` is readable; False at the end of the pipe."""
        piece = os.read(self.status_pipe, 65536)
        self._status += piece
        now = time.monotonic()
        if not self.started and self.event("ready") is not None:
            self.started = now
        if not self.ended and self.event("exit") is not None:
            self.ended = now
        return bool(piece)

    def event(self, name: str) -> Any:
        """Return the value of the jail's status event `name`, or None."""
        for line in bytes(self._status).split(b"\n")[:-1]:
            status = json.loads(line)
            if name in status:
                return status[name]
        return None

    def end(self) -> None:
        """End every process in it; safe to call twice."""
        if self._lifeline >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, b".")  # closing is not enough if we were forked meanwhile
        for file in (self._lifeline, self.status_pipe):
            if file >= 0:
                os.close(file)
        self._lifeline = self.status_pipe = -1


# --------------------------------------------------------------------------------------------------
# The interpreter


class _Nursery:
    """A bare interpreter that forks jails on request."""

    def __init__(self) -> None:
        self._control, other = socket.socketpair()
        self._lock = threading.Lock()
        self._owner = os.getpid()
        folder = Path(__file__).parent
        texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in _INSIDE}
        with other:
            self._process = subprocess.Popen(
                # The text and not the file, which another user might not be allowed to read.
                [interpreter(), *BARE, "-c", _jail_source(), str(other.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:
            stream.write(json.dumps({f"{__package__}.{n}": t for n, t in texts.items()}).encode())

    def fork(self, files: list[int]) -> None:
        """Start a jail with these files. Raises OSError where the interpreter has ended."""
        with self._lock:
            socket.send_fds(self._control, [b"."], files)

    def alive(self) -> bool:
        """True if the interpreter can fork jails."""
        return self._owner == os.getpid() and self._process.poll() is None

    def end(self) -> None:
        """Close the connection, and wait for the interpreter's end."""
        self._control.close()
        if self._owner == os.getpid():
            self._process.wait()


_started: list[_Nursery] = []
_starting = threading.Lock()


def _nursery() -> _Nursery:
    with _starting:
        if not _started or not _started[0].alive():
            _end_nursery()
            _started.append(_Nursery())
        return _started[0]


@atexit.register
def _end_nursery() -> None:
    while _started:
        _started.pop().end()


@functools.cache
def _jail_source() -> str:
    return Path(__file__).with_name("jail.py").read_text(encoding="utf-8")


@functools.cache
def interpreter() -> str:
    """The interpreter behind a virtual environment: it must start without that."""
    return str(Path(sys.executable).resolve())


# --------------------------------------------------------------------------------------------------
# Files visible to a program

_LOADS = """
import importlib, pathlib, sys
for file in pathlib.Path(sys.argv[1]).glob("lib-dynload/*.so"):
    name = file.name.partition(".")[0]
    if not name.startswith(("_test", "_ctypes_test", "xx", "_xx", "_tkinter")):
        try:
            importlib.import_module(name)
        except ImportError:
            pass
print(open("/proc/self/maps").read())
"""


@functools.cache
def _visible() -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Paths a bare interpreter needs, top-level symbolic links to them, and folders to cover.

    Of an interpreter outside of the system's folders these are its executable, its standard library
    without what is installed beside it, and the shared libraries that it loads.
    """
    system = [Path(name) for name in ("/usr", "/bin", "/lib", "/lib64") if Path(name).exists()]
    links = [(str(path), os.readlink(path)) for path in system if path.is_symlink()]
    wanted = [path for path in system if not path.is_symlink()]
    # Of the interpreter itself: a virtual environment has a folder of that name without a library.
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    names = ("stdlib", "platstdlib")
    library = {Path(sysconfig.get_path(name, vars=base)).resolve() for name in names}
    for path in [*sorted(library), Path(interpreter()), *_loaded(max(library))]:
        if not any(path.is_relative_to(other) for other in wanted):
            wanted.append(path)
    hidden = [
        folder / name
        for folder in sorted(library)
        for name in ("site-packages", "dist-packages")
        if (folder / name).is_dir()
    ]
    return [str(path) for path in wanted], links, [str(path) for path in hidden]


def _loaded(library: Path) -> list[Path]:
    """The shared libraries of the interpreter and its extension modules."""
    done = subprocess.run(
        [interpreter(), *BARE, "-c", _LOADS, str(library)],
        env=ENVIRONMENT, cwd="/", text=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    found = re.findall(r" (/\S.*\.so\S*)$", done.stdout, re.MULTILINE)
    return [Path(name) for name in sorted(set(found)) if Path(name).is_file()]
