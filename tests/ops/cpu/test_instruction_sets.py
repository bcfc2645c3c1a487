"""What the best instruction set passes, each lower one passes in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sounding.ops import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

FILES = (
    "tests/native/test_network.py",
    "tests/ops/cpu/test_hyper_connection.py",
    "tests/ops/cpu/test_training.py",
)
ROOT = Path(__file__).parents[3]


# Plain x86-64, AVX2, AVX-512, and products of bfloat16 without tiles.
@pytest.mark.parametrize("level", ["1", "3", "4", "5"])
def test_kernels_of_a_lower_instruction_set(level: str) -> None:
    files = [str(ROOT / name) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "SOUNDING_INSTRUCTION_SET": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]
