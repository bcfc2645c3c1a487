"""Supervised fine-tuning on conversations: samples packed into batches, and what is held out.

The objective is `train.supervised`'s: its sums are divided by the loss tokens of the whole step,
so that a short answer counts by its tokens and not by the batch it came in.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from sounding.data.packing import best_fit
from sounding.data.token_batch import StreamState, TokenBatch
from sounding.ops.loss import IGNORED
from sounding.posttrain.conversations import TrainingSample, read_conversations, samples_of
from sounding.posttrain.run_configs import SftRun
from sounding.text.tokenizer import Tokenizer
from sounding.train.objective import BatchSource
from sounding.train.source import HeldOut

_log = logging.getLogger(__name__)


def read_samples(path: Path, run: SftRun, tokenizer: Tokenizer) -> list[TrainingSample]:
    """The samples of a file of conversations.

    Raises ValueError for a conversation that cannot be encoded or has no loss tokens, and where
    none fits `data.sequence_tokens`; of those that do not fit it says how many.
    """
    limit = run.data.sequence_tokens
    scheme = run.conversations.effort_scheme
    samples: list[TrainingSample] = []
    left_out = 0
    for conversation in read_conversations(path, effort_scheme=scheme):
        made = samples_of(conversation, tokenizer, limit)
        left_out += not made
        samples += made
    if not samples:
        raise ValueError(
            f"no conversation of {path} fits data.sequence_tokens = {limit}: raise it and "
            "data.batch_tokens, or give shorter ones"
        )
    if left_out:
        _log.warning(
            "%d conversations of %s are longer than data.sequence_tokens = %d and left out",
            left_out, path, limit,
        )  # fmt: skip
    return samples


def batch_of(samples: Sequence[TrainingSample]) -> TokenBatch:
    """Samples laid end to end; targets are the tokens that carry loss."""
    tokens = torch.tensor(list(chain.from_iterable(sample.tokens for sample in samples)))
    targets = torch.full_like(tokens, IGNORED)
    low = 0
    for sample in samples:
        following = torch.tensor(sample.tokens[1:])
        trained = torch.tensor(sample.trained[1:], dtype=torch.bool)
        here = targets[low : low + len(following)]
        here[trained] = following[trained]
        low += len(sample.tokens)
    return TokenBatch(tokens, targets, [len(sample.tokens) for sample in samples])


def packed(
    samples: Sequence[TrainingSample], batch_tokens: int, order: Iterable[int] | None = None
) -> list[list[TrainingSample]]:
    """Samples distributed over batches, best fit; none is truncated."""
    ordered = [samples[index] for index in (range(len(samples)) if order is None else order)]
    rows = best_fit([len(sample.tokens) for sample in ordered], batch_tokens)
    return [[ordered[index] for index in row] for row in rows]


def sample_source(
    samples: Sequence[TrainingSample], batch_tokens: int, seed: int
) -> BatchSource[TokenBatch]:
    """Endless epochs over samples, each in an order and a packing of its own."""

    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        epoch, done = (0, 0) if state is None else (int(state["epoch"]), int(state["batch"]))
        while True:
            order = np.random.default_rng((seed, epoch))
            rows = packed(samples, batch_tokens, order.permutation(len(samples)).tolist())
            places = order.permutation(len(rows)).tolist()
            for number in range(done, len(rows)):
                state = {"epoch": epoch, "batch": number + 1}
                yield batch_of(rows[places[number]]), state
            epoch, done = epoch + 1, 0

    return open_stream


def held_out_of(samples: Sequence[TrainingSample], run: SftRun, tokenizer: Tokenizer) -> HeldOut:
    """Samples to validate on; their bytes are those of the tokens with loss."""
    batches = [batch_of(row) for row in packed(samples, run.data.batch_tokens)]
    counted = chain.from_iterable(batch.targets[batch.targets != IGNORED] for batch in batches)
    return HeldOut(batches, tokenizer.count_bytes(int(token) for token in counted))


def steps_of(samples: Sequence[TrainingSample], run: SftRun, epochs: float) -> int:
    """Steps that take so many passes over the samples."""
    batches = len(packed(samples, run.data.batch_tokens))
    return max(1, round(epochs * batches / run.train.accumulation))
