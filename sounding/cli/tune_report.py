"""What an adapter changes, on code it has not seen and on other code: measured and shown."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from sounding.cli.completion import open_model

if TYPE_CHECKING:
    from sounding.loading import LoadedModel
    from sounding.posttrain.tune_data import TuneData

_MOST_LINES = 200
_MOST_CHARACTERS = 150_000  # of which bits per byte are measured
_CONTEXT, _STRIDE, _BATCH_TOKENS = 1024, 512, 4096
Texts = Sequence[tuple[str, str]]


def measure_change(
    folder: Path,
    base: Path,
    data: "TuneData",
    adapter: Path,
    *,
    since: str | None,
    suffixes: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Rows of `what`, `of`, `base` and `adapter`: bits per byte, and shares of exactly right lines.

    Lines are those of held-out files; with `since`, lines that came after that commit.
    """
    from sounding.data.later_lines import later_lines

    texts, among = data.held_out_texts, None
    if since is not None:
        texts, among = later_lines(folder, since, suffixes)
    model = open_model(base)
    rows = []
    own = "lines that came later" if since is not None else "held-out files"
    if texts:
        rows.append(_lines(model, texts, adapter, own, among))
    if data.held_out_texts:
        rows.append(_bits(model, data.held_out_texts, adapter, "held-out files"))
    if data.general_texts:
        rows.append(_bits(model, data.general_texts, adapter, "other code"))
    return rows


def _lines(
    model: "LoadedModel",
    texts: Texts,
    adapter: Path,
    of: str,
    among: dict[str, set[int]] | None,
) -> dict[str, Any]:
    from sounding.evaluation.eval_options import EvalOptions
    from sounding.evaluation.lines import choose_lines, evaluate_lines
    from sounding.evaluation.measuring import filler

    per_file = -(-_MOST_LINES // len(texts))
    items = choose_lines(texts, per_file=per_file, cursor="inside", seed=0, among=among)
    items = items[:_MOST_LINES]
    shares = []
    for chosen in (None, adapter):
        fill = filler(
            model,
            "line",
            EvalOptions(context_tokens=_CONTEXT, syntax=True),
            chosen,
        )
        right = sum(bool(row["model_exact"]) for row in evaluate_lines(items, fill, seed=0))
        shares.append(right / max(1, len(items)))
    return {
        "what": "exactly right lines",
        "of": of,
        "items": len(items),
        "base": shares[0],
        "adapter": shares[1],
    }


def _bits(model: "LoadedModel", texts: Texts, adapter: Path, of: str) -> dict[str, Any]:
    from sounding.engine.scoring import token_logprobs
    from sounding.evaluation.bits import score_documents

    some, left = [], _MOST_CHARACTERS
    for name, text in texts:
        if left > 0:
            some.append((name, text[:left]))
            left -= len(text)
    loaded = model.network.load_adapter(model.read_adapter(adapter))
    values = []
    for chosen in (None, loaded):
        rows: list[dict[str, Any]] = list(
            score_documents(
                some,
                functools.partial(model.tokenizer.encode, named=False),
                model.tokenizer.bos_id,
                functools.partial(token_logprobs, model.network, adapter=chosen),
                context=_CONTEXT,
                stride=_STRIDE,
                batch_tokens=_BATCH_TOKENS,
            )
        )
        values.append(sum(row["bits"] for row in rows) / sum(row["bytes"] for row in rows))
    return {
        "what": "bits per byte",
        "of": of,
        "items": len(some),
        "base": values[0],
        "adapter": values[1],
    }


def print_change(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table on stdout."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("of", "base", "adapter", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        before, after = row["base"], row["adapter"]
        shares = row["what"] == "exactly right lines"
        noun = "lines" if shares else "files"
        table.add_row(
            f"{row['what']}, {row['of']}",
            f"{row['items']:,} {noun}",
            f"{before:.1%}" if shares else f"{before:.3f}",
            f"{after:.1%}" if shares else f"{after:.3f}",
            f"{100 * (after - before):+.1f} points" if shares else f"{after / before - 1:+.1%}",
        )
    Console().print(table)
