"""What the processes of these tests run: `torchrun ... -m tests.parallel.worker OUT CASE...`.

A case is DATAxEXPERTxCONTEXT:STEPS; each arranges the processes anew, and the first writes what
was found to OUT.
"""

import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sounding.data.token_batch import StreamState, TokenBatch
from sounding.ops.loss import IGNORED
from sounding.parallel.group import Group, make_meshes, mesh_shape
from sounding.parallel.sharding import gradient_norms, whole
from sounding.presets import tiny
from sounding.train.build_network import build_network
from sounding.train.metrics import MetricsRow
from sounding.train.objective import BatchSource
from sounding.train.run_config import (
    DataConfig,
    LogConfig,
    ObjectiveConfig,
    RunConfig,
    SparsityConfig,
    TrainConfig,
)
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer

CPU = torch.device("cpu")


def ragged(run: RunConfig, rank: int, world: int) -> BatchSource[TokenBatch]:
    """Every world-th batch of sequences of very different lengths."""

    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        for number in itertools.count(state["next"] if state else 0):
            batch = ragged_batch(number, run.data.batch_tokens, run.model.vocab_size)
            if number % world == rank:
                yield batch, {"next": number + world - rank}

    return open_stream


def ragged_batch(number: int, num_tokens: int, vocab_size: int) -> TokenBatch:
    """Random numbers that repeat after 50, in sequences of 1 to some hundred tokens."""
    draw = random.Random(number)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        longest = draw.choice((3, 9, 150, 400, num_tokens))
        lengths.append(min(draw.randint(1, longest), num_tokens - sum(lengths)))
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(vocab_size, (50,), generator=generator).repeat(num_tokens)[:num_tokens]
    targets = tokens.roll(-1)
    targets[torch.tensor(lengths).cumsum(0) - 1] = IGNORED
    middles = [draw.randint(0, length - 1) for length in lengths]
    return TokenBatch(tokens, targets, lengths, middles)


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
        objective=ObjectiveConfig(middle_weight=2.0),
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
    source = ragged(run, group.batch_rank, group.batch_world)
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
