"""Where batches come from: what the trainer asks of a source, and the sources there are."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from sounding.data.dataset import TOKENIZER_NAME, Dataset
from sounding.data.fim import FimSettings
from sounding.data.loader import Loader, LoaderSettings
from sounding.files import write_file
from sounding.ops.loss import IGNORED
from sounding.text.tokenizer import CONFIG_NAME, MOST_PADDING, SUFFIX_FIRST
from sounding.train.run_config import RunConfig

_PREFETCH_BATCHES = 4

State = dict[str, Any]
"""A JSON value that says where a source stands."""


@runtime_checkable
class Batch(Protocol):
    """Sequences laid end to end."""

    @property
    def tokens(self) -> Int[Tensor, " t"]:
        """Token ids."""

    @property
    def targets(self) -> Int[Tensor, " t"]:
        """The token that follows each one, or -100 where none counts."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence; sequences do not see each other."""

    @property
    def middles(self) -> Sequence[int]:
        """Tokens at the end of each sequence that fill a gap in what stands before; may be empty
        where there are none."""


Source = Callable[[State | None], Iterator[tuple[Batch, State]]]
"""Opens the stream of batches, from its beginning or after the batch that came with a state."""


@dataclass(frozen=True)
class Tokens:
    """A batch as plain tensors."""

    tokens: Int[Tensor, " t"]
    targets: Int[Tensor, " t"]
    lengths: list[int]
    middles: Sequence[int] = ()


def filled(batch: Batch, size: int) -> Batch:
    """The batch with `size` tokens: what packing left over is one more sequence, without targets.

    Matrix products are compiled for each shape they meet, so all batches have to have one.
    """
    missing = size - len(batch.tokens)
    if missing <= 0:
        return batch
    return Tokens(
        torch.cat((batch.tokens, batch.tokens.new_zeros(missing))),
        torch.cat((batch.targets, batch.targets.new_full((missing,), IGNORED))),
        [*batch.lengths, missing],
        [*batch.middles, 0] if batch.middles else (),
    )


@dataclass(frozen=True)
class HeldOut:
    """Batches that are never trained on, and how many bytes of text their targets stand for."""

    batches: list[Tokens]
    num_bytes: int


def open_source(run: RunConfig, rank: int = 0, world: int = 1) -> Source:
    """The source that a run trains on, as one of `world` processes sees it.

    All of them together see in a step what a single one would.

    Raises ValueError when the run names no dataset, or one whose tokens the model does not know.
    """
    data = run.data
    if data.source == "copying":
        whole = copying(run.model.vocab_size, data.sequence_tokens, data.rows, run.train.seed)
        return _dealt(whole, rank, world)
    if data.path is None:
        raise ValueError(
            f"run {run.name!r} names no dataset: give one with --set data.path=FOLDER "
            "(`data tokenize` makes it)"
        )
    if data.source == "repeats":
        tokens = _dataset(data.path, run).tokens
        return _dealt(repeats(tokens, data.sequence_tokens, data.rows, run.train.seed), rank, world)
    dataset = _dataset(data.path, run)
    if data.more is not None:
        dataset = dataset.joined(_dataset(data.more, run), data.more_times)
    loader = _loader(dataset, run, data.fim, data.split_rate, rank, world)
    return lambda state: loader.batches(state, prefetch=_PREFETCH_BATCHES)


def open_held_out(run: RunConfig) -> HeldOut | None:
    """What a run is validated on: the first tokens of its held-out dataset, in reading order."""
    if run.data.source == "copying":
        return None  # invented sequences never repeat: every step is a validation
    if run.data.held_out is None:
        return None
    loader = _loader(_dataset(run.data.held_out, run), run, FimSettings(rate=0.0), 0.0)
    batches: list[Tokens] = []
    num_bytes = held = 0
    for batch, _ in loader.batches(epochs=1):
        batches.append(Tokens(batch.tokens, batch.targets, batch.lengths))
        counted = batch.targets[batch.targets != IGNORED]
        num_bytes += len(loader.dataset.bytes_of(counted.numpy()))
        held += len(batch.tokens)
        if held >= run.data.validation_tokens:
            break
    return HeldOut(batches, num_bytes)


def files_beside(run: RunConfig, folder: Path) -> list[Path]:
    """What a model of this run needs beside its weights to read and write text.

    The order in which it learns to fill gaps is written to the run's folder first.
    """
    if run.data.source == "copying" or run.data.path is None:
        return []
    files = [Path(run.data.path) / TOKENIZER_NAME]
    if run.data.fim.rate and run.data.fim.suffix_first >= 0.5:
        folder.mkdir(parents=True, exist_ok=True)
        order = folder / CONFIG_NAME
        write_file(order, json.dumps({SUFFIX_FIRST: True}).encode())
        files.append(order)
    return files


def _dealt(source: Source, rank: int, world: int) -> Source:
    """Every world-th batch, with the state after all of its round."""

    def open_stream(state: State | None) -> Iterator[tuple[Batch, State]]:
        stream = source(state)
        while pairs := list(itertools.islice(stream, world)):
            yield pairs[rank][0], pairs[-1][1]

    return open_stream


def _loader(
    dataset: Dataset,
    run: RunConfig,
    fim: FimSettings,
    split_rate: float,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    data = run.data
    settings = LoaderSettings(
        sequence_length=data.sequence_tokens,
        seed=run.train.seed,
        fim=fim,
        split_rate=split_rate,
    )
    return Loader(dataset, settings, rows=data.rows, rank=rank, world=world)


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


def copying(vocab_size: int, sequence_tokens: int, rows: int, seed: int) -> Source:
    """Sequences of random tokens said twice; only the second time is a target.

    A network that looks back far enough brings the loss to 0, one that does not stays at
    ln(vocab_size).
    """
    half = sequence_tokens // 2

    def open_stream(state: State | None) -> Iterator[tuple[Tokens, State]]:
        index = 0 if state is None else int(state["batch"])
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            said = torch.randint(2, vocab_size, (rows, half), generator=generator)
            tokens = torch.cat((said, said), 1)
            targets = torch.roll(tokens, -1, 1)
            targets[:, : half - 1] = IGNORED
            targets[:, -1] = IGNORED
            index += 1
            yield Tokens(tokens.flatten(), targets.flatten(), [2 * half] * rows), {"batch": index}

    return open_stream


def repeats(tokens: NDArray[np.uint16], sequence_tokens: int, rows: int, seed: int) -> Source:
    """Sequences of tokens drawn from `tokens` in no order, in which one stretch is said twice.

    Its length, its place and the distance are drawn as well; only the second time is a target.
    What comes next cannot be told from the tokens before, only by finding their first time.
    """
    shortest, longest = max(2, sequence_tokens // 8), sequence_tokens // 2

    def sequence(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        said = tokens[rng.integers(len(tokens), size=sequence_tokens)].astype(np.int64)
        length = int(rng.integers(shortest, longest, endpoint=True))
        first, gap = np.sort(rng.integers(sequence_tokens - 2 * length + 1, size=2))
        second = gap + length  # at or after first + length
        said[second : second + length] = said[first : first + length]
        targets = np.full(sequence_tokens, IGNORED)
        targets[second : second + length - 1] = said[second + 1 : second + length]
        return said, targets

    def open_stream(state: State | None) -> Iterator[tuple[Tokens, State]]:
        index = 0 if state is None else int(state["batch"])
        while True:
            rng = np.random.default_rng((seed, index))
            pairs = [sequence(rng) for _ in range(rows)]
            said, targets = (
                torch.from_numpy(np.concatenate(part)) for part in zip(*pairs, strict=True)
            )
            index += 1
            yield Tokens(said, targets, [sequence_tokens] * rows), {"batch": index}

    return open_stream
