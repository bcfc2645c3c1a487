"""Fill in the middle: where to cut a text into prefix, middle and suffix.

Two kinds of spans. A character span lies anywhere, which teaches to continue inside a word. A line
span is what an editor requests: the rest of the line, a line, a few lines, the rest of a block.
Only `rng.random()` is used, whose sequence Python guarantees for a seed in every version.
Source: Bavarian et al., "Efficient training of language models to fill in the middle", 2022, for
the format, character spans and the order with the suffix first (there SPM); line spans are ours.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

MAX_FEW_LINES = 8
MAX_BLOCK_LINES = 40
MIN_LONGEST = 128


@dataclass(frozen=True, kw_only=True)
class FimSettings:
    """The rate of rearranged documents, and the shares of the kinds of middles."""

    rate: float = 0.5  # share of documents
    longest: int | None = None
    """They are cut into pieces of a quarter of this to this many tokens, drawn for each document;
    a piece has one middle, so shorter ones train more middles. None: as long as a sequence."""
    character_share: float = 0.3  # of those: middles between two random characters
    # Weights of line spans: rest of a line, one line, a few lines, a block by its indentation.
    rest: float = 0.35
    line: float = 0.3
    few: float = 0.15
    block: float = 0.2
    suffix_first: float = 0.0
    """Share of rearranged documents whose prefix is empty and whose middle begins with what stands
    before the gap."""

    def __post_init__(self) -> None:
        for name in ("rate", "character_share", "suffix_first"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value} must be a share from 0 to 1")
        if self.longest is not None and self.longest < MIN_LONGEST:
            raise ValueError(f"longest = {self.longest} must be at least {MIN_LONGEST}, or none")
        weights = (self.rest, self.line, self.few, self.block)
        if min(weights) < 0 or not sum(weights):
            raise ValueError(f"rest, line, few, block = {weights} must be weights, one above 0")


def piece_limit(rng: random.Random, settings: FimSettings, room: int) -> int:
    """Most tokens of the pieces of one rearranged document, where a sequence has `room`."""
    if settings.longest is None:
        return room
    least = settings.longest // 4
    return min(room, least + _below(rng, settings.longest - least + 1))


def middle_span(text: str, rng: random.Random, settings: FimSettings) -> tuple[int, int] | None:
    """Start and end of a middle in `text`, in characters, or None if there is none."""
    if not text.strip():
        return None
    if rng.random() < settings.character_share:
        begin, end = sorted(_below(rng, len(text) + 1) for _ in range(2))
    else:
        begin, end = _line_span(text, rng, settings)
    return (begin, end) if begin < end else None


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _choose(rng: random.Random, weights: Sequence[float]) -> int:
    at = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        at -= weight
        if at < 0:
            return index
    return len(weights) - 1


def _line_span(text: str, rng: random.Random, settings: FimSettings) -> tuple[int, int]:
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    written = [index for index, line in enumerate(lines) if line.strip()]
    first = written[_below(rng, len(written))]
    kind = _choose(rng, (settings.rest, settings.line, settings.few, settings.block))
    if kind == 2:
        last = _last_written(lines, first, first + 1 + _below(rng, MAX_FEW_LINES - 1))
    elif kind == 3:
        first, last = _block(lines, first, rng)
    else:
        last = first
    line = lines[first]
    indent = len(line) - len(line.lstrip())
    inside = indent + _below(rng, len(line.strip()))
    if kind == 0:
        return starts[first] + inside, starts[last] + len(lines[last])
    # The cursor of the others: at the line's start, after its indentation, or somewhere in it.
    where = _choose(rng, (0.35, 0.45, 0.2))
    begin = starts[first] + (0, indent, inside)[where]
    end = starts[last] + len(lines[last])
    takes_newline = where == 0 and end < len(text) and rng.random() < 0.5
    return begin, end + takes_newline


def _last_written(lines: Sequence[str], first: int, last: int) -> int:
    last = min(last, len(lines) - 1)
    while last > first and not lines[last].strip():
        last -= 1
    return last


def _block(lines: Sequence[str], first: int, rng: random.Random) -> tuple[int, int]:
    """First and last line of a block around or below `first`.

    Below a line that opens a block: its body, half of the time with the line itself. Otherwise the
    rest of the line's block. Blank lines at the end are excluded.
    """
    depth = _depth(lines[first])
    below = first + 1
    while below < len(lines) and not lines[below].strip():
        below += 1
    if below < len(lines) and _depth(lines[below]) > depth:
        depth += 1
        if rng.random() < 0.5:
            first = below
    last = first
    for index in range(first + 1, min(len(lines), first + MAX_BLOCK_LINES)):
        if lines[index].strip():
            if _depth(lines[index]) < depth:
                break
            last = index
    return first, last


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
