"""Measure an open model: bits per byte, infilled lines, programs that pass their tests.

mechanisms.py measures the network's mechanisms.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rich.progress import MofNCompleteColumn

from sounding.evaluation.eval_options import EvalOptions
from sounding.evaluation.model import Filled
from sounding.loading import LoadedModel
from sounding.progress import progress_bar

if TYPE_CHECKING:
    from sounding.completion.gap import Kind
    from sounding.evaluation.lines import Item
    from sounding.evaluation.model import FillGaps
    from sounding.evaluation.results import Results
    from sounding.evaluation.statistics import Estimate
    from sounding.tasks.code import CodeTask, Judge, Problem

_T = TypeVar("_T")


# --------------------------------------------------------------------------------------------------
# Input


def read_texts(
    path: Path, suffixes: Sequence[str], warn: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Names and texts: of a file, of a folder's files, or of a corpus's held-out split.

    Skips texts that are empty or not UTF-8. Calls `warn` with the number of those not UTF-8.
    """
    if path.is_dir() and list(path.glob("heldout-*.jsonl.xz")):
        from sounding.data.documents import read_documents

        documents = read_documents(path, "heldout")
        return [(f"{document.package}/{document.path}", document.text) for document in documents]
    paths = _files_below(path, suffixes) if path.is_dir() else [path]
    texts, skipped = [], 0
    for file in paths:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            skipped += 1
            continue
        if text.strip():
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            texts.append((name, text))
    if skipped:
        warn(f"skipped {skipped} files that are not UTF-8")
    if not texts:
        raise ValueError(f"{path} has no text in files named {', '.join(suffixes)}; see --suffix")
    return texts


def _files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes in order of name, without those in hidden folders."""
    found = []
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(above, name) for name in names if not name.startswith("."))
        found += [file for file in visible if file.suffix in suffixes and file.is_file()]
    return sorted(found)


def limited(items: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """All items, or `limit` random ones in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    rng = random.Random(seed)
    drawn = sorted(range(len(items)), key=lambda _: rng.random())[:limit]
    return [items[index] for index in sorted(drawn)]


def fingerprint(folder: Path) -> str:
    """Identify a checkpoint by its config and its shards' names, sizes and first bytes."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for shard in sorted(folder.glob("*.safetensors")):
        digest.update(f"{shard.name} {shard.stat().st_size}".encode())
        with shard.open("rb") as file:
            # The header, and weights of the first tensors, which training changes.
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def digest_of(texts: Sequence[str]) -> str:
    """A digest that identifies the evaluated items."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------
# Set up


def filler(
    model: LoadedModel, kind: "Kind | None", options: EvalOptions, adapter: Path | None = None
) -> "FillGaps":
    """Return a function that fills gaps with the model and the adapter in a folder.

    Raises ValueError for invalid options.
    """
    from sounding.completion.completer import Completer, FilledGap
    from sounding.completion.gap import Gap
    from sounding.completion.prompt import CompletionSettings
    from sounding.engine.sampling import SamplingParams

    settings = CompletionSettings(
        max_tokens=options.max_tokens,
        context_tokens=options.context_tokens,
        heal=options.heal,
        copying=options.copying,
        candidates=options.candidates,
    )
    params = SamplingParams(temperature=options.temperature, top_p=options.top_p)
    batch = model.batch(options.width, adapter)
    completer = Completer(model.tokenizer, model.fim_format, batch)
    python = bool(options.syntax)

    def fill(gaps: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[Filled]:
        samplings = [dataclasses.replace(params, seed=seed) for seed in seeds]
        plans = [completer.plan(Gap(*gap), kind, settings, python=python) for gap in gaps]
        for number, found in completer.run(plans, samplings):
            best = found[0] if found else FilledGap("", 0, False)
            sure = best.confidence >= options.min_confidence
            yield Filled(number, best.text if sure else "", best.confidence)

    return fill


def sandbox(timeout: float, unsafe: bool) -> "Judge":
    """Return a judge that runs tests on answers. Raises NoIsolation if it cannot isolate them."""
    from sounding.sandbox.run import Limits, require_isolation
    from sounding.sandbox.trial import judge

    limits = Limits(wall_seconds=timeout, cpu_seconds=max(1, math.ceil(timeout)))
    if not unsafe:
        require_isolation()
    return lambda trial: judge(trial, limits, isolate=not unsafe)


# --------------------------------------------------------------------------------------------------
# Run


def collect(
    results: "Results", title: str, total: int, rows: Iterator[dict[str, Any]]
) -> KeyboardInterrupt | None:
    """Store rows as they finish, with a progress bar on stderr; Ctrl-C loses none."""
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
    """Result of an evaluation, with its settings."""

    evaluation: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, "Estimate"]
    done: int
    total: int
    more: Mapping[str, Any]
    """Tables in addition to the metrics: rows, or counts by name."""
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


# --------------------------------------------------------------------------------------------------
# Measurements


def measure_bits(
    model: LoadedModel,
    documents: Sequence[tuple[str, str]],
    options: EvalOptions,
    *,
    stride: int | None = None,
    batch_tokens: int = 4096,
    compressors: bool = False,
) -> Measured:
    """Bits per byte of documents, optionally compared with compressors."""
    from sounding.engine.scoring import token_logprobs
    from sounding.evaluation.bits import compressed_sizes, score_documents, summarise_bits
    from sounding.evaluation.results import Results

    stride = options.context_tokens // 2 if stride is None else stride
    settings = {
        "model": fingerprint(model.folder),
        "documents": digest_of([text for _, text in documents]),
        "seed": options.seed,
        "context_tokens": options.context_tokens,
        "stride": stride,
    }
    results = Results(options.out, settings)
    rows = score_documents(
        [document for document in documents if document[0] not in results],
        functools.partial(model.tokenizer.encode, named=False),
        model.tokenizer.bos_id,
        functools.partial(token_logprobs, model.network),
        context=options.context_tokens,
        stride=stride,
        batch_tokens=batch_tokens,
    )
    interrupt = collect(results, "bits per byte", len(documents), rows)
    done = results.select([name for name, _ in documents])
    names = {row["id"] for row in done}
    read = [text for name, text in documents if name in names]
    more = {"compressors": compressed_sizes(read)} if compressors else {}
    metrics = summarise_bits(done, seed=options.seed)
    return Measured("bpb", settings, metrics, len(done), len(documents), more, interrupt)


def measure_lines(
    model: LoadedModel,
    items: "Sequence[Item]",
    options: EvalOptions,
    *,
    per_file: int,
    cursor: str,
) -> Measured:
    """Single-line infilling, with the two copyists as baselines."""
    from sounding.evaluation.lines import evaluate_lines, precision_table, summarise_lines
    from sounding.evaluation.results import Results

    fill = filler(model, "line", options)
    settings = {
        "model": fingerprint(model.folder),
        "documents": digest_of([item.prefix + item.answer + item.suffix for item in items]),
        "seed": options.seed,
        "per_file": per_file,
        "cursor": cursor,
        **options.answers(),
    }
    results = Results(options.out, settings)
    left = [item for item in items if item.id not in results]
    rows = evaluate_lines(left, fill, seed=options.seed)
    interrupt = collect(results, "lines", len(items), rows)
    done = results.select([item.id for item in items])
    metrics = summarise_lines(done, seed=options.seed)
    more = {"precision": precision_table(done)}
    return Measured("lines", settings, metrics, len(done), len(items), more, interrupt)


def measure_programs(
    title: str,
    model: LoadedModel,
    task: "CodeTask",
    until: str,
    options: EvalOptions,
    notes: Mapping[str, Any] | None = None,
) -> Measured:
    """Programs by the model, graded by their tests. `notes` are further settings.

    Unfair problems are omitted and named in `left_out`.
    """
    from sounding.evaluation.execution import attempt_id, evaluate_task, summarise_attempts
    from sounding.evaluation.results import Results

    kind: Kind | None = "line" if until == "line" else "block" if until == "block" else None
    fill = filler(model, kind, options)
    settings = _program_settings(model, task, until, options, notes)
    results = Results(options.out, settings)
    left_out = _left_out(task, options.workers)
    fair = [index for index in range(len(task)) if task[index].task_id not in left_out]
    attempts = [(index, sample) for index in fair for sample in range(options.samples)]
    names = [attempt_id(task[index].task_id, sample) for index, sample in attempts]
    left = [attempt for attempt, name in zip(attempts, names, strict=True) if name not in results]
    rows = evaluate_task(task, left, fill, seed=options.seed, workers=options.workers)
    interrupt = collect(results, title, len(attempts), rows)
    done = results.select(names)
    metrics = summarise_attempts(done, samples=options.samples, ks=options.ks, seed=options.seed)
    more = {
        "outcomes": dict(Counter(row["reason"] for row in done).most_common()),
        "left_out": [{"left out": name, "because": why} for name, why in left_out.items()],
    }
    return Measured(title, settings, metrics, len(done), len(attempts), more, interrupt)


def _program_settings(
    model: LoadedModel,
    task: "CodeTask",
    until: str,
    options: EvalOptions,
    notes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "model": fingerprint(model.folder),
        "problems": digest_of([json.dumps(dataclasses.asdict(it)) for it in task.problems]),
        "seed": options.seed,
        "samples": options.samples,
        "until": until,
        "timeout": options.timeout,
        "isolated": not options.unsafe,
        **(notes or {}),
        **options.answers(),
    }


def _left_out(task: "CodeTask", workers: int) -> dict[str, str]:
    """Map names of unfair problems to the reasons. Raises ValueError if no problem is fair."""
    from sounding.evaluation.results import Results

    judged = (
        {"id": task[index].task_id, "because": why}
        for index, why in enumerate(task.unfairness(workers))
    )
    checked = Results(None, {})
    interrupt = collect(checked, "own solutions", len(task), judged)
    if interrupt is not None:
        raise interrupt
    left_out = {name: row["because"] for name, row in checked.rows.items() if row["because"]}
    if len(left_out) == len(task):
        name, why = next(iter(left_out.items()))
        raise ValueError(f"no problem can be graded; the first is {name}: {why}")
    return left_out


def natural_end(problems: "Sequence[Problem]") -> str:
    """Default end of answers: "line" if all canonical solutions are single lines, else "end"."""
    single = all("\n" not in problem.canonical_solution.strip() for problem in problems)
    return "line" if single else "end"
