"""Single-line infilling on held-out files: exact matches with the removed line.

A line is removed from its indentation (or from a place inside it) to its end, as in an editor; the
model sees the file around it. Lines are drawn at random among those that are not comments and have
at least four letters and digits. Two copyists are baselines. One inserts the line of the file whose
neighbours are most similar to the gap's. The other knows the answer and inserts the most similar
line of the file, which is the upper bound of copying.
"""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sounding.completion.similar import Around
from sounding.evaluation.model import FillGaps
from sounding.evaluation.statistics import Estimate, bootstrap, edit_similarity

Document = tuple[str, str]  # name, text
Cursor = Literal["indent", "inside"]

_LETTERS = 4
_BOUNDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Item(NamedTuple):
    """A removed line for the model to write."""

    id: str
    prefix: str
    suffix: str
    answer: str


def choose_lines(
    documents: Sequence[Document],
    *,
    per_file: int,
    cursor: Cursor,
    seed: int,
    among: Mapping[str, Collection[int]] | None = None,
) -> list[Item]:
    """Up to `per_file` lines of each document; seed and name determine them.

    `among` restricts the draw to these line numbers, from 0, by document; None permits all.
    """
    items = []
    for name, text in documents:
        rng = random.Random(f"{seed} {name}")
        lines = text.split("\n")
        allowed = range(len(lines)) if among is None else among.get(name, ())
        worth = [n for n, line in enumerate(lines) if _worth(line) and n in allowed]
        # Sorting by random() and not rng.sample, whose sequence may change with the version.
        drawn = sorted(worth, key=lambda number: rng.random())[:per_file]
        for number in sorted(drawn):
            line = lines[number]
            at = len(line) - len(line.lstrip())
            if cursor == "inside":
                at += int(rng.random() * len(line.strip()))
            before, after = (
                "\n".join([*lines[:number], ""]),
                "".join("\n" + later for later in lines[number + 1 :]),
            )
            items.append(Item(f"{name}:{number + 1}", before + line[:at], after, line[at:]))
    return items


def _worth(line: str) -> bool:
    letters = sum(character.isalnum() for character in line)
    return letters >= _LETTERS and not line.lstrip().startswith("#")


def evaluate_lines(
    items: Sequence[Item], fill: FillGaps, *, seed: int
) -> Iterator[dict[str, object]]:
    """Yield a row per finished line: the answer, the model's text, and the copyists' results."""
    gaps = [(item.prefix, item.suffix) for item in items]
    for index, text, confidence in fill(gaps, [seed] * len(items)):
        item = items[index]
        copied, best = copies(item)
        yield {
            "id": item.id,
            "file": item.id.rpartition(":")[0],
            "answer": item.answer,
            "written": text,
            "confidence": round(confidence, 4),
            **_judged("model", text, item.answer),
            **_judged("copy", copied, item.answer),
            **_judged("best_copy", best, item.answer),
        }


def _judged(name: str, text: str, answer: str) -> dict[str, object]:
    text, answer = text.strip(), answer.strip()
    return {
        f"{name}_exact": text == answer,
        f"{name}_similarity": round(edit_similarity(text, answer), 4),
    }


def copies(item: Item) -> tuple[str, str]:
    """Return the copyist's line by the gap's neighbours, and the line most similar to the answer.

    Both copy a line of the same file without its indentation. If the gap begins inside a line, only
    lines that begin alike count.
    """
    around = Around(item.prefix, item.suffix)
    lines = list(around.similar())
    if not lines:
        return "", ""
    nearest = max(
        lines, key=lambda line: line.likeness
    )  # among equals the first, which is the nearest
    texts = [around.rest(line.number) for line in lines]
    return around.rest(nearest.number), _most_similar([t.strip() for t in texts], item.answer)


def _most_similar(texts: Sequence[str], answer: str) -> str:
    answer, best, record = answer.strip(), "", -1.0
    for text in dict.fromkeys(texts):
        longer = max(len(text), len(answer))
        possible = 1 - abs(len(text) - len(answer)) / longer  # if everything else were equal
        if possible > record and (found := edit_similarity(text, answer)) > record:
            best, record = text, found
    return best


def summarise_lines(rows: Sequence[dict[str, Any]], *, seed: int) -> dict[str, Estimate]:
    """Shares of exact lines and mean similarities; intervals resample files."""
    files: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        files.setdefault(row["file"], []).append(row)

    def mean(name: str) -> Estimate:
        groups = [(float(sum(row[name] for row in of)), float(len(of))) for of in files.values()]
        return bootstrap(groups, seed=seed)

    writers = ("model", "copy", "best_copy")
    names = [f"{writer}_{what}" for what in ("exact", "similarity") for writer in writers]
    return {name: mean(name) for name in names}


def precision_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """Precision against the share of lines shown: a row per threshold of confidence.

    Empty for rows without a confidence.
    """
    sure = sorted((row["confidence"], row["model_exact"]) for row in rows if "confidence" in row)
    table: list[dict[str, object]] = []
    for bound in _BOUNDS:
        shown = [exact for confidence, exact in sure if confidence >= bound]
        if shown and (not table or len(shown) != table[-1]["lines"]):
            share, right = len(shown) / len(sure), sum(shown) / len(shown)
            table.append({"confidence": bound, "lines": len(shown), "shown": share, "exact": right})
    return table
