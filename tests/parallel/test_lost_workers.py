"""A run that loses a worker, and then all of them, goes on as if nothing had been.

Catches: a restart that begins anew or repeats rows, a checkpoint of four that two cannot read, data
that is read twice or skipped, processes that are left behind.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sounding.train.metrics import METRICS_NAME, read_metrics
from sounding.train.resolve import resolve_run
from sounding.train.source import open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer
from tests.parallel.launch import ROOT, torchrun
from tests.parallel.runs import CPU, SMALL

STEPS = 12
SETTINGS = [
    *SMALL,
    "data.sequence_tokens=136",
    "data.batch_tokens=272",
    f"train.steps={STEPS}",
    "train.accumulation=4",
    "train.dtype=float32",
    "optimizer.muon_dtype=float32",
    "log.checkpoint_every=2",
]


def command(folder: Path) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["-m", "sounding", "train", "copying", "--out", str(folder), *sets]


def wait_for(holds: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    limit = time.monotonic() + 400
    while not holds():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < limit, "the run stands still"
        time.sleep(0.02)


@pytest.mark.long
def test_a_run_of_four_loses_one_then_all_and_ends_on_two(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics = folder / METRICS_NAME
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, "--nproc-per-node=4", "--max-restarts=1", *command(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workers: list[psutil.Process] = []

    def steps() -> int:
        return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0

    try:
        wait_for(lambda: steps() >= 3, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        next(worker for worker in workers if "sounding" in worker.cmdline()).kill()
        wait_for(lambda: not any(worker.is_running() for worker in workers), process)
        wait_for(lambda: steps() >= 7, process)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        process.wait()
        psutil.wait_procs(workers, timeout=30)
    torchrun(2, command(folder))

    run = resolve_run("copying", SETTINGS, tmp_path / "alone").config
    source, objective = open_source(run), Supervised(run)
    Trainer(run, tmp_path / "alone", source, objective, device=CPU).train()
    ours, alone = read_metrics(metrics), read_metrics(tmp_path / "alone" / METRICS_NAME)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for one, two in zip(ours, alone, strict=True):
        assert one["tokens"] == two["tokens"] and one["phase"] == two["phase"]
        for name in ("loss", "mtp_loss", "index_loss", "gradient_norm"):
            if name in two:
                assert one[name] == pytest.approx(two[name], rel=1e-3), (two["step"], name)
