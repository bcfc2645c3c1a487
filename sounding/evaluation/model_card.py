"""Generate the model card of a trained model from the files of its training.

Every number comes from a file: the run's settings and metrics, the corpus's statistics, the model's
headers, or results of `eval ... --json`. Only the notes are written by hand.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sounding.config import RATIO_NAMES
from sounding.data.corpus import read_stats
from sounding.data.dataset import read_info
from sounding.data.shares import Share
from sounding.evaluation.measuring import fingerprint
from sounding.loading import open_checkpoint
from sounding.train.metrics import METRICS_NAME, MetricsRow, read_metrics
from sounding.train.resolve import RUN_NAME
from sounding.train.run_config import RunConfig
from sounding.train.runs import parse_run
from sounding.train.saved_models import CHECKPOINTS_NAME
from sounding.weights.description import Description, describe_checkpoint
from sounding.weights.layout import count_parameters

_PLACES = 1000  # quarters of a run after which changing weights are listed
TRAINING_NAME = "training.json"  # next to a shipped model: names its run's step


class Facts(NamedTuple):
    """The facts about a trained model that its card reports."""

    run: RunConfig
    step: int
    tokens: int
    rows: list[MetricsRow]
    """Rows of metrics up to that step."""
    description: Description
    datasets: Sequence[tuple[Share, dict[str, Any]]]
    """Datasets of the run, with the descriptions by `data tokenize`; one for a single dataset."""
    corpus: dict[str, Any]
    results: list[dict[str, Any]]
    notes: Sequence[str]


def collect_facts(
    folder: Path, model: Path, corpus: Path, results: Sequence[Path], notes: Sequence[str]
) -> Facts:
    """Read the files of a run, its model, its corpus, and results of evaluations.

    Raises ValueError if a file is missing or a result belongs to another model.
    """
    if not (folder / RUN_NAME).is_file():
        raise ValueError(f"{folder} has no {RUN_NAME}; give the folder of a run")
    run = parse_run(json.loads((folder / RUN_NAME).read_text(encoding="utf-8")))
    step, tokens = _moment(model)
    mark = fingerprint(model)
    return Facts(
        run=run,
        step=step,
        tokens=tokens,
        rows=[row for row in read_metrics(folder / METRICS_NAME) if row["step"] <= step],
        description=describe_checkpoint(open_checkpoint(model)),
        datasets=[(share, read_info(Path(share.path))) for share in _shares(run)],
        corpus=read_stats(corpus),
        results=[result for file in results for result in _read_results(file, mark)],
        notes=notes,
    )


def _shares(run: RunConfig) -> Sequence[Share]:
    """The mixture that a run reads; a single dataset is a mixture of one."""
    if run.data.path is None:
        return run.data.mixture
    return [Share(name=Path(run.data.path).name, path=run.data.path, weight=1.0)]


def _moment(model: Path) -> tuple[int, int]:
    """The step and the number of tokens after which a model's weights were saved."""
    for path in (model / TRAINING_NAME, model.parent / "state.json"):
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            return int(state["step"]), int(state["tokens"])
    raise ValueError(
        f"{model} has no {TRAINING_NAME} with the step of its run; `scripts/ship` writes it"
    )


def _read_results(path: Path, mark: str) -> Iterable[dict[str, Any]]:
    """Read concatenated JSON objects, each a result of this model or of the whole run."""
    text, decoder = path.read_text(encoding="utf-8").strip(), json.JSONDecoder()
    while text:
        try:
            result, end = decoder.raw_decode(text)
            name, settings = result["evaluation"], result["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not output of `eval ... --json`: {error!r}") from None
        if settings.get("model", mark) != mark:
            raise ValueError(
                f"{path} has results of `eval {name}` for another model ({settings['model']}, and "
                f"this one is {mark}); measure this one"
            )
        yield result
        text = text[end:].strip()


# --------------------------------------------------------------------------------------------------
# The text


def card_text(facts: Facts) -> str:
    """The whole card, in Markdown."""
    sections = {
        "Shape": _shape(facts),
        "Data": _data(facts),
        "Training": _training(facts),
        "Results": _results(facts),
        "Limits": _limits(facts),
    }
    lines = [f"# {facts.run.name}", "", _summary(facts)]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _summary(facts: Facts) -> str:
    counts = count_parameters(facts.run.model)
    return (
        f"A DeepSeek-V4 network of {_millions(counts.main)} parameters, of which "
        f"{_millions(counts.active)} work on a token, in {facts.description.total_bytes / 1e6:.1f} "
        f"MB. It continues source code and fills gaps in it, and was trained from "
        f"{'another model' if facts.run.train.initial_weights else 'random weights'} on "
        f"{_millions(facts.tokens)} tokens."
    )


def _shape(facts: Facts) -> list[str]:
    config, counts = facts.description.config, count_parameters(facts.run.model)
    kinds = [RATIO_NAMES[ratio] for ratio in config.ratios]
    formats: dict[str, int] = {}
    for (_, name), size in facts.description.bytes_by_part.items():
        formats[name] = formats.get(name, 0) + size
    stored = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sorted(formats.items()))
    rows = {
        "layers": f"{len(kinds)}: " + ", ".join(kinds),
        "width": f"{config.hidden_size}, in {config.hc_mult} residual streams",
        "heads": f"{config.num_attention_heads} of {config.head_dim} channels",
        "experts": f"{config.n_routed_experts}, {config.num_experts_per_tok} per token and a shared"
        f" one; {_layers(config.num_hash_layers)} routed by hash",
        "indexer": f"picks {config.index_topk} entries",
        "MTP block": f"{counts.mtp:,} parameters" if counts.mtp else "none",
        **({"DSpark drafter": f"{counts.dspark:,} parameters"} if counts.dspark else {}),
        "vocabulary": f"{config.vocab_size:,}",
        "stored as": stored,
    }
    return _table(("", ""), rows.items())


def _data(facts: Facts) -> list[str]:
    stats = facts.corpus
    lines = [
        f"{stats['documents']:,} files, {stats['bytes'] / 1e6:.1f} MB, by whole package trained on "
        "or held out:",
        "",
    ]
    for key, title in (("splits", "split"), ("licenses", "licence")):
        groups = [
            (name, group["packages"], f"{group['documents']:,}", f"{group['bytes'] / 1e6:.1f}")
            for name, group in stats[key].items()
        ]
        lines += [*_table((title, "packages", "files", "MB"), groups), ""]
    for split in stats["splits"]:
        names = [
            " ".join(filter(None, (name, entry["version"], f"({entry['license']})")))
            for name, entry in stats["packages"].items()
            if entry["split"] == split
        ]
        lines += [f"**{split}**: {', '.join(names)}.", ""]
    reasons = sorted(stats["skipped"].items(), key=lambda pair: -pair[1])
    lines += ["Left out: " + ", ".join(f"{name} {count:,}" for name, count in reasons) + "."]
    return lines + (["", *_mixture(facts)] if facts.datasets else [])


def _mixture(facts: Facts) -> list[str]:
    """How often each dataset was read, from its share of the mixture so far."""
    note = "(FIM tokens and repeated passes included)"
    if len(facts.datasets) == 1:
        (_, info), times = facts.datasets[0], _times_read(facts)[0]
        return [
            f"{info['tokens']:,} tokens of {info['bytes_per_token']} bytes; each was seen "
            f"{times:.2f} times on average {note}."
        ]
    rows = [
        (
            share.name,
            f"{share.weight:g}",
            f"{share.at(1.0):g}",
            f"{info['documents']:,}",
            f"{info['tokens']:,}",
            f"{times:.2f}",
        )
        for (share, info), times in zip(facts.datasets, _times_read(facts), strict=True)
    ]
    head = ("dataset", "weight", "at the end", "documents", "tokens", "times read")
    return [f"Read as a mixture {note}:", "", *_table(head, rows)]


def _times_read(facts: Facts) -> list[float]:
    """Average number of times that a token of each dataset was seen."""
    done = facts.step / facts.run.train.steps
    places = [done * (at + 0.5) / _PLACES for at in range(_PLACES)]
    totals = [sum(share.at(place) for share, _ in facts.datasets) for place in places]
    return [
        facts.tokens
        / max(1, info["tokens"])
        * sum(share.at(place) / total for place, total in zip(places, totals, strict=True))
        / _PLACES
        for share, info in facts.datasets
    ]


def _training(facts: Facts) -> list[str]:
    run, train = facts.run, facts.run.train
    seconds, trained = _time(facts.rows)
    bits = [row["bits_per_byte"] for row in facts.rows if "bits_per_byte" in row]
    rows = {
        "steps": f"{facts.step:,} of {train.steps:,}",
        "tokens": f"{facts.tokens:,}, at most {run.data.batch_tokens * train.accumulation:,} a "
        f"step, in sequences of up to {run.data.sequence_tokens:,}",
        "time": f"{seconds / 3600:.1f} hours, {trained / max(seconds, 1e-9):,.0f} tokens/s",
        "learning rate": _rates(facts.rows),
        "attention": _phases(facts.rows),
        "filling in": f"{run.data.fim.rate:.0%} of documents rearranged, their middles weighing "
        f"{run.objective.middle_weight:g} times as much",
        "computed in": train.dtype + (", quantization-aware" if train.qat else ""),
        "skipped steps": f"{sum(row.get('event') == 'skipped' for row in facts.rows):,}",
    }
    if train.initial_weights:
        rows["begun with"] = _beginning(Path(train.initial_weights))
    if bits:
        rows["held out"] = f"{bits[-1]:.4f} bits per byte at the last validation, unquantized"
    return [*_table(("", ""), rows.items()), *(line for note in facts.notes for line in ("", note))]


def _beginning(folder: Path) -> str:
    """The weights a run started from, named by their folders."""
    if folder.parent.name == CHECKPOINTS_NAME:
        return f"the weights and moments of {folder.parent.parent.name}, {folder.name}"
    return f"the weights of {folder.name}"


def _rates(rows: Sequence[MetricsRow]) -> str:
    """Learning rates as recorded in the metrics, since settings may have changed during the run."""
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    if not rates:
        return "none recorded"
    quarters = [rates[len(rates) * part // 4 - (part == 4)] for part in range(5)]
    return "after each quarter of the steps " + ", ".join(f"{rate:.2g}" for rate in quarters[1:])


def _phases(rows: Sequence[MetricsRow]) -> str:
    steps = Counter(row["phase"] for row in rows if "phase" in row)
    said = {"dense": "dense", "indexer": "for the indexer alone", "sparse": "sparse"}
    return ", ".join(f"{steps[name]:,} steps {text}" for name, text in said.items() if steps[name])


def _time(rows: Sequence[MetricsRow]) -> tuple[float, int]:
    """Seconds and tokens, from the speeds in the metrics."""
    seconds, tokens, before = 0.0, 0, 0
    for row in rows:
        if row.get("tokens_per_second", 0) > 0 and row["tokens"] > before:
            seconds += (row["tokens"] - before) / row["tokens_per_second"]
            tokens += row["tokens"] - before
        before = row.get("tokens", before)
    return seconds, tokens


def _results(facts: Facts) -> list[str]:
    lines = ["Each value with its 95 % interval; settings are those of the command.", ""]
    for result in facts.results:
        lines += [f"### eval {result['evaluation']}", ""]
        metrics = result.get("metrics", {})
        if metrics:
            values = [(name, *_value_and_interval(metric)) for name, metric in metrics.items()]
            lines += [*_table(("", "value", "95 % interval"), values), ""]
        tables = {name: found for name, found in result.items() if isinstance(found, list)}
        for name, found in tables.items():
            lines += [f"{name.replace('_', ' ')}:", "", *_rows(found), ""]
        if result.get("outcomes"):
            counts = (f"{name} {count:,}" for name, count in result["outcomes"].items())
            lines += [f"Outcomes: {', '.join(counts)}.", ""]
        settings = {**result["settings"]}
        if "done" in result:
            settings["items"] = f"{result['done']} of {result['total']}"
        said = ", ".join(f"{name} {value}" for name, value in settings.items())
        lines += [f"Settings: {said}.", ""]
    return lines[:-1] if facts.results else ["Nothing has been measured."]


def _limits(facts: Facts) -> list[str]:
    data, shown = facts.run.data, {}
    for result in facts.results:
        for name, metric in result.get("metrics", {}).items():
            shown[result["evaluation"], name] = metric["value"]
    lines = [
        "- It knows the code listed above and nothing else: no other language, little prose, no "
        "conversation, no instructions.",
        f"- It was trained on sequences of up to {data.sequence_tokens:,} tokens; what it makes of "
        "longer ones was never trained.",
        "- It can repeat passages of its training data, whose licences are listed above.",
    ]
    if ("lines", "model_exact") in shown:
        lines.append(
            f"- Of lines taken out of files it has not seen, it writes "
            f"{shown['lines', 'model_exact']:.0%} exactly; the others may look as plausible."
        )
    if ("infilling", "pass@1") in shown:
        lines.append(
            f"- Of programs with a line missing, {shown['infilling', 'pass@1']:.0%} pass their "
            "tests with the line it writes. Read and test what it writes."
        )
    return lines


# --------------------------------------------------------------------------------------------------
# Markdown


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """JSON rows as a table with a column per key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _table(names, ([_cell(row.get(name, "")) for name in names] for row in rows))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "{} ({})".format(*_value_and_interval(value))
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _value_and_interval(metric: dict[str, float]) -> tuple[str, str]:
    return f"{metric['value']:.4f}", f"{metric['low']:.4f} to {metric['high']:.4f}"


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} million"
