"""Runs a Python program nobody has read, and says how it ended.

**What it stops.** Each program runs in processes, user, mount, network, IPC, host-name and cgroup
namespaces of its own, as nobody, without capabilities and without a way to get any:

- *files*: it sees the interpreter and the system's libraries, read-only, five devices and an empty
  /tmp of bounded size that is gone afterwards; no home, no /etc, no /proc, no other file;
- *network*: there is none, not even a loopback that is up; sockets other than Unix ones are
  refused (a machine's virtual sockets know no network namespace);
- *processes*: it sees and can signal only its own, of which there is a bounded number; all of them
  die with it, daemons and orphans included, and it dies with us;
- *resources*: CPU time and address space per process, wall time, size of files, their sum, their
  number, open files, output; kernel memory that these limits miss (memfd, System V) is refused;
- *environment*: four harmless variables, an empty stdin, no inherited file descriptor;
- *the kernel*: tracing, mounts, nested namespaces, BPF, io_uring, keys and the like are filtered.

**What it does not stop.** A hole in the kernel, or in what the processor keeps secret. Memory as a
sum: it is bounded only by `processes` times `memory_bytes`, plus `disk_bytes`. Slowing the machine
down within the limits. Reading what is under /usr, clocks, the kernel's version. A program that
wants to deceive its grader: tests run in the same interpreter as what they test. It is a wall for
code that a model wrote by mistake or mischief, not for a determined attacker with a fresh exploit;
for that use a virtual machine.

It needs Linux 5.14 on x86-64 or ARM64 that lets this user make namespaces; where that is missing it
refuses to run (`NoIsolation`). With `isolate=False` only CPU time, address space, file size, open
files, output, wall time and the environment are bounded: files and network are open, the number of
processes is not bounded, and a process that leaves its group survives. That is for machines that
are themselves a sandbox.
"""

import contextlib
import functools
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sounding.sandbox import seccomp

Ended = Literal["exit", "signal", "cpu time", "wall time", "output"]

_SETUP_SECONDS = 60.0  # for a busy machine to build the walls; not counted as the program's time
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
_BARE = ("-s", "-S", "-B", "-P")  # no site packages, no bytecode files, no folder of the program
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MEBIBYTE = 2**20


class NoIsolation(OSError):
    """A wall of the sandbox cannot be built here, so nothing was run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use. Raises ValueError for what no program could live with."""

    wall_seconds: float = 10.0
    """From the start of the program; building the walls is not counted."""
    cpu_seconds: int = 8
    """Per process."""
    memory_bytes: int = 512 * _MEBIBYTE
    """Address space, per process."""
    processes: int = 8
    """Processes and threads at once."""
    file_bytes: int = 16 * _MEBIBYTE
    """The largest file."""
    disk_bytes: int = 32 * _MEBIBYTE
    """All files together."""
    output_bytes: int = 256 * 1024
    """stdout and stderr together; the program is ended when it writes more."""
    open_files: int = 64
    """Per process."""

    def __post_init__(self) -> None:
        least = {"memory_bytes": 64 * _MEBIBYTE, "open_files": 16}
        for field in fields(self):
            value, minimum = getattr(self, field.name), least.get(field.name, 0)
            if not minimum <= value < float("inf") or not value:
                rule = f"at least {minimum}" if minimum else "above 0, and finite"
                raise ValueError(f"{field.name} = {value} must be {rule}")


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    ended: Ended
    """"exit" by itself, "signal" killed by one, or the limit that ended it."""
    code: int
    """Exit status; the negative number of a signal; -9 where a limit of ours ended it."""
    stdout: str
    stderr: str
    """Output up to the limit; bytes that are no UTF-8 become U+FFFD."""
    seconds: float
    """Wall time from the program's start to its end."""

    @property
    def ok(self) -> bool:
        """Whether the program came to its end and reported success."""
        return self.ended == "exit" and self.code == 0


def run_python(program: str, limits: Limits | None = None, *, isolate: bool = True) -> Outcome:
    """Run the text of a program in a fresh sandbox with the standard library only.

    Safe to call from several threads. Raises NoIsolation where a wall cannot be built (see the
    module), ValueError for text that has no UTF-8 form.
    """
    if isolate:
        _require_platform()
    limits = limits or Limits()
    program.encode()
    with tempfile.TemporaryDirectory(prefix="sounding-", ignore_cleanup_errors=True) as folder:
        orders = {
            "program": program,
            "folder": folder,
            "isolate": isolate,
            "limits": asdict(limits),
            "python": _interpreter(),
            "arguments": _BARE,
            "environment": _ENVIRONMENT if isolate else {**_ENVIRONMENT, "HOME": folder},
        }
        if isolate:
            visible, links = _visible()
            orders |= {"visible": visible, "links": links}
            orders["filter"] = seccomp.build_filter().hex()
            orders["pivot_root"] = _PIVOT_ROOT[platform.machine()]
        return _Run(orders, limits).outcome()


@functools.cache
def require_isolation() -> None:
    """Raise NoIsolation, with the reason and the way out, unless programs can be isolated here."""
    run_python("", Limits(wall_seconds=_SETUP_SECONDS))


def _require_platform() -> None:
    if sys.platform != "linux" or not seccomp.supported():
        raise NoIsolation(_refusal(f"there is none for {sys.platform} on {platform.machine()}"))


def _refusal(reason: str) -> str:
    return (
        f"generated code cannot be isolated on this machine ({reason}), so it is not run; the "
        "sandbox needs Linux 5.14 that lets this user make user namespaces. Where the machine is "
        "itself disposable, --unsafe-no-isolation runs the code without walls"
    )


@functools.cache
def _interpreter() -> str:
    """The interpreter behind a virtual environment: it must start without that."""
    return str(Path(sys.executable).resolve())


@functools.cache
def _visible() -> tuple[list[str], list[tuple[str, str]]]:
    """Directories a bare interpreter needs, and the top-level symbolic links to them."""
    system = [Path(name) for name in ("/usr", "/bin", "/lib", "/lib64") if Path(name).exists()]
    links = [(str(path), os.readlink(path)) for path in system if path.is_symlink()]
    prefixes = [Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve()]
    wanted = [path for path in system if not path.is_symlink()]
    for path in [*prefixes, Path(_interpreter()).parent]:
        if not any(path.is_relative_to(other) for other in wanted):
            wanted.append(path)
    return [str(path) for path in wanted], links


class _Run:
    """One program: feeds the jail its orders, watches time and output, ends it."""

    def __init__(self, orders: dict[str, Any], limits: Limits) -> None:
        self._limits = limits
        self._output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._status = bytearray()
        self._started = self._ended = 0.0
        self._program: int | None = None  # its process id, as it sees it itself
        told, tell = os.pipe()
        try:
            self._process = subprocess.Popen(
                # The text and not the file, which another user might not be allowed to read.
                [_interpreter(), "-I", "-S", "-B", "-c", _jail_source(), str(tell)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(tell,),
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tell)
        self._told = told
        self._isolated = bool(orders["isolate"])
        self._orders = json.dumps(orders).encode()

    def outcome(self) -> Outcome:
        """Watch until the end."""
        assert self._process.stdin is not None
        try:
            feeder = threading.Thread(target=self._feed, daemon=True)
            feeder.start()
            limit = self._watch()
        finally:
            self._kill()
            self._process.wait()
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                stream.close()
            os.close(self._told)
        feeder.join()
        stdout, stderr = (
            bytes(self._output[name][: self._limits.output_bytes]).decode("utf-8", "replace")
            for name in ("stdout", "stderr")
        )
        seconds = (self._ended or time.monotonic()) - self._started
        if limit is not None:
            return Outcome(limit, -signal.SIGKILL, stdout, stderr, seconds)
        code = self._told_value("exit")
        if code is None:
            raise NoIsolation(_refusal(self._told_value("failed") or stderr.strip()[-300:]))
        ended: Ended = "exit" if code >= 0 else "signal"
        # Past the soft limit comes SIGXCPU, which can be caught; past the hard one SIGKILL.
        if code == -signal.SIGXCPU or (
            code == -signal.SIGKILL and seconds > self._limits.cpu_seconds
        ):
            ended = "cpu time"
        return Outcome(ended, code, stdout, stderr, seconds)

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stream:
                view = memoryview(self._orders)
                while view:
                    view = view[stream.write(view) :]
        except BrokenPipeError:
            pass  # it failed before reading; the status says why

    def _watch(self) -> Ended | None:
        """Read everything until the program has ended; the limit of ours it broke, if any."""
        deadline = time.monotonic() + _SETUP_SECONDS
        with selectors.DefaultSelector() as selector:
            assert self._process.stdout is not None and self._process.stderr is not None
            selector.register(self._process.stdout, selectors.EVENT_READ, self._output["stdout"])
            selector.register(self._process.stderr, selectors.EVENT_READ, self._output["stderr"])
            selector.register(self._told, selectors.EVENT_READ, self._status)
            while selector.get_map():
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    piece = os.read(key.fd, 65536)
                    key.data.extend(piece)
                    if not piece:
                        selector.unregister(key.fileobj)
                if not self._started and self._told_value("ready") is not None:
                    self._started = time.monotonic()
                    deadline = self._started + self._limits.wall_seconds
                if sum(map(len, self._output.values())) > self._limits.output_bytes:
                    return "output"
                if not self._ended and self._told_value("exit") is not None:
                    self._ended = time.monotonic()
                    # Its last words are in the pipes; a process that outlives it is not waited for.
                    deadline = min(deadline, self._ended + 1.0)
                if time.monotonic() >= deadline:
                    if self._ended or not self._started:
                        return None
                    return "wall time"
        return None

    def _told_value(self, name: str) -> Any:
        """What the jail has said under this name, or None."""
        for line in bytes(self._status).split(b"\n")[:-1]:
            said = json.loads(line)
            if name in said:
                return said[name]
        return None

    def _kill(self) -> None:
        groups = [self._process.pid]
        if not self._isolated:  # the program has a group of its own, in our view of processes
            groups += filter(None, [self._told_value("ready")])
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@functools.cache
def _jail_source() -> str:
    return Path(__file__).with_name("jail.py").read_text(encoding="utf-8")
