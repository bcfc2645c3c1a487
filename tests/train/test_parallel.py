"""Two processes make the run of one, and either goes on with what the other saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sounding.train.run_config import RunConfig
from tests.train.test_trainer import last_weights, measured, small, trainer

SCRIPT = """
import json, sys, torch
from pathlib import Path
from sounding.train.parallel import processes
from sounding.train.runs import parse_run
from sounding.train.source import open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer
torch.set_num_threads(1)
run = parse_run(json.loads(Path(sys.argv[1]).read_text()))
cpu = torch.device("cpu")
with processes(cpu) as group:
    source, objective = open_source(run, group.rank, group.world), Supervised(run)
    folder = Path(sys.argv[2])
    Trainer(run, folder, source, objective, device=cpu, group=group, allow_change=True).train()
"""


def run_on_two(run: RunConfig, folder: Path) -> None:
    settings, script = folder.with_suffix(".json"), folder.with_suffix(".py")
    settings.write_text(json.dumps(run.to_dict()))
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(settings), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_make_the_curve_of_one(tmp_path: Path) -> None:
    same = ["train.dtype=float32", "optimizer.muon_dtype=float32", "train.accumulation=2"]
    same.append("train.decay_steps=0")  # a shorter run would decay earlier
    half = small(*same, "train.steps=5")
    run = small(*same)
    trainer(run, tmp_path / "one").train()
    run_on_two(half, tmp_path / "two")
    # One process goes on with what two saved.
    trainer(run, tmp_path / "two", allow_change=True).train()
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert len(one) == len(two) == 8
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys() and left["phase"] == right["phase"]
        for name in left.keys() - {"phase", "load_entropy"}:
            assert right[name] == pytest.approx(left[name], rel=2e-3), (left["step"], name)
    ours, theirs = last_weights(tmp_path / "one"), last_weights(tmp_path / "two")
    assert torch.equal(ours["layers.0.ffn.gate.tid2eid"], theirs["layers.0.ffn.gate.tid2eid"])
