"""The sandbox survives hostile programs, and says how each of them ended."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sounding.sandbox import jail, launch, seccomp
from sounding.sandbox import run as sandbox
from sounding.sandbox.run import Limits, NoIsolation, Outcome, require_isolation, run_python


@pytest.fixture(scope="module")
def isolation() -> None:
    try:
        require_isolation()
    except NoIsolation as error:
        pytest.skip(str(error))


REPO = Path(sandbox.__file__).parents[2]

isolated = pytest.mark.usefixtures("isolation")


def run(program: str, *, isolate: bool = True, **limits: float) -> Outcome:
    return run_python(
        textwrap.dedent(program),
        Limits(**{"wall_seconds": 20.0, **limits}),  # type: ignore[arg-type]
        isolate=isolate,
    )


@pytest.fixture(params=[True, False], ids=["isolated", "unsafe"])
def isolate(request: pytest.FixtureRequest) -> Iterator[bool]:
    if request.param:
        request.getfixturevalue("isolation")
    yield request.param


def _stale_cgroups() -> list[Path]:
    """Of processes that are no more."""
    found = (p for parent, _ in jail.memory_cgroups() for p in Path(parent).glob("sounding-*"))
    return [path for path in found if not Path("/proc", path.name.rpartition("-")[2]).exists()]


def _makes_cgroups() -> bool:
    """As the jail does it."""
    for parent, limit in jail.memory_cgroups():
        place = Path(parent) / f"sounding-test-{os.getpid()}"
        try:
            place.mkdir()
        except OSError:
            continue
        try:
            (place / limit).write_text(str(2**30))
            return True
        except OSError:
            continue
        finally:
            place.rmdir()
    return False


def processes_named(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


# --------------------------------------------------------------------------------------------------
# With walls or without


def test_a_program_and_its_output(isolate: bool) -> None:
    done = run("import sys; print('é'); print('no', file=sys.stderr)", isolate=isolate)
    assert (done.ended, done.code, done.stdout, done.stderr) == ("exit", 0, "é\n", "no\n")
    assert done.ok


def test_a_failing_program(isolate: bool) -> None:
    done = run("raise SystemExit(3)", isolate=isolate)
    assert (done.ended, done.code, done.ok) == ("exit", 3, False)
    done = run("assert 1 == 2, 'wrong'", isolate=isolate)
    assert done.code == 1
    assert done.stderr.endswith("AssertionError: wrong\n")


def test_a_crash_is_a_signal(isolate: bool) -> None:
    done = run("import os; os.abort()", isolate=isolate)
    assert (done.ended, done.code) == ("signal", -6)


def test_a_program_that_sleeps_ends_at_the_wall_time_with_its_output(isolate: bool) -> None:
    done = run(
        "import time; print('zzz', flush=True); time.sleep(1e6)", isolate=isolate, wall_seconds=0.5
    )
    assert (done.ended, done.ok, done.stdout) == ("wall time", False, "zzz\n")


def test_computing_forever_even_when_the_warning_is_ignored(isolate: bool) -> None:
    endless = "while True: pass"
    if not isolate:
        assert run(endless, isolate=isolate, cpu_seconds=1).ended == "cpu time"
        return
    deaf = f"import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{endless}"
    assert run(deaf, isolate=isolate, cpu_seconds=1).ended == "cpu time"


def test_a_memory_hog(isolate: bool) -> None:
    done = run("hog = bytearray(1 << 31)", isolate=isolate)
    assert "MemoryError" in done.stderr
    assert not done.ok


def test_endless_output_ends_at_its_limit(isolate: bool) -> None:
    done = run("while True: print('x' * 1000)", isolate=isolate, output_bytes=10_000)
    assert done.ended == "output"
    assert len(done.stdout) == 10_000


def test_a_huge_file(isolate: bool) -> None:
    done = run(
        """
        with open('big', 'wb') as file:
            for _ in range(100):
                file.write(bytes(1 << 20))
        """,
        isolate=isolate,
    )
    assert not done.ok  # SIGXFSZ, whose default is to end the program


def test_deep_recursion_fails_as_an_ordinary_error(isolate: bool) -> None:
    done = run("def f(): f()\nf()", isolate=isolate)
    assert (done.code, "RecursionError" in done.stderr) == (1, True)
    deaf = "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()"
    assert not run(deaf, isolate=isolate, memory_bytes=96 * 2**20).ok


def test_the_environment_is_clean(isolate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    done = run("import os, sys; print(sorted(os.environ), os.environb, sys.argv)", isolate=isolate)
    assert "hunter2" not in done.stdout
    assert done.stdout.startswith("['HOME', 'LANG', 'PATH', 'PYTHONHASHSEED']")


def test_no_file_descriptor_is_inherited(isolate: bool) -> None:
    with open("/etc/hostname" if os.path.exists("/etc/hostname") else "/etc/passwd") as file:
        os.set_inheritable(file.fileno(), True)
        done = run(
            """
            import os
            for number in range(3, 64):
                try: os.fstat(number); print(number)
                except OSError: pass
            print(repr(open(0).read()))
            """,
            isolate=isolate,
        )
    assert done.stdout == "''\n"


def test_each_run_starts_in_an_empty_folder(isolate: bool) -> None:
    look = "import os; print(os.listdir()); open('left', 'w').close()"
    assert [run(look, isolate=isolate).stdout for _ in range(2)] == ["['program.py']\n"] * 2


def test_nothing_is_left_behind(
    isolate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run("open('a', 'w').write('b')", isolate=isolate)
    assert list(tmp_path.iterdir()) == []


def test_only_the_standard_library_is_there(isolate: bool) -> None:
    assert "ModuleNotFoundError" in run("import numpy", isolate=isolate).stderr
    assert "ModuleNotFoundError" in run("import sounding", isolate=isolate).stderr


def test_order_of_sets_is_reproducible(isolate: bool) -> None:
    look = "print({str(i) for i in range(20)})"
    assert run(look, isolate=isolate).stdout == run(look, isolate=isolate).stdout


# --------------------------------------------------------------------------------------------------
# What only the walls stop


@isolated
def test_a_fork_bomb_is_bounded_and_dies() -> None:
    done = run(
        """
        import os, time
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(1000)
                children += 1
        except BlockingIOError:
            print(children)
        """,
        processes=5,
    )
    assert done.stdout == "4\n"


@isolated
def test_daemons_die_with_the_program() -> None:
    mark = f"daemon{time.monotonic_ns()}"
    done = run(
        f"""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                sleep = 'import time; time.sleep(1e6)'
                os.execv(sys.executable, [sys.executable, '-c', sleep, '{mark}'])
            os._exit(0)
        os.wait()
        time.sleep(0.3)
        """
    )
    assert done.ok
    deadline = time.monotonic() + 10
    while processes_named(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_named(mark) == []


@isolated
def test_killing_parents_and_everybody() -> None:
    done = run(
        """
        import os, signal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            os.kill(os.getppid(), number)
        try: os.kill(-1, signal.SIGKILL)
        except ProcessLookupError: pass
        print(os.getppid(), 'alive')
        """
    )
    assert done.stdout == "1 alive\n"


@isolated
def test_loopback_is_refused() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
    assert "PermissionError" in done.stderr
    families = run(
        """
        import socket
        for family in range(1, 46):
            try: socket.socket(family, socket.SOCK_STREAM); print(family)
            except PermissionError: pass
        """
    )
    assert families.stdout == "1\n"  # Unix sockets; there is nobody to talk to but itself


@isolated
def test_no_file_outside_is_seen_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    done = run(
        f"""
        import os
        for path in ({str(secret)!r}, '/etc/passwd', '/proc/self/environ', '/proc/1/mem'):
            try: open(path).read(); print('read', path)
            except FileNotFoundError: pass
        for path in ('/x', '/usr/x', '/dev/x', '/lib/x', '/tmp/../x', os.__file__, '/usr/bin/env'):
            try: open(path, 'a'); print('wrote', path)
            except OSError: pass
        """
    )
    assert (done.stdout, done.stderr) == ("", "")


@isolated
def test_all_files_together_are_bounded() -> None:
    done = run(
        """
        import os
        written = 0
        try:
            for number in range(100):
                with open(str(number), 'wb') as file:
                    written += file.write(bytes(1 << 20))
        except OSError as error:
            print(error.errno, written >> 20)
        """,
        disk_bytes=8 * 2**20,
    )
    number, mebibytes = done.stdout.split()
    assert (number, int(mebibytes) <= 8) == ("28", True)  # no space left on device


@isolated
@pytest.mark.skipif(not _makes_cgroups(), reason="no memory cgroup may be made here")
def test_memory_of_all_processes_together_is_bounded() -> None:
    done = run(
        """
        import os
        children = []
        for _ in range(4):
            children.append(os.fork())
            if not children[-1]:
                hog = bytearray(100 << 20)
                for at in range(0, len(hog), 4096): hog[at] = 1
                os.read(0, 1)
                import time; time.sleep(1); os._exit(0)
        print(sum(os.waitpid(child, 0)[1] == 9 for child in children) > 0)
        """,
        total_bytes=200 * 2**20,
    )
    assert done.stdout == "True\n" or done.code == -9
    deadline = time.monotonic() + 10
    while _stale_cgroups() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _stale_cgroups() == []


@isolated
def test_privileges_cannot_come_back() -> None:
    done = run(
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        def attempt(name, *arguments):
            result = getattr(libc, name)(*arguments)
            print(name, result, ctypes.get_errno())
        print(os.getresuid(), os.getgroups() in ([], [65534]))
        attempt('unshare', 0x10000000)
        attempt('ptrace', 16, 1, 0, 0)
        attempt('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, None)
        attempt('setuid', 0)
        attempt('memfd_create', b'x', 0)
        attempt('syscall', 56, 0x10000000 | 17, 0, 0, 0, 0)
        """
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "(65534, 65534, 65534) True"
    assert [line.split()[1:] for line in lines[1:]] == [["-1", "1"]] * 5 + [
        ["-1", "1" if platform.machine() == "x86_64" else lines[-1].split()[2]]
    ]


@isolated
def test_set_user_id_programs_gain_nothing() -> None:
    done = run(
        """
        import subprocess
        print(subprocess.run(['/usr/bin/id', '-u'], capture_output=True, text=True).stdout.strip())
        with open('/usr/bin/env', 'rb') as file: print(len(file.read(1)))
        """
    )
    assert done.stdout == "65534\n1\n"


@isolated
def test_programs_at_the_same_time_do_not_share_limits() -> None:
    program = (
        "import threading, time\n" + "threading.Thread(target=time.sleep, args=[0.2]).start()\n" * 6
    )
    with ThreadPoolExecutor(4) as pool:
        assert all(done.ok for done in pool.map(lambda _: run(program), range(4)))


# --------------------------------------------------------------------------------------------------
# Refusing


def _python_anybody_can_run() -> str:
    for path in (str(Path(sys.executable).resolve()), "/usr/bin/python3", "/usr/local/bin/python3"):
        test = ["-c", "import sys; assert sys.version_info >= (3, 11)"]
        try:
            subprocess.run([path, *test], check=True, user=65534, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return path
    pytest.skip("there is no interpreter an unprivileged user could run")


def _copy_for_anybody(folder: Path) -> None:
    (folder / "sounding").mkdir()
    (folder / "sounding" / "__init__.py").touch()
    shutil.copytree(Path(sandbox.__file__).parent, folder / "sounding" / "sandbox")
    for path in (folder, *folder.parents):
        if path.owner() == Path.home().owner() and not path.stat().st_mode & 0o005:
            path.chmod(path.stat().st_mode | 0o055)


@isolated
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")
@pytest.mark.parametrize("user", [1234, 65534])
def test_an_unprivileged_user_has_the_same_walls(tmp_path: Path, user: int) -> None:
    python = _python_anybody_can_run()
    _copy_for_anybody(tmp_path)
    look = "import os; print(os.getuid(), sorted(os.listdir('/')), os.getpid(), os.listdir())"
    outer = (
        f"from sounding.sandbox.run import run_python; print(run_python({look!r}).stdout, end='')"
    )
    done = subprocess.run(
        [python, "-c", outer], user=user, group=user, extra_groups=[], text=True,
        capture_output=True, env={"PYTHONPATH": str(tmp_path)}, cwd="/",
    )  # fmt: skip
    if "NoIsolation" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.stdout.startswith("65534 ['bin', 'dev', 'lib'")
    assert done.stdout.endswith(" 2 ['program.py']\n")


@isolated
def test_without_user_namespaces_nothing_runs(tmp_path: Path) -> None:
    """In a user namespace that may make no others, as in a plain container."""
    outer = f"""
import ctypes, os
from pathlib import Path
user, group = os.geteuid(), os.getegid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {{user}} 1")
Path("/proc/self/gid_map").write_text(f"0 {{group}} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
from sounding.sandbox.run import run_python
run_python("open({str(tmp_path / "ran")!r}, 'w')")
"""
    done = subprocess.run([sys.executable, "-c", outer], text=True, capture_output=True)
    assert "NoIsolation: generated code cannot be isolated on this machine" in done.stderr
    assert "--unsafe-no-isolation" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(NoIsolation, match="none for linux on riscv64"):
        run_python("print(1)")
    with pytest.raises(ValueError, match="no system call table for 'riscv64'"):
        seccomp.build_filter()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"wall_seconds": 0.0}, "wall_seconds = 0.0 must be above 0"),
        ({"wall_seconds": float("inf")}, "wall_seconds = inf must be above 0, and finite"),
        ({"memory_bytes": 5}, "memory_bytes = 5 must be at least 67108864"),
    ],
)
def test_limits_nobody_could_live_with(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**limits)  # type: ignore[arg-type]


def test_the_filter_jumps_inside_itself() -> None:
    for machine in ("x86_64", "aarch64"):
        code = seccomp.build_filter(machine)
        count = len(code) // 8
        assert len(code) % 8 == 0
        for at in range(count):
            operation, then, otherwise = code[8 * at], code[8 * at + 2], code[8 * at + 3]
            if operation & 0x07 == 0x05:
                assert at + 1 + max(then, otherwise) < count
        assert code[-8] == 0x06  # the last one returns


# --------------------------------------------------------------------------------------------------
# The interpreter that jails are forked from


@isolated
def test_of_the_interpreters_folder_only_what_it_needs_is_seen() -> None:
    done = run(
        """
        import os, sys, sysconfig
        library = sysconfig.get_path("stdlib")
        for name in ("site-packages", "dist-packages"):
            path = os.path.join(library, name)
            if os.path.isdir(path): print(name, os.listdir(path))
        base = sys.base_prefix
        if not base.startswith("/usr"):
            print(sorted(set(os.listdir(base)) - {"bin", "lib", "lib64"}))
            print(os.listdir(os.path.join(base, "bin")) == [os.path.basename(sys.executable)])
        import ctypes, sqlite3, ssl, zlib, bz2, lzma, hashlib, uuid
        """
    )
    assert done.stderr == ""
    found = done.stdout.splitlines()
    assert set(found) <= {"site-packages []", "dist-packages []", "[]", "True"}


@isolated
def test_a_program_may_become_another_one_and_still_has_its_walls() -> None:
    done = run(
        """
        import os, sys
        look = "import os; print(os.path.exists('/etc/passwd'), os.getpid())"
        os.execv(sys.executable, [sys.executable, "-c", look])
        """
    )
    assert done.stdout == "False 2\n"


@isolated
def test_files_of_other_processes_cannot_be_taken() -> None:
    done = run(
        """
        import ctypes, os, platform
        other = os.pidfd_open(os.getppid())
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall(438, other, 0, 0), ctypes.get_errno())
        """
    )
    assert done.stdout == "-1 1\n"


def test_an_interpreter_that_has_ended_is_started_again(isolate: bool) -> None:
    assert run("print(1)", isolate=isolate).stdout == "1\n"
    process = launch._started[0]._process
    process.kill()
    process.wait()
    assert run("print(2)", isolate=isolate).stdout == "2\n"
    assert launch._started[0]._process.pid != process.pid


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from 3.12
def test_a_fork_of_ours_has_an_interpreter_of_its_own() -> None:
    run("", isolate=False)
    child = os.fork()
    if not child:
        good = run("print(1)", isolate=False).stdout == "1\n"
        launch._end_nursery()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert run("print(1)", isolate=False).stdout == "1\n"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from 3.12
@isolated
def test_a_fork_of_ours_keeps_no_program_alive() -> None:
    mark = f"sleeper{time.monotonic_ns()}"
    look = ["p", "-c", "import time; time.sleep(99)", mark]
    sleep = f"import os, sys; os.execv(sys.executable, {look!r})"
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, sleep, wall_seconds=1.0)
        while not processes_named(mark) and time.monotonic() < started + 10:
            time.sleep(0.02)
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        try:
            assert running.result().ended == "wall time"
            deadline = time.monotonic() + 10
            while processes_named(mark) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert processes_named(mark) == []
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_it_ends_with_us() -> None:
    outer = (
        "import os\nfrom sounding.sandbox import launch, run\n"
        "print(run.run_python('', isolate=False).code)\n"
        "print(launch._started[0]._process.pid, flush=True)\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", outer], text=True, capture_output=True, cwd=REPO)
    code, process = done.stdout.split()
    assert code == "0"
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{process}").exists()


def test_programs_of_several_threads_are_not_mixed_up(isolate: bool) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: run(f"print({n})", isolate=isolate).stdout, range(12))
        assert list(found) == [f"{n}\n" for n in range(12)]
