"""Reports on a model's mechanisms on held-out text: acceptance of drafts, balance of experts, and
how well the indexer picks the entries that attention would read.

Only long documents count: with at most index_topk visible entries, all are selected.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sounding.config import CSA, RATIO_NAMES, ModelConfig
from sounding.evaluation.eval_options import EvalOptions
from sounding.evaluation.measuring import Measured, collect, digest_of, fingerprint
from sounding.evaluation.results import Results
from sounding.evaluation.statistics import Estimate, bootstrap
from sounding.loading import LoadedModel

Row = dict[str, Any]
Document = tuple[str, str]  # name, text


def long_documents(
    documents: Sequence[Document],
    encode: Callable[[str], list[int]],
    *,
    at_least: int,
    at_most: int,
) -> Iterator[tuple[str, list[int]]]:
    """Names and first `at_most` tokens of the documents with at least `at_least` tokens."""
    for name, text in documents:
        if len(text.encode()) >= at_least:  # a token is at least a byte
            tokens = encode(text)
            if len(tokens) >= at_least:
                yield name, tokens[:at_most]


def observe_documents(
    documents: Sequence[tuple[str, list[int]]], bos: int, observe: Callable[[list[int]], Row]
) -> Iterator[Row]:
    """Yield a row per finished document: its id and the counts of `observe`."""
    for name, tokens in documents:
        yield {"id": name, **observe([bos, *tokens])}


def summarise_mechanisms(
    rows: Sequence[Row], sizes: Sequence[int], *, seed: int
) -> dict[str, Estimate]:
    """Shares of accepted drafts, and the indexers' recall over all CSA layers.

    Intervals resample documents.
    """
    found = {}
    blocks = max((len(row["drafts"]) for row in rows), default=0)
    for depth in range(blocks):
        name = "mtp_acceptance" if blocks == 1 else f"mtp_acceptance_{depth + 1}"
        counts = [(float(a), float(d)) for a, d in (row["drafts"][depth] for row in rows)]
        found[name] = bootstrap(counts, seed=seed)
    if any(row["recall"] for row in rows):
        for number, size in enumerate(sizes):
            sums = [_sums(row, number) for row in rows]
            found[f"index_recall@{size}"] = bootstrap([(s[1], s[0]) for s in sums], seed=seed)
    return found


def _sums(row: Row, number: int) -> list[float]:
    """Sums over the CSA layers of one document, for one number of picked entries."""
    layers = (sums[number] for sums in row["recall"].values())
    return [math.fsum(values) for values in zip(*layers, strict=True)]


def load_table(rows: Sequence[Row], layers: Sequence[dict[str, Any]]) -> list[Row]:
    """Balance of expert load per layer; `layers` describe them, MTP blocks last.

    Gives the entropy of the load as a share of its maximum (1 is even), and the load of the most
    and the least used expert relative to the mean.
    """
    table = []
    for number, layer in enumerate(layers):
        load = np.sum([row["loads"][number] for row in rows], axis=0, dtype=np.float64)
        share = load / max(1.0, load.sum())
        used = share[share > 0]
        entropy = -math.fsum(used * np.log(used)) / math.log(max(2, len(share)))
        most, least = (float(pick(share)) * len(share) for pick in (np.max, np.min))
        table.append({**layer, "load_entropy": entropy, "most": most, "least": least})
    return table


def recall_table(rows: Sequence[Row], sizes: Sequence[int], *, seed: int) -> list[Row]:
    """Quality of each CSA layer's indexer, for each number of selected entries.

    `recall`: share of the most attended entries that are picked, with its interval; `chance`:
    recall of a random selection; `covered`: share of attention on entries that goes to picked ones;
    `coverable`: its maximum for that number. Only queries that see more entries count.
    """
    table = []
    for layer in sorted({name for row in rows for name in row["recall"]}, key=int):
        for number, size in enumerate(sizes):
            sums = [row["recall"][layer][number] for row in rows]
            queries, _, chance, covered, coverable = np.sum(sums, axis=0).tolist()
            if not queries:
                continue
            recall = bootstrap([(s[1], s[0]) for s in sums], seed=seed)
            table.append(
                {
                    "layer": int(layer),
                    "picked": size,
                    "queries": int(queries),
                    "recall": recall.value,
                    "low": recall.low,
                    "high": recall.high,
                    "chance": chance / queries,
                    "covered": covered / queries,
                    "coverable": coverable / queries,
                }
            )
    return table


def measure_mechanisms(
    model: LoadedModel,
    documents: Sequence[tuple[str, list[int]]],
    options: EvalOptions,
    *,
    at_least: int,
    sizes: Sequence[int],
) -> Measured:
    """Measure drafts, expert load and the indexer's selection on tokenized documents."""
    from sounding.evaluation.observe import observe
    from sounding.loading import load_reference

    reference = load_reference(model.folder)
    settings = {
        "model": fingerprint(model.folder),
        "documents": digest_of([repr(document) for document in documents]),
        "seed": options.seed,
        "context_tokens": options.context_tokens,
        "at_least": at_least,
        "sizes": list(sizes),
    }
    results = Results(options.out, settings)
    rows = observe_documents(
        [document for document in documents if document[0] not in results],
        model.tokenizer.bos_id,
        lambda tokens: observe(reference, tokens, sizes),
    )
    interrupt = collect(results, "mechanisms", len(documents), rows)
    done = results.select([name for name, _ in documents])
    more = {
        "expert_load": load_table(done, _layers(model.network.config)) if done else [],
        "indexers": recall_table(done, sizes, seed=options.seed),
    }
    metrics = summarise_mechanisms(done, sizes, seed=options.seed)
    return Measured("mechanisms", settings, metrics, len(done), len(documents), more, interrupt)


def recall_sizes(config: ModelConfig, requested: Sequence[int] = ()) -> tuple[int, ...]:
    """Numbers of selected entries to measure: as requested, or the model's own and smaller ones."""
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
