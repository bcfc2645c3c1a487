"""The common part of all evaluations: reading texts, opening a model, the progress loop."""

import dataclasses
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rich.progress import MofNCompleteColumn

from sounding.loading import LoadedModel
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from sounding.completion.endings import Kind
    from sounding.evaluation.model import FillGaps
    from sounding.evaluation.results import Results
    from sounding.evaluation.statistics import Estimate
    from sounding.tasks.code import Judge

_T = TypeVar("_T")


# --------------------------------------------------------------------------------------------------
# Input


def read_texts(
    path: Path, suffixes: Sequence[str], warn: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Names and texts: of a file, of a folder's files, or of a corpus's held-out split.

    Texts that are empty or not UTF-8 are skipped, and `warn` is called with their count.
    """
    if path.is_dir() and list(path.glob("heldout-*.jsonl.xz")):
        from sounding.data.documents import read_documents

        documents = read_documents(path, "heldout")
        return [(f"{document.package}/{document.path}", document.text) for document in documents]
    paths = _files_below(path, suffixes) if path.is_dir() else [path]
    texts, skipped = [], 0
    for file in paths:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            skipped += 1
            continue
        if text.strip():
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            texts.append((name, text))
    if skipped:
        warn(f"left out {skipped} files that are not UTF-8")
    if not texts:
        raise ValueError(f"{path} has no text in files named {', '.join(suffixes)}; see --suffix")
    return texts


def _files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes in order of their names; hidden folders are not entered."""
    found = []
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(above, name) for name in names if not name.startswith("."))
        found += [file for file in visible if file.suffix in suffixes and file.is_file()]
    return sorted(found)


def limited(items: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """All, or `limit` of them drawn at random, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    rng = random.Random(seed)
    drawn = sorted(range(len(items)), key=lambda _: rng.random())[:limit]
    return [items[index] for index in sorted(drawn)]


def fingerprint(folder: Path) -> str:
    """Identify a checkpoint by its config, and the names, sizes and first bytes of its shards."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for shard in sorted(folder.glob("*.safetensors")):
        digest.update(f"{shard.name} {shard.stat().st_size}".encode())
        with shard.open("rb") as file:
            # The header, and weights of the first tensors, which training changes.
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def digest_of(texts: Sequence[str]) -> str:
    """Identifies what was evaluated."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------
# Wiring


def filler(
    model: LoadedModel,
    kind: "Kind | None",
    *,
    max_tokens: int,
    context_tokens: int,
    temperature: float,
    top_p: float,
    width: int,
    heal: bool,
    copying: bool,
    syntax: bool = False,
    adapter: str | None = None,
) -> "FillGaps":
    """The model as something that fills gaps; refuses bad settings now and not later.

    `adapter` is the file of one to use, by its folder.
    """
    from sounding.completion.completer import Completer
    from sounding.completion.endings import Gap
    from sounding.completion.prompt import CompletionSettings
    from sounding.engine.sampling import SamplingParams

    settings = CompletionSettings(
        max_tokens=max_tokens, context_tokens=context_tokens, heal=heal, copying=copying
    )
    params = SamplingParams(temperature=temperature, top_p=top_p)
    completer = Completer(model.tokenizer, model.batch(width, adapter))

    def fill(gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        samplings = [dataclasses.replace(params, seed=seed) for seed in seeds]
        return completer.fill([Gap(*gap) for gap in gaps], kind, settings, samplings, python=syntax)

    return fill


def sandbox(timeout: float, unsafe: bool) -> "Judge":
    """Return the judge that runs tests against answers. Raises NoIsolation if it cannot isolate."""
    import math

    from sounding.sandbox.run import Limits, require_isolation
    from sounding.sandbox.trial import judge

    limits = Limits(wall_seconds=timeout, cpu_seconds=max(1, math.ceil(timeout)))
    if not unsafe:
        require_isolation()
    return lambda trial: judge(trial, limits, isolate=not unsafe)


# --------------------------------------------------------------------------------------------------
# The loop and the report


def collect(
    results: "Results", title: str, total: int, rows: Iterator[dict[str, Any]]
) -> KeyboardInterrupt | None:
    """Keep rows as they come, with a bar on stderr; Ctrl-C ends it and loses nothing."""
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(title, total=total, completed=len(results.rows))
        try:
            for row in rows:
                results.add(row)
                bar.update(task, advance=1)
        except KeyboardInterrupt as interrupt:
            return interrupt
    return None


class Measured(NamedTuple):
    """The result of an evaluation, with its settings."""

    evaluation: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, "Estimate"]
    done: int
    total: int
    more: Mapping[str, Any]
    """Tables beside the metrics: rows, or counts by name."""
    interrupt: KeyboardInterrupt | None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "evaluation": self.evaluation,
            "settings": self.settings,
            "done": self.done,
            "total": self.total,
            "metrics": {name: estimate._asdict() for name, estimate in self.metrics.items()},
            **self.more,
        }
