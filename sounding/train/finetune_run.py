"""Train a model further on a folder of code: its datasets, its settings, how many steps fit.

Every tenth document is held out, so that the effect is measured on text that was not trained on.
"""

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sounding.data import corpus
from sounding.data.dataset import read_info, tokenize
from sounding.data.documents import read_documents
from sounding.data.sources import folder_source
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import Tokenizer
from sounding.train.numerics import repeatable
from sounding.train.run_config import RunConfig, SparsityConfig, TrainConfig
from sounding.train.runs import nano
from sounding.train.source import open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer
from sounding.weights.checkpoint import read_config

MOST_EPOCHS = 4
"""More passes over little text make a model recite it."""
_HELD_OUT = 10  # one of so many documents
_LEAST_STEPS, _LEAST_TOKENS = 20, 2_000
_ROWS, _BATCHES = 2, 2  # sequences of a batch, batches of a step


@dataclass(frozen=True)
class FolderData:
    """The datasets made of a folder."""

    train: Path
    held_out: Path | None
    documents: int
    tokens: int


def prepare_data(
    folder: Path,
    model: Path,
    out: Path,
    *,
    suffixes: tuple[str, ...] = (".py",),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> FolderData:
    """Filter and tokenize the code in `folder` into `out/train` and `out/heldout`.

    `model` is the folder of the model, whose tokenizer is used. What `out` holds of an interrupted
    call is made anew. Raises ValueError where there is too little text to learn from.
    """
    stats = corpus.build(
        out / "corpus",
        [folder_source(folder, "train")],
        corpus.CorpusSettings(suffixes=suffixes),
        overwrite=True,
        progress=progress,
    )
    if not stats["documents"]:
        skipped = ", ".join(f"{reason} {n:,}" for reason, n in stats["skipped"].items())
        raise ValueError(
            f"{folder} holds no {' or '.join(suffixes)} file to learn from (left out: "
            f"{skipped or 'nothing'}); name another folder, or other suffixes with --suffix"
        )
    tokenizer = Tokenizer.from_file(model)
    texts = {"train": _texts(out / "corpus", held_out=False)}
    if stats["documents"] >= _HELD_OUT:
        texts["heldout"] = _texts(out / "corpus", held_out=True)
    for name, rows in texts.items():
        progress(f"tokenizing {name}", 0, 1)
        shutil.rmtree(out / name, ignore_errors=True)
        tokenize(rows, tokenizer, out / name, source=f"{name} documents of {folder.name}")
    info = read_info(out / "train")
    if info["tokens"] < _LEAST_TOKENS:
        raise ValueError(
            f"{folder} holds {info['tokens']:,} tokens of code, too few to learn from; at least "
            f"{_LEAST_TOKENS:,} are needed"
        )
    held_out = out / "heldout" if "heldout" in texts else None
    return FolderData(out / "train", held_out, info["documents"], info["tokens"])


def _texts(folder: Path, *, held_out: bool) -> Iterator[str]:
    """The documents to hold out, or the others."""
    for index, document in enumerate(read_documents(folder, "train")):
        if (index % _HELD_OUT == _HELD_OUT - 1) == held_out:
            yield document.text


def finetune_run(name: str, model: Path, data: FolderData, *, steps: int) -> RunConfig:
    """The settings of a run that trains `model` further: those of `nano`, at a quarter of its rate.

    Attention is sparse from the start, as the model will be used.
    """
    recipe = nano()
    suffix_first = 1.0 if FimFormat.from_folder(model).suffix_first else 0.0
    warmup = min(10, steps // 4)
    return RunConfig(
        name=name,
        model=read_config(model)[1],
        data=dataclasses.replace(
            recipe.data,
            path=str(data.train.resolve()),
            held_out=None if data.held_out is None else str(data.held_out.resolve()),
            batch_tokens=_ROWS * recipe.data.sequence_tokens,
            fim=dataclasses.replace(recipe.data.fim, suffix_first=suffix_first),
        ),
        train=TrainConfig(
            steps=steps,
            lr=recipe.train.lr / 4,
            final_lr=recipe.train.final_lr / 4,
            warmup_steps=warmup,
            decay_steps=steps - warmup,
            accumulation=_BATCHES,
            initial_weights=str(model.resolve()),
        ),
        optimizer=recipe.optimizer,
        objective=recipe.objective,
        sparsity=SparsityConfig(),
        log=dataclasses.replace(
            recipe.log,
            validate_every=steps,
            checkpoint_every=25,
            keep_checkpoints=1,
            milestone_every=0,
        ),
    )


def affordable_steps(run: RunConfig, data: FolderData, seconds: float) -> int:
    """How many steps of a run take `seconds` here, by the time that one takes.

    At most `MOST_EPOCHS` passes over the data, and at least a few steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = Trainer(
            run, Path(folder), open_source(run), Supervised(run), device=torch.device("cpu")
        )
        with repeatable(run.train.deterministic):
            trial.take_step()  # the first one also allocates and compiles
            start = time.monotonic()
            trial.take_step()
        fitting = seconds / (time.monotonic() - start)
    step_tokens = run.data.batch_tokens * run.train.accumulation
    useful = math.ceil(MOST_EPOCHS * data.tokens / step_tokens)
    return max(_LEAST_STEPS, min(int(fitting), useful))
