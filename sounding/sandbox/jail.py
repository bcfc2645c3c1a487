"""The inside of the sandbox: isolates itself, then becomes the program.

Not imported: `launch.py` passes this text to a bare interpreter, so it needs the standard library
only and no file that an unprivileged user might not read. That interpreter stays, never
sees a program, and forks a jail for each set of orders: it starts and imports once, which makes a
jail cheap. Orders arrive as JSON in a file; events are lines of JSON on the status pipe:
{"ready": pid}, then {"exit": code}, or {"failed": reason} if isolation failed, in which case the
program is never run.

A jail is three processes: the first enters the namespaces, the second is process 1 of them (when it
ends, the kernel ends all others in there), the third becomes the program, or one side of a trial
(`answer_process.py`, `test_process.py`). When the other side cuts the lifeline, the first ends them
all.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import types
from typing import Any, NoReturn

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
ATTR_READ_ONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH, MOUNT_SETATTR = -100, 0x8000, 2, 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
CAPABILITY_VERSION = 0x20080522
NOBODY = 65534

libc = ctypes.CDLL(None, use_errno=True)


def call(step: str, function: Any, *arguments: Any) -> None:
    """Call into libc; raises OSError with the failed step and the reason."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if function(*values) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")


def write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, f"writing {path}: {error.strerror}") from None


# --------------------------------------------------------------------------------------------------
# Namespaces


def enter_namespaces() -> bool:
    """New user, mount, process, network, IPC, host name and cgroup namespaces for our children.

    Root must become another user inside, because limits on processes do not hold for it and
    because it owns the machine's files. Returns True if that is still to be done.
    """
    user, group = os.geteuid(), os.getegid()
    become_nobody = user == 0 and maps(NOBODY, "uid") and maps(NOBODY, "gid")
    if become_nobody:
        # Only a process that stays outside may map more than its own id.
        go, told = os.pipe()
        helper = os.fork()
        if not helper:
            os.close(told)  # else the read below would never end if nothing is written
            ready = os.read(go, 1)
            mapping = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
            os._exit(map_ids(os.getppid(), mapping) if ready else 0)
        call("new namespaces", libc.unshare, NEW_NAMESPACES)
        os.write(told, b".")
        _, status = os.waitpid(helper, 0)
        if status:
            number = os.waitstatus_to_exitcode(status)
            raise OSError(number, f"mapping user ids: {os.strerror(abs(number))}")
        return True
    call("new namespaces", libc.unshare, NEW_NAMESPACES)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{NOBODY} {user} 1\n")
    write("/proc/self/gid_map", f"{NOBODY} {group} 1\n")
    return False


def maps(number: int, kind: str) -> bool:
    """True if an id exists in the user namespace we start in."""
    with open(f"/proc/self/{kind}_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= number < first + count for first, _, count in ranges)


def map_ids(process: int, mapping: str) -> int:
    try:
        write(f"/proc/{process}/uid_map", mapping)
        write(f"/proc/{process}/gid_map", mapping)
    except OSError as error:
        return error.errno or 1
    return 0


# --------------------------------------------------------------------------------------------------
# Files


def build_root(orders: dict[str, Any]) -> None:
    """A root of its own: the interpreter read-only, a few devices, an empty bounded /tmp."""
    root = orders["folder"]
    call("private mounts", libc.mount, None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m,nr_inodes=4k")
    os.mkdir(root + "/dev")
    for name in ("null", "zero", "full", "random", "urandom"):
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    os.mkdir(root + "/tmp")  # before what is visible, some of which may lie below it
    size = orders["limits"]["disk_bytes"]
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("tmpfs", root + "/tmp", "tmpfs", flags, f"mode=1777,size={size},nr_inodes=1k")
    for path in orders["visible"]:
        place = root + path
        if os.path.isdir(path):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(path, root + path, None, MS_BIND | MS_REC)
        seal(root + path, AT_RECURSIVE)
    for path in orders["hidden"]:
        mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=4k,nr_inodes=2")
        seal(root + path, 0)
    for path, target in orders["links"]:
        os.symlink(target, root + path)
    os.chdir(root)
    call("new root", libc.syscall, orders["pivot_root"], b".", b".")
    call("leaving the old root", libc.umount2, b".", MNT_DETACH)
    os.chdir("/")
    seal("/", 0)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    step = f"mounting {source} at {target}"
    kind_bytes = kind.encode() if kind else None
    call(step, libc.mount, source.encode(), target.encode(), kind_bytes, flags, options.encode())


def seal(path: str, flags: int) -> None:
    """Make a mount read-only, without devices or set-user-id programs."""
    attributes = (ctypes.c_uint64 * 4)(ATTR_READ_ONLY | ATTR_NOSUID | ATTR_NODEV)
    size = ctypes.sizeof(attributes)
    pointer = ctypes.byref(attributes)
    step = f"making {path} read-only"
    call(step, libc.syscall, MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, pointer, size)


# --------------------------------------------------------------------------------------------------
# Privileges and limits


def drop_privileges(become_nobody: bool) -> None:
    """No capability is left, nor a way to get one."""
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, ctypes.c_long(capability), 0, 0, 0) == 0:
        capability += 1
    if become_nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call("dropping capabilities", libc.capset, ctypes.byref(header), ctypes.byref(nothing))
    die_with_parent()  # changing the user has undone it


def limit(limits: dict[str, Any], processes: int | None) -> None:
    cpu = limits["cpu_seconds"]
    wanted = [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ]
    if processes is not None:
        wanted.append((resource.RLIMIT_NPROC, processes, processes))
    for which, soft, hard in wanted:
        _, ceiling = resource.getrlimit(which)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


# Folders of memory cgroups, and the file that bounds one: of version 1, of version 2 in our own
# place, and at the root, where alone processes may stand beside cgroups with limits.
def memory_cgroups() -> list[tuple[str, str]]:
    found = []
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if "memory" in controllers.split(","):
                found.append(("/sys/fs/cgroup/memory" + path, "memory.limit_in_bytes"))
            elif not controllers:
                found += [("/sys/fs/cgroup" + place, "memory.max") for place in (path, "")]
    return found


def bound_memory(size: int) -> None:
    """Enter a memory cgroup of our own, where one may be made: memory and files as a sum.

    Where none may be made, what a program can use is its number of processes times their limit.
    """
    for parent, limit_file in memory_cgroups():
        folder = cgroup_of(parent, os.getpid())
        try:
            os.mkdir(folder)
            write(f"{folder}/{limit_file}", str(size))
            write(f"{folder}/cgroup.procs", "0")
        except OSError:
            leave_no_cgroup(os.getpid())
        else:
            return


def leave_no_cgroup(process: int) -> None:
    """Remove the cgroup of a process that has ended."""
    for parent, _ in memory_cgroups():
        with contextlib.suppress(OSError):
            os.rmdir(cgroup_of(parent, process))


def clear_cgroups() -> None:
    """Remove those of processes whose keeper was killed before it could."""
    for parent, _ in memory_cgroups():
        with contextlib.suppress(OSError):
            for name in os.listdir(parent):
                process = name.removeprefix("sounding-")
                if process != name and not os.path.exists(f"/proc/{process}"):
                    os.rmdir(f"{parent}/{name}")


def cgroup_of(parent: str, process: int) -> str:
    return f"{parent.rstrip('/')}/sounding-{process}"


def filter_calls(code: bytes) -> None:
    """Install the system call filter, for this process and all it will start."""
    call("giving up new privileges", libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))

    program = Program(len(code) // 8, ctypes.addressof(buffer))
    call("filtering calls", libc.prctl, PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


# --------------------------------------------------------------------------------------------------
# The three processes


def run_program(orders: dict[str, Any], status: int, channel: int | None) -> NoReturn:
    """Become the program."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if orders["isolate"]:
        limit(orders["limits"], orders["processes"])
        filter_calls(bytes.fromhex(orders["filter"]))
    else:
        limit(orders["limits"], None)  # a user's limit would count all of his processes
    tell(status, ready=os.getpid())
    if channel is not None:
        os.dup2(channel, 3)
        os.closerange(4, 256)  # beyond the file descriptors of a jail
        sys.argv = ["program.py"]
        code = 1
        try:
            sys.modules[orders["role"]].main(orders, 3)
            code = 0
        finally:
            os._exit(code)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    python = orders["python"]
    os.execve(python, [python, *orders["arguments"], "program.py"], orders["environment"])


def start_program(orders: dict[str, Any], status: int, channel: int | None) -> int:
    """The process id of the program."""
    if channel is None:
        with open("program.py", "w", encoding="utf-8") as file:
            file.write(orders["program"])
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    program = os.fork()
    if not program:
        try:
            run_program(orders, status, channel)
        except OSError as error:
            tell(status, failed=error.strerror)
            os._exit(1)
    return program


def guard_program(
    orders: dict[str, Any], status: int, channel: int | None, become_nobody: bool
) -> NoReturn:
    """Process 1: build the walls, start the program, wait for it, tell how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored from inside, as for every process 1
    die_with_parent()
    build_root(orders)
    os.chdir("/tmp")
    drop_privileges(become_nobody)
    # Ours count too: process 1, and the first one where it is the same user.
    orders["processes"] = orders["limits"]["processes"] + 1 + (not become_nobody)
    program = start_program(orders, status, channel)
    while True:  # orphans of the program become our children
        process, ended = os.wait()
        if process == program:
            tell(status, exit=os.waitstatus_to_exitcode(ended))
            os._exit(0)


def attend(process: int, lifeline: int) -> bool:
    """Wait until a child ends, or its lifeline is cut; return True if it has ended."""
    ended = os.pidfd_open(process)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(lifeline, select.POLLIN)
    return ended in dict(waiting.poll())


def keep_jail(files: list[int]) -> None:
    """The first process: enter the namespaces, start process 1, stay until the end."""
    orders_file, status, lifeline, out, err, *rest = files
    channel = rest[0] if rest else None
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    with open(orders_file, encoding="utf-8") as file:
        orders = json.load(file)
    try:
        die_with_parent()
        bound_memory(orders["limits"]["total_bytes"])
        if orders["isolate"]:
            become_nobody = enter_namespaces()
            guard = os.fork()
            if not guard:
                guard_program(orders, status, channel, become_nobody)
            if not attend(guard, lifeline):
                os.kill(guard, signal.SIGKILL)
            os.waitpid(guard, 0)
            return
        os.chdir(orders["folder"])
        program = start_program(orders, status, channel)
        ended = attend(program, lifeline)
        if not ended:
            kill_group(program)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        tell(status, exit=code)
        os.closerange(0, lifeline)  # no reader may wait for our ends of its pipes
        os.closerange(lifeline + 1, 256)
        attend_nothing(lifeline)
        kill_group(program)  # processes it has left behind
    except OSError as error:
        tell(status, failed=error.strerror or str(error))


def attend_nothing(lifeline: int) -> None:
    """Wait until the lifeline is cut: something is written to it, or it is closed."""
    waiting = select.poll()
    waiting.register(lifeline, select.POLLIN)
    waiting.poll()


def kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def die_with_parent() -> None:
    call("dying with the parent", libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def tell(status: int, **what: Any) -> None:
    os.write(status, (json.dumps(what) + "\n").encode())


def reap(flags: int) -> None:
    """Reap the jails that have ended, and remove their cgroups."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitpid(-1, flags)[0]:
            leave_no_cgroup(ended)


def load_modules(sources: dict[str, str]) -> None:
    """Make modules importable whose files are not there."""
    for name, source in sources.items():
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(source, f"<{name}>", "exec"), module.__dict__)


def main() -> None:
    """Fork a jail for each message, which carries its files, until the other side hangs up."""
    os.umask(0o022)
    load_modules(json.load(sys.stdin))
    clear_cgroups()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            message, files, _, _ = socket.recv_fds(control, 1, 8)
            if not message:
                return reap(0)
            for file in files:
                os.set_inheritable(file, False)
            if not os.fork():
                control.close()
                try:
                    keep_jail(files)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                os._exit(0)
            for file in files:
                os.close(file)
            reap(os.WNOHANG)


if __name__ == "__main__":
    main()
