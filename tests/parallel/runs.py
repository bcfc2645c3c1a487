"""Small runs, the same for any number of processes."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sounding.data.token_batch import StreamState, TokenBatch
from sounding.model.transformer import Transformer
from sounding.ops.loss import IGNORED
from sounding.parallel.group import Group
from sounding.parallel.sharding import gradient_norms, whole
from sounding.presets import tiny
from sounding.train.build_network import build_network
from sounding.train.metrics import MetricsRow
from sounding.train.objective import BatchSource
from sounding.train.run_config import RunConfig
from sounding.train.runs import change, copying
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer

CPU = torch.device("cpu")
SMALL = [
    "model.num_hidden_layers=3",
    "model.hidden_size=32",
    "model.moe_intermediate_size=32",
    "model.compress_ratios=0,4,128,0",
]
"""A network of every mechanism whose step takes a tenth of a second."""


def run_config(setting: str) -> RunConfig:
    """`small-6` or `tiny-50`: steps through every phase, of four batches of 512 tokens; a third
    part of the setting is another number of tokens, a fourth of batches."""
    size, steps, *rest = setting.split("-")
    third = max(1, int(steps) // 3)
    tokens, accumulation = [*rest, *("512", "4")[len(rest) :]]
    run = change(
        copying(),
        [
            *(SMALL if size == "small" else []),
            f"data.sequence_tokens={tokens}",
            f"data.batch_tokens={tokens}",
            f"train.steps={steps}",
            "train.lr=2e-3",
            "train.warmup_steps=2",
            f"train.decay_steps={third}",
            f"train.accumulation={accumulation}",
            "train.dtype=float32",
            "optimizer.muon_dtype=float32",
            "objective.middle_weight=2",
            f"sparsity.dense_steps={third}",
            f"sparsity.indexer_steps={third}",
            "log.checkpoint_every=1000",
        ],
    )
    return run if size == "small" else dataclasses.replace(run, model=tiny())


def long_run_config(setting: str) -> RunConfig:
    """One sequence of so many tokens, sparse."""
    run = change(
        run_config("tiny-3"),
        [
            f"data.batch_tokens={setting}",
            f"data.sequence_tokens={setting}",
            "train.accumulation=1",
            "objective.middle_weight=1",
            "sparsity.dense_steps=0",
            "sparsity.indexer_steps=0",
        ],
    )
    return run


def long_batches(run: RunConfig) -> BatchSource[TokenBatch]:
    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        generator = torch.Generator().manual_seed(0)
        count = run.data.batch_tokens
        tokens = torch.randint(run.model.vocab_size, (count,), generator=generator)
        while True:
            yield TokenBatch(tokens, tokens.roll(-1), [count]), {}

    return open_stream


def ragged(run: RunConfig, rank: int, world: int) -> BatchSource[TokenBatch]:
    """Every world-th batch of sequences of very different lengths."""

    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        for number in itertools.count(state["next"] if state else 0):
            if number % world == rank:
                batch = ragged_batch(number, run.data.batch_tokens, run.model.vocab_size)
                yield batch, {"next": number + world - rank}

    return open_stream


def ragged_batch(number: int, num_tokens: int, vocab_size: int) -> TokenBatch:
    """Tokens that repeat after 50, in sequences of 1 to some hundreds."""
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


def network(run: RunConfig, dtype: torch.dtype) -> Transformer:
    model = build_network(run, CPU)
    if dtype == torch.float64:
        model.double().dtype = dtype
    return model


def trainer(
    run: RunConfig,
    folder: Path,
    group: Group,
    dtype: torch.dtype,
    source: BatchSource[TokenBatch] | None = None,
) -> Trainer[TokenBatch]:
    source = source or ragged(run, group.batch_rank, group.batch_world)
    objective = Supervised(run, None, group)
    model = network(run, dtype)
    options: dict[str, Any] = {"device": CPU, "network": model, "group": group}
    return Trainer(run, folder, source, objective, **options)


def metrics(run: RunConfig, folder: Path, group: Group) -> list[MetricsRow]:
    """The metrics of a run in float64."""
    one = trainer(run, folder, group, torch.float64)
    return [one.take_step() for _ in range(run.train.steps)]


def gradients(run: RunConfig, folder: Path, group: Group) -> dict[str, torch.Tensor]:
    """The whole gradients of the first step in float32."""
    one = trainer(run, folder, group, torch.float32)
    batches = one._next_batches()
    one._differentiate(batches, one._counts(batches), one.objective.plan(one.step))
    named = dict(one.model.named_parameters())
    gradient_norms(named, group)  # drops those that no process has
    return {n: whole(p.grad, group) for n, p in named.items() if p.grad is not None}
