"""What the processes of these tests run: `torchrun ... -m tests.parallel.worker OUT CASE...`.

A case is DATAxEXPERTxCONTEXT:STEPS; each arranges the processes anew and writes what it found to OUT; the first process does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sounding.data.token_batch import TokenBatch
from sounding.parallel.group import Group, make_meshes, mesh_shape
from sounding.parallel.sharding import gradient_norms, whole
from sounding.presets import tiny
from sounding.train.build_network import build_network
from sounding.train.metrics import MetricsRow
from sounding.train.run_config import DataConfig, LogConfig, RunConfig, SparsityConfig, TrainConfig
from sounding.train.source import open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer

CPU = torch.device("cpu")


def run_config(steps: int = 6) -> RunConfig:
    """Four batches a step through every phase, sequences of very different lengths."""
    third = max(1, steps // 3)
    return RunConfig(
        name="tiny",
        model=tiny(),
        data=DataConfig(source="copying", sequence_tokens=512, batch_tokens=512),
        train=TrainConfig(
            steps=steps,
            lr=2e-3,
            warmup_steps=2,
            decay_steps=third,
            accumulation=4,
            dtype="float32",
        ),
        sparsity=SparsityConfig(dense_steps=third, indexer_steps=third),
        log=LogConfig(checkpoint_every=1000),
    )


def trainer(
    run: RunConfig, folder: Path, group: Group, dtype: torch.dtype, **options: Any
) -> Trainer[TokenBatch]:
    network = build_network(run, CPU)
    if dtype == torch.float64:
        network = network.double()
        network.dtype = dtype
    source = open_source(run, group.batch_rank, group.batch_world)
    objective = Supervised(run, None, group)
    return Trainer(
        run, folder, source, objective, device=CPU, network=network, group=group, **options
    )


def losses(run: RunConfig, folder: Path, group: Group) -> list[MetricsRow]:
    """The metrics of a run in float64."""
    one = trainer(run, folder, group, torch.float64)
    return [one.take_step() for _ in range(run.train.steps)]


def gradients(run: RunConfig, folder: Path, group: Group) -> dict[str, torch.Tensor]:
    """The whole gradients of the first step in float32."""
    one = trainer(run, folder, group, torch.float32)
    batches = one._next_batches()
    one._differentiate(batches, one._counts(batches), one.objective.plan(one.step))
    gradient_norms(dict(one.model.named_parameters()), group)  # drops those that no process has
    named = one.model.named_parameters()
    return {name: whole(param.grad, group) for name, param in named if param.grad is not None}


def main(out: Path, cases: list[str]) -> None:
    dist.init_process_group("gloo")
    try:
        for case in cases:
            kind, steps = case.split(":")
            data, expert, context = map(int, kind.split("x"))
            shape = mesh_shape(dist.get_world_size(), data, expert, context)
            group = Group(dist.get_rank(), dist.get_world_size(), make_meshes("cpu", shape))
            run = run_config(int(steps))
            rows = losses(run, out / f"{kind}-run", group)
            if group.is_main:
                (out / f"{kind}.json").write_text(json.dumps(rows))
            found = gradients(run, out / f"{kind}-run32", group)
            if group.is_main:
                torch.save(found, out / f"{kind}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
