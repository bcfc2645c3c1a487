"""Training steps on random tokens for timing: ours, and those of the V4 in `transformers`.

A step covers everything from a batch to updated weights. Ours is the trainer's own step, so it
includes all work that a run does per step.
"""

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sounding.config import ModelConfig
from sounding.config_file import to_transformers
from sounding.data.token_batch import StreamState, TokenBatch
from sounding.ops.loss import IGNORED
from sounding.train.allocator import keep_freed_memory
from sounding.train.numerics import repeatable
from sounding.train.objective import BatchSource
from sounding.train.run_config import DataConfig, RunConfig, SparsityConfig, TrainConfig
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer

Step = Callable[[], Any]

_BATCH_TOKENS = 4096  # most tokens in memory at once, unless a single sequence has more


@dataclass(frozen=True)
class Workload:
    """The workload of both sides: in each step the same random sequences of equal length."""

    config: ModelConfig
    sequences: int
    sequence_tokens: int
    sparse: bool  # True: CSA layers select entries, and the indexer is trained
    steps: int


@contextmanager
def ours(workload: Workload) -> Iterator[Step]:
    """The step of `sounding train`, without data loading, checkpoints and validation."""
    run = run_of(workload)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, repeatable(run.train.deterministic):
        device = torch.device("cpu")
        source, objective = _same_batches(workload), Supervised(run)
        yield Trainer(run, Path(folder), source, objective, device=device).take_step


@contextmanager
def transformers(workload: Workload) -> Iterator[Step]:
    """Forward, cross-entropy, backward and AdamW with default settings, all in bfloat16."""
    from transformers import AutoModelForCausalLM
    from transformers.models.deepseek_v4 import DeepseekV4Config

    plain = dataclasses.replace(
        workload.config, num_nextn_predict_layers=0, quantization_config=None, expert_dtype=None
    )
    torch.manual_seed(0)
    config = DeepseekV4Config(**to_transformers(plain))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    for name, buffer in model.named_buffers():
        if name.endswith(
            "tid2eid"
        ):  # zeros by default, which would route every token to the same expert
            order = torch.rand(len(buffer), plain.n_routed_experts).argsort(-1)
            buffer.copy_(order[:, : buffer.shape[1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batches = random_tokens(workload).chunk(_num_batches(workload, 1))

    def step() -> None:
        for tokens in batches:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            (loss / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    yield step


def run_of(workload: Workload) -> RunConfig:
    """A run whose steps read all sequences, in batches that use every thread if they divide
    evenly. Raises ValueError for sequences of one token."""
    batches = _num_batches(workload, torch.get_num_threads())
    tokens = workload.sequences * workload.sequence_tokens // batches
    steps = workload.steps + 1
    return RunConfig(
        name="throughput",
        model=workload.config,
        data=DataConfig(sequence_tokens=workload.sequence_tokens, batch_tokens=tokens),
        train=TrainConfig(steps=steps, decay_steps=0, accumulation=batches),
        sparsity=SparsityConfig(dense_steps=0 if workload.sparse else steps),
    )


def random_tokens(workload: Workload) -> torch.Tensor:
    """The sequences as rows."""
    shape = (workload.sequences, workload.sequence_tokens)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(workload.config.vocab_size, shape, generator=generator)


def _num_batches(workload: Workload, at_once: int) -> int:
    """Number of equal batches within the limit of tokens; a multiple of `at_once` if possible."""
    most = max(1, _BATCH_TOKENS // workload.sequence_tokens)
    step = math.gcd(workload.sequences, at_once)
    return next(
        count
        for count in range(step, workload.sequences + 1, step)
        if workload.sequences % count == 0 and workload.sequences // count <= most
    )


def _same_batches(workload: Workload) -> BatchSource[TokenBatch]:
    rows = random_tokens(workload)
    following = rows.roll(-1, 1)
    following[:, -1] = IGNORED
    num_batches = _num_batches(workload, torch.get_num_threads())
    lengths = [workload.sequence_tokens] * (workload.sequences // num_batches)
    pairs = zip(rows.chunk(num_batches), following.chunk(num_batches), strict=True)
    batches = [
        TokenBatch(tokens.flatten(), targets.flatten(), lengths) for tokens, targets in pairs
    ]

    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        for batch in itertools.cycle(batches):
            yield batch, {}

    return open_stream
