"""Starts the processes of a test, and ends them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(
    count: int, command: Sequence[str], *, options: Sequence[str] = (), timeout: float = 600
) -> str:
    """Run `python COMMAND` in so many processes; returns what they wrote to stderr.

    All of them have ended when this returns, whatever happens.
    """
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, f"--nproc-per-node={count}", *options, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=timeout)
    finally:
        process.terminate()  # and with it, all that it started
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    first = errors.find("Traceback")
    assert process.returncode == 0, errors[first : first + 8000]
    return errors


def run_cases(count: int, out: Path, *cases: str, timeout: float = 600) -> None:
    """Run cases of `worker.py`."""
    out.mkdir(exist_ok=True)
    torchrun(count, ["-m", "tests.parallel.worker", str(out), *cases], timeout=timeout)
