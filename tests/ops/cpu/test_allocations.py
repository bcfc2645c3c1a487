"""A decoded token takes nothing from the heap, once the arenas are as large as they get."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sounding.ops import cpu

COMPILER = shutil.which("c++") or shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts by standing before glibc"),
    pytest.mark.skipif("SOUNDING_KERNELS" in os.environ, reason="sanitizers stand there already"),
    pytest.mark.skipif(COMPILER is None, reason="needs a compiler for what counts"),
]

PROGRAM = """
import ctypes, sys
from pathlib import Path
from sounding.native import network
from sounding.native.kernels import kernels, set_num_threads
from sounding.simulation import DEPLOYED
from sounding.weights.checkpoint import Checkpoint

set_num_threads(2)
counter = ctypes.CDLL(sys.argv[1])
real = kernels()

class Counted:
    network_run = counter.counted_run
    def __getattr__(self, name):
        return getattr(real, name)

counter.set_target(ctypes.cast(real.network_run, ctypes.c_void_p))
counter.counted_run.restype = counter.requests_so_far.restype = ctypes.c_int64
network.kernels = lambda: Counted()

checkpoint = Checkpoint(Path(sys.argv[2]))
model = network.KernelNetwork(checkpoint.config, checkpoint.read_all(), DEPLOYED)
tokens = [37 * i % 512 for i in range(800)]
state = model.new_state(packed_tokens=900)
model.predict(tokens[:400], [], [400], [state])
print(counter.requests_so_far())
for token in tokens[400:656]:
    model.predict([token], [0], [1], [state])
before = counter.requests_so_far()
for token in tokens[656:]:
    model.predict([token], [0], [1], [state])
print(counter.requests_so_far() - before)
"""
VECTORS = Path(__file__).parent.parent.parent / "vectors" / "tiny"


def test_decoding_takes_nothing_from_the_heap(tmp_path: Path) -> None:
    assert COMPILER is not None
    source, counter = Path(__file__).with_name("count_allocations.cpp"), tmp_path / "counter.so"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", str(source), "-o", counter], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(counter), str(VECTORS)],
        env=os.environ | {"LD_PRELOAD": str(counter)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, steady = map(int, done.stdout.split())
    assert first > 0  # it does count: the arenas begin empty
    assert steady == 0
