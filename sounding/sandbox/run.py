"""Run an untrusted Python program, and return how it ended.

**What it stops.** Each program runs in processes, user, mount, network, IPC, host-name and cgroup
namespaces of its own, as user nobody, without capabilities and without a way to get any:

- *files*: it sees the system's folders /usr, /bin and /lib, the interpreter with its standard
  library, all read-only, five devices and an empty /tmp of bounded size that is gone afterwards; no
  home, no /etc, no /proc, no package installed beside the standard library, no other file;
- *network*: there is none, not even a loopback that is up; sockets other than Unix ones are
  refused (a machine's virtual sockets know no network namespace);
- *processes*: it sees and can signal only its own, of which there is a bounded number; all of them
  die with it, daemons and orphans included, and it dies with us;
- *resources*: CPU time and address space per process, wall time, size of files, their sum, their
  number, open files, output; kernel memory that these limits miss (memfd, System V) is refused;
- *environment*: four harmless variables, an empty stdin, no inherited file descriptor;
- *the kernel*: tracing, mounts, nested namespaces, BPF, io_uring, keys and the like are filtered.

**What it does not stop.** A vulnerability of the kernel or of the processor. Memory as a sum
where no memory cgroup may be made: then it is bounded by `processes` times `memory_bytes`, plus
`disk_bytes`. Slowing the machine down within the limits. Reading what is under /usr, clocks, the
kernel's version. A program that reports its own success: `trial.py` judges an answer
from another process. The sandbox is for faulty or malicious code of a model, not for a determined
attacker with a new exploit; for that use a virtual machine.

It needs Linux 5.14 on x86-64 or ARM64 that lets this user make namespaces; where that is missing it
refuses to run (`NoIsolation`). With `isolate=False` only CPU time, address space, file size, open
files, output, wall time and the environment are bounded: files and network are open, the number of
processes is not bounded, and a process that leaves its group survives. That is for machines that
are themselves a sandbox.
"""

import functools
import os
import selectors
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from typing import Literal

from sounding.sandbox.launch import SETUP_SECONDS, Jail, orders_for, refusal
from sounding.sandbox.launch import NoIsolation as NoIsolation  # callers catch it from here

Ended = Literal["exit", "signal", "cpu time", "wall time", "output"]

_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one program. Raises ValueError for limits too low for any program."""

    wall_seconds: float = 10.0
    """From the start of the program; setting up the sandbox is not counted."""
    cpu_seconds: int = 8
    """Per process."""
    memory_bytes: int = 512 * _MEBIBYTE
    """Address space, per process."""
    total_bytes: int = 1024 * _MEBIBYTE
    """Memory and files of all processes together, where a memory cgroup may be made."""
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
        least = {"memory_bytes": 64 * _MEBIBYTE, "total_bytes": 64 * _MEBIBYTE, "open_files": 16}
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
    """Exit status; the negative number of a signal; -9 if one of our limits ended it."""
    stdout: str
    stderr: str
    """Output up to the limit; bytes that are no UTF-8 become U+FFFD."""
    seconds: float
    """Wall time from the program's start to its end."""

    @property
    def ok(self) -> bool:
        """True if the program exited with status 0."""
        return self.ended == "exit" and self.code == 0


def run_python(program: str, limits: Limits | None = None, *, isolate: bool = True) -> Outcome:
    """Run the text of a program in a fresh sandbox with the standard library only.

    Safe to call from several threads. Raises NoIsolation where a wall cannot be built (see the
    module), ValueError for text that has no UTF-8 form.
    """
    limits = limits or Limits()
    program.encode()
    with tempfile.TemporaryDirectory(prefix="sounding-", ignore_cleanup_errors=True) as folder:
        orders = orders_for(asdict(limits), folder, isolate=isolate, runs_others=True)
        return _Run({**orders, "program": program}, limits).outcome()


@functools.cache
def require_isolation() -> None:
    """Raise NoIsolation, with the reason and the way out, unless programs can be isolated here."""
    run_python("", Limits(wall_seconds=SETUP_SECONDS))


def ended_as(jail: Jail, limits: Limits) -> tuple[Ended, int]:
    """Return how a program ended, and its exit code or the negative number of a signal."""
    code: int | None = jail.event("exit")
    if code is None:  # the process that reports it was killed too
        code = -signal.SIGKILL
    # Past the soft limit comes SIGXCPU, which can be caught; past the hard one SIGKILL.
    killed = code == -signal.SIGKILL and jail.ended - jail.started > limits.cpu_seconds
    if code == -signal.SIGXCPU or killed:
        return "cpu time", code
    return ("exit" if code >= 0 else "signal"), code


class _Run:
    """One program: watches time and output, ends it."""

    def __init__(self, orders: dict[str, object], limits: Limits) -> None:
        self._limits = limits
        self._output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._files: dict[str, int] = {}
        theirs = []
        try:
            for name in self._output:
                self._files[name], write = os.pipe()
                theirs.append(write)
            self._jail = Jail(orders, theirs)
        except BaseException:
            self._close()
            raise
        finally:
            for file in theirs:
                os.close(file)

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)

    def outcome(self) -> Outcome:
        """Watch until the end."""
        try:
            limit = self._watch()
        finally:
            self._jail.end()
            self._close()
        stdout, stderr = (
            bytes(self._output[name][: self._limits.output_bytes]).decode("utf-8", "replace")
            for name in ("stdout", "stderr")
        )
        seconds = (self._jail.ended or time.monotonic()) - self._jail.started
        if limit is not None:
            return Outcome(limit, -signal.SIGKILL, stdout, stderr, seconds)
        if not self._jail.started:
            raise refusal(self._jail.event("failed") or stderr.strip()[-300:])
        return Outcome(*ended_as(self._jail, self._limits), stdout, stderr, seconds)

    def _watch(self) -> Ended | None:
        """Read all output until the program has ended; return the limit it exceeded, if any."""
        jail, deadline = self._jail, time.monotonic() + SETUP_SECONDS
        with selectors.DefaultSelector() as selector:
            for name, file in self._files.items():
                selector.register(file, selectors.EVENT_READ, self._output[name])
            selector.register(jail.status_pipe, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    if key.data is None:
                        goes_on = jail.read_status()
                    else:
                        goes_on = bool(piece := os.read(key.fd, 65536))
                        key.data.extend(piece)
                    if not goes_on:
                        selector.unregister(key.fileobj)
                if sum(map(len, self._output.values())) > self._limits.output_bytes:
                    return "output"
                if jail.ended:
                    # Its last words are in the pipes; a process that outlives it is not waited for.
                    deadline = min(deadline, jail.ended + 1.0)
                elif jail.started:
                    deadline = jail.started + self._limits.wall_seconds
                if time.monotonic() >= deadline:
                    if jail.ended or not jail.started:
                        return None
                    return "wall time"
        return None
