"""The inside of the sandbox: builds the walls around itself, then becomes the program.

Not imported: `sandbox.py` hands this text to a bare interpreter, so it needs the standard library
only and no file that an unprivileged user might not read. Orders come as JSON on stdin; what
happens is told as lines of JSON on the status pipe: {"ready": pid}, then {"exit": code}, or
{"failed": reason} when a wall could not be built, in which case the program is never run.

Three processes: the first enters the namespaces, the second is process 1 of them (when it ends,
the kernel ends all others in there), the third becomes the program.
"""

import ctypes
import json
import os
import resource
import signal
import sys
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
    """Call into libc; OSError says which step failed and why."""
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

    Root must become somebody else inside, because limits on processes do not hold for it and
    because it owns the machine's files. Returns whether that is still to be done.
    """
    user, group = os.geteuid(), os.getegid()
    become_nobody = user == 0 and maps(NOBODY, "uid") and maps(NOBODY, "gid")
    if become_nobody:
        # Only a process that stays outside may map more than its own id.
        go, told = os.pipe()
        helper = os.fork()
        if not helper:
            os.close(told)  # else it would wait for itself where nothing is ever written
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
    """Whether an id exists in the user namespace we start in."""
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
    for path in orders["visible"]:
        os.makedirs(root + path, exist_ok=True)
        mount(path, root + path, None, MS_BIND | MS_REC)
        seal(root + path, AT_RECURSIVE)
    for path, target in orders["links"]:
        os.symlink(target, root + path)
    os.mkdir(root + "/dev")
    for name in ("null", "zero", "full", "random", "urandom"):
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    os.mkdir(root + "/tmp")
    size = orders["limits"]["disk_bytes"]
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("tmpfs", root + "/tmp", "tmpfs", flags, f"mode=1777,size={size},nr_inodes=1k")
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
    call("dying with the parent", libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


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


def run_program(orders: dict[str, Any], status: int, become_nobody: bool) -> NoReturn:
    """Become the program."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if orders["isolate"]:
        # Ours count too: process 1, and the first one where it is the same user.
        limit(orders["limits"], orders["limits"]["processes"] + 1 + (not become_nobody))
        filter_calls(bytes.fromhex(orders["filter"]))
    else:
        limit(orders["limits"], None)  # a user's limit would count all of his processes
    tell(status, ready=os.getpid())
    python = orders["python"]
    os.execve(python, [python, *orders["arguments"], "program.py"], orders["environment"])


def guard_program(orders: dict[str, Any], status: int, become_nobody: bool) -> None:
    """Process 1: build the walls, start the program, wait for it, tell how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored from inside, as for every process 1
    call("dying with the parent", libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if orders["isolate"]:
        build_root(orders)
    os.chdir("/tmp" if orders["isolate"] else orders["folder"])
    with open("program.py", "w", encoding="utf-8") as file:
        file.write(orders["program"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    if orders["isolate"]:
        drop_privileges(become_nobody)
    program = os.fork()
    if not program:
        try:
            run_program(orders, status, become_nobody)
        except OSError as error:
            tell(status, failed=error.strerror)
            os._exit(1)
    while True:  # orphans of the program become our children
        process, ended = os.wait()
        if process == program:
            tell(status, exit=os.waitstatus_to_exitcode(ended))
            return


def tell(status: int, **what: Any) -> None:
    os.write(status, (json.dumps(what) + "\n").encode())


def main() -> None:
    """Read the orders and carry them out."""
    os.umask(0o022)
    status = int(sys.argv[1])
    os.set_inheritable(status, False)
    become_nobody = False
    try:
        orders = json.load(sys.stdin)
        call("dying with the parent", libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if orders["isolate"]:
            become_nobody = enter_namespaces()
        guard = os.fork()
        if guard:
            os.waitpid(guard, 0)
        else:
            guard_program(orders, status, become_nobody)
    except OSError as error:
        tell(status, failed=error.strerror or str(error))
    os._exit(0)


if __name__ == "__main__":
    main()
