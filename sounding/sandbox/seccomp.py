"""A system call filter for the sandbox: calls that a graded program does not need.

A deny list, because an interpreter and whatever it links use hundreds of calls. It closes ways
around the other walls (new namespaces, sockets outside of the network namespace, memory that no
limit counts) and the parts of the kernel with the most known vulnerabilities.
Source: Linux, Documentation/userspace-api/seccomp_filter.rst and the tables of system calls.
"""

import errno
import platform
import socket
import struct

_MACHINES = ("x86_64", "aarch64")
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # x86_64 numbers from here on are another ABI, with the same calls

# Numbers on x86_64 and aarch64.
_CALLS = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    # namespaces and mounts: a nested one would give back capabilities
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # memory and queues that RLIMIT_AS and RLIMIT_FSIZE do not count
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # kernel interfaces not needed here; io_uring would also open sockets past the filter
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_RUN_OTHERS = {"execve": (59, 221), "execveat": (322, 281)}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_NEW_NAMESPACES = 0x7E020080  # the CLONE_NEW* flags

# Classic BPF: operation codes, and offsets in struct seccomp_data.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # the argument's low half; both machines are little
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
    """True if this machine's system call numbers are known."""
    return platform.machine() in _MACHINES


def build_filter(machine: str | None = None, *, runs_others: bool = True) -> bytes:
    """The filter as an array of `struct sock_filter` for this machine (or the named one).

    Without `runs_others` a process cannot become another executable.
    Raises ValueError for a machine whose numbers are not in the table.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise ValueError(f"no system call table for {machine!r}; there is one for {_MACHINES}")
    column = _MACHINES.index(machine)
    code = [
        _instruction(_LOAD, _ARCH),
        _instruction(_IF_EQUAL, _ARCHITECTURE[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += _when(_IF_AT_LEAST, _X32, _KILL)
    for numbers in [*_CALLS.values(), *([] if runs_others else _RUN_OTHERS.values())]:
        code += _when(_IF_EQUAL, numbers[column], _ERRNO | errno.EPERM)
    # Its flags are behind a pointer, out of a filter's reach; libraries then fall back to clone.
    code += _when(_IF_EQUAL, _CLONE3[column], _ERRNO | errno.ENOSYS)
    code += [
        _instruction(_IF_EQUAL, _CLONE[column], 0, 4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        *_when(_IF_BITS, _NEW_NAMESPACES, _ERRNO | errno.EPERM),
        _instruction(_RETURN, _ALLOW),
        _instruction(_IF_EQUAL, _SOCKET[column], 0, 3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_IF_EQUAL, socket.AF_UNIX, 1, 0),
        _instruction(_RETURN, _ERRNO | errno.EACCES),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _when(condition: int, operand: int, result: int) -> list[bytes]:
    return [_instruction(condition, operand, 0, 1), _instruction(_RETURN, result)]


def _instruction(code: int, operand: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, operand)
