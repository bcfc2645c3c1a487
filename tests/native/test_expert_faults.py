"""Disks that fail: an error that names the file, or the right bits, and nothing in between.

Catches: a failed read that leaves a wrong byte, a step that waits for ever, a store that stays
broken.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sounding.native.expert_store import StepCancelled
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.weights.expert_files import ExpertReadError
from tests.native.streamed import TOKENS, VECTORS, run, whole

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")


class FaultyDisk:
    """A read call that fails in a given way, some of the time."""

    def __init__(self) -> None:
        self.kind = ""
        self.share = 1.0
        self.injected = 0
        self.recover = threading.Event()
        self._generator = np.random.default_rng(0)
        self._lock = threading.Lock()

    def __call__(self, file: int, buffers: Sequence[memoryview], offset: int) -> int:
        with self._lock:
            kind = self.kind if self._generator.random() < self.share else ""
            self.injected += bool(kind)
        if kind == "error":
            raise OSError(5, "Input/output error")
        if kind == "short":
            return min(100, os.preadv(file, buffers, offset))
        if kind == "empty":
            return 0
        if kind == "stall":
            self.recover.wait()
        count = os.preadv(file, buffers, offset)
        if kind == "flip":
            buffers[0][offset % 7 + 3000] ^= 1  # within what any expert's window holds
        return count


def test_a_thousand_faults_give_an_error_or_the_right_bits(
    make: Callable[..., KernelNetwork],
) -> None:
    disk = FaultyDisk()
    network = make(slots=14, read=disk)
    store = network.store
    assert store is not None
    run(network, TOKENS)  # every expert of use here has been read once, and has a checksum
    generator = np.random.default_rng(1)
    failed = 0
    while disk.injected < 1000:
        disk.kind = ("error", "short", "empty", "flip")[int(generator.integers(4))]
        disk.share = float(generator.choice([0.02, 0.3, 1.0]))
        count = 1 + int(generator.integers(20))
        try:
            assert np.array_equal(run(network, TOKENS[:count]), whole()[:count])
        except ExpertReadError as error:
            failed += 1
            assert str(VECTORS) in str(error)
            assert any(way in str(error) for way in ("check the disk", "original file"))
    assert failed > 50
    disk.kind = ""
    assert np.array_equal(run(network, TOKENS), whole())
    assert store.stats().failed_reads > 0


def test_a_disk_that_stalls_is_an_error_and_the_store_recovers_with_it(
    make: Callable[..., KernelNetwork],
) -> None:
    disk = FaultyDisk()
    network = make(slots=20, read=disk, stall_seconds=0.3)
    run(network, TOKENS[:3])
    disk.kind = "stall"
    for _ in range(2):
        with pytest.raises(ExpertReadError, match="no read has returned"):
            run(network, TOKENS[20:60])
    disk.kind = ""
    disk.recover.set()
    deadline = time.monotonic() + 30
    while True:
        try:
            assert np.array_equal(run(network, TOKENS), whole())
            break
        except ExpertReadError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("damage", ["shorten", "rewrite", "lengthen"])
def test_a_file_that_changes_is_named(
    damage: str, tmp_path: Path, make: Callable[..., KernelNetwork]
) -> None:
    for path in VECTORS.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(tmp_path.glob("*.safetensors"))
    network = make(slots=3, folder=tmp_path)
    assert np.array_equal(run(network, TOKENS[:9]), whole()[:9])
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        if damage == "shorten":
            file.truncate(size // 3)
        else:
            file.seek(size if damage == "lengthen" else size - 10)
            file.write(b"x" * 9)
    os.utime(shard, ns=(1, 1))  # file systems with coarse clocks
    with pytest.raises(
        ExpertReadError, match="was changed while experts were read from it"
    ) as caught:
        run(network, TOKENS)
    assert str(shard) in str(caught.value)


def test_a_file_that_is_replaced_by_name_is_still_the_one_that_was_opened(
    tmp_path: Path, make: Callable[..., KernelNetwork]
) -> None:
    for path in VECTORS.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    network = make(slots=3, folder=tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.unlink()
    shard.write_bytes(b"another model")
    assert np.array_equal(run(network, TOKENS), whole())


def test_a_cancelled_step_ends_while_it_waits(make: Callable[..., KernelNetwork]) -> None:
    disk = FaultyDisk()
    network = make(slots=4, read=disk)
    assert network.store is not None
    network.store.cancelled = lambda: True
    disk.kind = "stall"
    with pytest.raises(StepCancelled):
        run(network, TOKENS)
    network.store.cancelled = None
    disk.kind = ""
    disk.recover.set()
    assert np.array_equal(run(network, TOKENS), whole())


def test_a_file_system_without_direct_reads_is_read_through_the_page_cache(
    make: Callable[..., KernelNetwork],
) -> None:
    refused = []

    def call(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(file)
            raise OSError(22, "Invalid argument")
        return os.preadv(file, buffers, offset)

    network = make(slots=4, read=call)
    assert np.array_equal(run(network, TOKENS), whole())
    assert len(refused) < 10


def test_a_store_without_a_slot_for_reads_is_refused(make: Callable[..., KernelNetwork]) -> None:
    with pytest.raises(ValueError, match="one at least must be left for reads"):
        make(slots=6, quotas=[1] * 6)
    with pytest.raises(ValueError, match="slots = 0 must be at least 1"):
        make(slots=0)
