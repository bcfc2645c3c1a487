"""Decontamination: keep evaluation texts out of the training text.

Evaluation texts (solutions, tests) are indexed by their long lines and their runs of ten words. A
document is refused when it repeats a long line, or most of the runs of one text: single runs of
ten words are often common to unrelated loops.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sounding.files import read_json_lines

RUN_WORDS = 10
MIN_LINE_CHARACTERS = 40
MIN_SHARED_RUNS = 0.5  # of the runs of one text
_WORD = re.compile(r"\w+")
_KEYWORD_LINE = re.compile(r"(import|from|#|if __name__)\b")


class Overlap:
    """The texts to keep out, indexed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._lines: set[str] = set()
        self._texts_of_run: dict[tuple[str, ...], list[int]] = {}
        self._num_runs: list[int] = []
        for index, text in enumerate(texts):
            self._lines.update(_long_lines(text))
            runs = set(_runs(text))
            self._num_runs.append(len(runs))
            for run in runs:
                self._texts_of_run.setdefault(run, []).append(index)

    def __len__(self) -> int:
        return len(self._num_runs)

    def touches(self, text: str) -> bool:
        """True if a document repeats enough of one of the texts to reveal its answer."""
        if any(line in self._lines for line in _long_lines(text)):
            return True
        shared: dict[int, int] = {}
        for run in self._texts_of_run.keys() & set(_runs(text)):
            for index in self._texts_of_run[run]:
                shared[index] = shared.get(index, 0) + 1
        return any(n >= MIN_SHARED_RUNS * self._num_runs[index] for index, n in shared.items())


def _long_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        line = " ".join(line.split())
        if len(line) >= MIN_LINE_CHARACTERS and not _KEYWORD_LINE.match(line):
            yield line


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text)
    return zip(*(words[offset:] for offset in range(RUN_WORDS)), strict=False)


def read_texts(path: Path) -> list[str]:
    """Every string of at least 40 characters in a JSONL file, lists and objects searched through.

    Strings of one list are taken together, one a line: a list of assertions is one text. Raises
    ValueError as `read_json_lines` does.
    """
    texts: list[str] = []
    for _, row in read_json_lines(path):
        texts.extend(text for text in _strings(row) if len(text) >= MIN_LINE_CHARACTERS)
    return texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list):
        if all(isinstance(entry, str) for entry in value):
            yield "\n".join(value)
        else:
            for entry in value:
                yield from _strings(entry)
