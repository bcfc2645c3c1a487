"""Networks that do not train: the start of a run as a reference, and teachers.

They read answers by the trainer's own forward, so that equal weights give equal numbers. One is in
memory at a time. Under quantization-aware training their weights are rounded, too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sounding.model.from_checkpoint import build_model
from sounding.model.transformer import Transformer
from sounding.ops.token_logprobs import token_logprobs
from sounding.posttrain.rollout_batch import RolloutBatch, batch_of, rounded_up
from sounding.posttrain.rounds import Answer
from sounding.simulation import EXACT, QUANTIZATION_AWARE
from sounding.train.numerics import for_throughput, repeatable
from sounding.train.run_checkpoint import model_of
from sounding.train.run_config import RunConfig
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.state_dict import read_state


def load_frozen(folder: Path, run: RunConfig) -> Transformer:
    """The network in a folder, computing as the run's does, without gradients.

    What to round to is the run's: the float32 checkpoint of another run does not say it.
    """
    checkpoint = Checkpoint(model_of(folder))
    model = build_model(
        read_state(checkpoint, torch.float32),
        dataclasses.replace(
            checkpoint.config,
            quantization_config=run.model.quantization_config,
            expert_dtype=run.model.expert_dtype,
        ),
        simulation=QUANTIZATION_AWARE if run.train.qat else EXACT,
        dtype=getattr(torch, run.train.dtype),
    )
    return model.requires_grad_(False)


def hidden_states(
    model: Transformer, answers: Sequence[Answer], run: RunConfig
) -> Iterator[tuple[RolloutBatch, Tensor]]:
    """Batches of answers, in order, each with the hidden states in front of its sampled tokens.

    The network routes tokens by itself: the experts of another one would be none of its own.
    """
    for part in _portions(answers, run.data.batch_tokens):
        batch = batch_of(part, [0.0] * len(part))
        padded = batch.padded(run.data.batch_tokens)
        with torch.no_grad(), repeatable(run.train.deterministic), for_throughput(run.train.dtype):
            output = model(padded.tokens, padded.lengths)
            hidden = model.hidden(output.streams[rounded_up(padded.rows)])
        yield batch, hidden[: batch.num_sampled]


def _portions(answers: Sequence[Answer], most_tokens: int) -> Iterator[Sequence[Answer]]:
    """Neighbours that together have at most so many tokens, or one that alone has more."""
    low = held = 0
    for index, answer in enumerate(answers):
        if index > low and held + len(answer.tokens) > most_tokens:
            yield answers[low:index]
            low, held = index, 0
        held += len(answer.tokens)
    if low < len(answers):
        yield answers[low:]


def split_rows(rows: Tensor, answers: Sequence[Answer]) -> list[Tensor]:
    """Each answer's part of a tensor with a row for every sampled token."""
    return [part.clone() for part in rows.split([answer.num_sampled for answer in answers])]


def reference_logprobs(
    model: Transformer, answers: Sequence[Answer], run: RunConfig, temperature: float
) -> list[Tensor]:
    """Log-probabilities of the sampled tokens under a frozen network, over the tokens that the
    sampler left."""
    found = []
    for batch, hidden in hidden_states(model, answers, run):
        with torch.no_grad(), for_throughput(run.train.dtype):
            found.append(
                token_logprobs(
                    hidden,
                    model.head.weight,
                    batch.tokens[batch.sampled],
                    temperature=temperature,
                    kept=batch.kept,
                ).logprobs
            )
    return split_rows(torch.cat(found), answers)
