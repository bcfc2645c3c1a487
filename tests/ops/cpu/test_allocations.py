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
import torch
from pathlib import Path
from sounding.model.layers import DEPLOYED
from sounding.model.state import packed_state
from sounding.ops import cpu
from sounding.ops.cpu.inference import network as native
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.build import load_model

torch.set_num_threads(2)
counter = ctypes.CDLL(sys.argv[1])
real = cpu.library()

class Counted:
    network_run = counter.counted_run
    def __getattr__(self, name):
        return getattr(real, name)

counter.set_target(ctypes.cast(real.network_run, ctypes.c_void_p))
counter.counted_run.restype = counter.requests_so_far.restype = ctypes.c_int64
native.library = lambda: Counted()

model = load_model(Checkpoint(Path(sys.argv[2])), dtype=torch.bfloat16, simulation=DEPLOYED)
tokens = torch.randint(512, (800,), generator=torch.Generator().manual_seed(3))
state = packed_state(model.config, max_tokens=900)
with torch.inference_mode():
    model(tokens[:400], states=[state])
    print(counter.requests_so_far())
    for token in tokens[400:656]:
        model.predict(token[None], [0], states=[state])
    before = counter.requests_so_far()
    for token in tokens[656:]:
        model.predict(token[None], [0], states=[state])
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
