"""The measurements of the `eval` commands, as functions of an opened model."""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sounding.config import CSA, RATIO_NAMES, ModelConfig
from sounding.evaluation.measuring import Measured, collect, digest_of, filler, fingerprint
from sounding.loading import LoadedModel

if TYPE_CHECKING:
    from sounding.completion.gap import Kind
    from sounding.evaluation.lines import Item
    from sounding.tasks.code import CodeTask, Problem

Documents = list[tuple[str, str]]


def measure_bits(
    model: LoadedModel,
    documents: Documents,
    *,
    seed: int,
    out: Path | None,
    context_tokens: int,
    stride: int | None,
    batch_tokens: int,
    compressors: bool,
) -> Measured:
    """Bits per byte of documents, optionally compared with compressors."""
    from sounding.engine.scoring import token_logprobs
    from sounding.evaluation.bits import compressed_sizes, score_documents, summarise_bits
    from sounding.evaluation.results import Results

    stride = context_tokens // 2 if stride is None else stride
    settings = {
        "model": fingerprint(model.folder),
        "documents": digest_of([text for _, text in documents]),
        "seed": seed,
        "context_tokens": context_tokens,
        "stride": stride,
    }
    results = Results(out, settings)
    rows = score_documents(
        [document for document in documents if document[0] not in results],
        functools.partial(model.tokenizer.encode, named=False),
        model.tokenizer.bos_id,
        functools.partial(token_logprobs, model.network),
        context=context_tokens,
        stride=stride,
        batch_tokens=batch_tokens,
    )
    interrupt = collect(results, "bits per byte", len(documents), rows)
    done = results.select([name for name, _ in documents])
    names = {row["id"] for row in done}
    read = [text for name, text in documents if name in names]
    more = {"compressors": compressed_sizes(read)} if compressors else {}
    metrics = summarise_bits(done, seed=seed)
    return Measured("bpb", settings, metrics, len(done), len(documents), more, interrupt)


def measure_lines(
    model: LoadedModel,
    items: "Sequence[Item]",
    *,
    seed: int,
    out: Path | None,
    per_file: int,
    cursor: str,
    **options: Any,
) -> Measured:
    """Lines filled in, beside the two copyists. `how` are the options of `filler`."""
    from sounding.evaluation.lines import evaluate_lines, precision_table, summarise_lines
    from sounding.evaluation.results import Results

    fill = filler(model, "line", **options)
    settings = {
        "model": fingerprint(model.folder),
        "documents": digest_of([item.prefix + item.answer + item.suffix for item in items]),
        "seed": seed,
        "per_file": per_file,
        "cursor": cursor,
        **options,
    }
    results = Results(out, settings)
    rows = evaluate_lines([item for item in items if item.id not in results], fill, seed=seed)
    interrupt = collect(results, "lines", len(items), rows)
    done = results.select([item.id for item in items])
    metrics = summarise_lines(done, seed=seed)
    more = {"precision": precision_table(done)}
    return Measured("lines", settings, metrics, len(done), len(items), more, interrupt)


def measure_programs(
    title: str,
    model: LoadedModel,
    task: "CodeTask",
    until: str,
    *,
    samples: int,
    ks: Sequence[int],
    notes: dict[str, Any],
    seed: int,
    out: Path | None,
    timeout: float,
    workers: int,
    unsafe: bool,
    **options: Any,
) -> Measured:
    """Programs written and run. `how` are the options of `filler`, `notes` further settings.

    Problems that are not fair are left out, and named in `left_out`.
    """
    from sounding.evaluation.execution import attempt_id, evaluate_task, summarise_attempts
    from sounding.evaluation.results import Results

    kind: Kind | None = "line" if until == "line" else "block" if until == "block" else None
    fill = filler(model, kind, **options)
    settings = {
        "model": fingerprint(model.folder),
        "problems": digest_of([json.dumps(asdict(problem)) for problem in task.problems]),
        "seed": seed,
        "samples": samples,
        "until": until,
        "timeout": timeout,
        "isolated": not unsafe,
        **notes,
        **options,
    }
    results = Results(out, settings)
    left_out = _left_out(task, workers)
    fair = [index for index in range(len(task)) if task[index].task_id not in left_out]
    attempts = [(index, sample) for index in fair for sample in range(samples)]
    names = [attempt_id(task[index].task_id, sample) for index, sample in attempts]
    left = [attempt for attempt, name in zip(attempts, names, strict=True) if name not in results]
    rows = evaluate_task(task, left, fill, seed=seed, workers=workers)
    interrupt = collect(results, title, len(attempts), rows)
    done = results.select(names)
    metrics = summarise_attempts(done, samples=samples, ks=ks, seed=seed)
    more = {
        "outcomes": dict(Counter(row["reason"] for row in done).most_common()),
        "left_out": [{"left out": name, "because": why} for name, why in left_out.items()],
    }
    return Measured(title, settings, metrics, len(done), len(attempts), more, interrupt)


def _left_out(task: "CodeTask", workers: int) -> dict[str, str]:
    """Map the names of unfair problems to the reason. Raises ValueError if no problem is fair."""
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
        raise ValueError(f"no problem can be judged; the first is {name}: {why}")
    return left_out


def natural_end(problems: "Sequence[Problem]") -> str:
    """Default end of answers: "line" if all canonical solutions are single lines, else "end"."""
    single = all("\n" not in problem.canonical_solution.strip() for problem in problems)
    return "line" if single else "end"


def measure_mechanisms(
    model: LoadedModel,
    documents: Sequence[tuple[str, list[int]]],
    *,
    seed: int,
    out: Path | None,
    context_tokens: int,
    at_least: int,
    sizes: Sequence[int],
) -> Measured:
    """Drafts, expert load and the indexer's choice on documents as tokens."""
    from sounding.loading import load_reference

    reference = load_reference(model.folder)
    from sounding.evaluation import mechanisms
    from sounding.evaluation.observe import observe
    from sounding.evaluation.results import Results

    settings = {
        "model": fingerprint(model.folder),
        "documents": digest_of([repr(document) for document in documents]),
        "seed": seed,
        "context_tokens": context_tokens,
        "at_least": at_least,
        "sizes": list(sizes),
    }
    results = Results(out, settings)
    rows = mechanisms.observe_documents(
        [document for document in documents if document[0] not in results],
        model.tokenizer.bos_id,
        lambda tokens: observe(reference, tokens, sizes),
    )
    interrupt = collect(results, "mechanisms", len(documents), rows)
    done = results.select([name for name, _ in documents])
    more = {
        "expert_load": mechanisms.load_table(done, _layers(model.network.config)) if done else [],
        "indexers": mechanisms.recall_table(done, sizes, seed=seed),
    }
    metrics = mechanisms.summarise_mechanisms(done, sizes, seed=seed)
    return Measured("mechanisms", settings, metrics, len(done), len(documents), more, interrupt)


def recall_sizes(config: ModelConfig, requested: Sequence[int] = ()) -> tuple[int, ...]:
    """Numbers of selected entries to measure: the requested ones, or the model's own and fewer."""
    if CSA not in config.ratios:
        return ()
    fewer = (size for size in (16, 32, 64) if size < config.index_topk)
    return tuple(sorted(set(requested or (*fewer, config.index_topk))))


def _layers(config: ModelConfig) -> list[dict[str, Any]]:
    rows = [
        {
            "layer": str(layer),
            "attention": RATIO_NAMES[ratio],
            "router": "hash" if layer < config.num_hash_layers else "scored",
        }
        for layer, ratio in enumerate(config.ratios)
    ]
    drafts = ({"layer": f"MTP {k}", "attention": RATIO_NAMES[0], "router": "scored"}
              for k in range(1, config.num_mtp_layers + 1))  # fmt: skip
    return [*rows, *drafts]
