"""Opens what a run reads: its batches, its held-out text, the files that belong to its model."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sounding.data.data_rows import DataRows, LoaderSettings
from sounding.data.dataset import TOKENIZER_NAME, Dataset
from sounding.data.fim import FimSettings
from sounding.data.loader import Loader, RowStream
from sounding.data.mixture import Mixture
from sounding.data.token_batch import StreamState, TokenBatch
from sounding.ops.loss import IGNORED
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import MOST_PADDING
from sounding.train.objective import B, BatchSource
from sounding.train.run_config import RunConfig
from sounding.train.synthetic import copying, repeats

_PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class HeldOut:
    """Batches for validation only, and the bytes of text that their targets stand for."""

    batches: list[TokenBatch]
    num_bytes: int


def open_source(run: RunConfig, rank: int = 0, world: int = 1) -> BatchSource[TokenBatch]:
    """The batches that a run trains on, for process `rank` of `world`.

    Together the processes read in a step what a single one would.

    Raises ValueError when the run names no dataset, or one whose tokens the model does not know.
    """
    data = run.data
    if data.source == "copying":
        whole = copying(run.model.vocab_size, data.sequence_tokens, data.rows, run.train.seed)
        return _dealt(whole, rank, world)
    if data.path is None and not data.mixture:
        raise ValueError(
            f"run {run.name!r} names no dataset: give one with --set data.path=FOLDER "
            "(`data tokenize` makes it), or several with data.mixture"
        )
    if data.source == "repeats" and data.path is not None:
        tokens = _dataset(data.path, run).tokens
        return _dealt(repeats(tokens, data.sequence_tokens, data.rows, run.train.seed), rank, world)
    stream: RowStream
    if data.path is not None:
        stream = _rows(_dataset(data.path, run), run, data.fim, data.split_rate)
    else:
        parts = [
            (share, _rows(_dataset(share.path, run), run, data.fim, data.split_rate))
            for share in data.mixture
        ]
        span_rows = run.train.steps * run.train.accumulation * data.rows
        stream = Mixture(parts, seed=run.train.seed, span_rows=span_rows)
    loader = Loader(stream, rows=data.rows, rank=rank, world=world)
    return lambda state: loader.batches(state, prefetch=_PREFETCH_BATCHES)


def open_held_out(run: RunConfig) -> HeldOut | None:
    """The first tokens of a run's held-out dataset, in order; None if it has none."""
    if run.data.source == "copying":
        return None  # random sequences never repeat: every step is a validation
    if run.data.held_out is None:
        return None
    rows = _rows(_dataset(run.data.held_out, run), run, FimSettings(rate=0.0), 0.0)
    loader = Loader(rows, rows=run.data.rows)
    batches: list[TokenBatch] = []
    num_bytes = num_tokens = 0
    for batch, _ in loader.batches(epochs=1):
        batches.append(TokenBatch(batch.tokens, batch.targets, batch.lengths))
        counted = batch.targets[batch.targets != IGNORED]
        num_bytes += len(rows.dataset.bytes_of(counted.numpy()))
        num_tokens += len(batch.tokens)
        if num_tokens >= run.data.validation_tokens:
            break
    return HeldOut(batches, num_bytes)


def files_beside(run: RunConfig, folder: Path) -> list[Path]:
    """The files that a model of this run needs beside its weights to read and write text.

    One of them, the order of prefix and suffix in its prompts, is written to the run's folder.
    """
    path = run.data.mixture[0].path if run.data.mixture else run.data.path
    if run.data.source == "copying" or path is None:
        return []
    files = [Path(path) / TOKENIZER_NAME]
    if run.data.fim.rate and run.data.fim.suffix_first >= 0.5:
        files += FimFormat(suffix_first=True).write(folder)
    return files


def _dealt(source: BatchSource[B], rank: int, world: int) -> BatchSource[B]:
    """Every world-th batch, with the state after the batches of all processes."""

    def open_stream(state: StreamState | None) -> Iterator[tuple[B, StreamState]]:
        stream = source(state)
        while pairs := list(itertools.islice(stream, world)):
            yield pairs[rank][0], pairs[-1][1]

    return open_stream


def _rows(dataset: Dataset, run: RunConfig, fim: FimSettings, split_rate: float) -> DataRows:
    settings = LoaderSettings(
        sequence_length=run.data.sequence_tokens,
        seed=run.train.seed,
        fim=fim,
        split_rate=split_rate,
    )
    return DataRows(dataset, settings)


def _dataset(path: str, run: RunConfig) -> Dataset:
    dataset = Dataset.open(path)
    tokens, known = dataset.tokenizer.num_tokens, run.model.vocab_size
    if tokens > known or known - tokens >= MOST_PADDING:
        raise ValueError(
            f"{path} has {tokens} different tokens and the model model.vocab_size = {known}: "
            f"tokenize with its vocabulary, or make a model for this one with "
            f"--set model.vocab_size={tokens}"
        )
    return dataset
