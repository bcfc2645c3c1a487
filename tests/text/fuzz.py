"""Mutated completions by the million: `scripts/fuzz-parser --seconds 600`.

Golden completions are damaged byte by byte and piece by piece. Each must be read by the strict
parser as its definition reads it, and by the tolerant one without raising, hanging or passing
markup on as text; every eighth is also read in random pieces, which must say the same. One
process; the first failure is printed whole and ends the run.
"""

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from typing import Any

from sounding.text import Malformed, ParsedCompletion, collect, parse
from tests.text.dsml.test_parse import GOLDEN, PIECES, run, split
from tests.text.dsml.test_tolerant import MARKUP
from tests.text.published import Refused, definition
from tests.text.test_shapes import TOOLS

LONGEST_SECONDS = 10  # for one text of some hundred characters: more is a hang


def damage(text: str, rng: random.Random) -> str:
    """One to five changes: cut, drop, insert, repeat, splice, or overwrite bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at, kind = rng.randrange(len(text) + 1), rng.random()
        if kind < 0.12:
            text = text[:at]
        elif kind < 0.3:
            text = text[:at] + text[at + rng.choice((1, 1, 2, 5, 20)) :]
        elif kind < 0.6:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind < 0.7:
            text = text[:at] + text[max(0, at - rng.randrange(1, 60)) :]
        elif kind < 0.78:
            other = rng.choice(GOLDEN)["text"]
            text = text[:at] + other[rng.randrange(len(other)) :]
        else:
            raw = bytearray(text.encode())
            for _ in range(min(len(raw), rng.choice((1, 1, 3)))):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            text = raw.decode("utf-8", "replace")
    return text


def check(
    text: str, mode: str, tools: list[Any] | None, cuts: list[int] | None
) -> ParsedCompletion:
    """Read a text in every way and compare; the tolerant reading. Raises AssertionError."""
    try:
        expected = definition(text, mode)
    except Refused:
        expected = None
    try:
        strict = parse(text, mode).message()
    except Malformed:
        strict = None
    assert strict == expected, "the strict parser differs from its definition"
    read = parse(text, mode, tolerant=True, tools=tools)
    assert read.finish_reason in ("stop", "tool_calls", "length")
    assert expected is not None or read.repairs, "an unreported repair"
    for part in (read.content, read.reasoning_content):
        assert not MARKUP.search(part), "markup in the text"
    for call in read.calls:
        assert isinstance(json.loads(call.arguments), dict), "arguments that are no object"
    if cuts is not None:
        pieces = split(text, cuts)
        assert run(pieces, mode)[0] == run([text], mode)[0], "strict events depend on the split"
        events, _ = run(pieces, mode, tolerant=True, tools=tools)
        assert collect(events) == read, "tolerant events depend on the split"
    return read


def stop(*_: Any) -> None:
    raise TimeoutError(f"no end after {LONGEST_SECONDS} seconds")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    rng, started = random.Random(chosen.seed), time.monotonic()
    counts: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, stop)
    while time.monotonic() - started < chosen.seconds:
        row = rng.choice(GOLDEN)
        text = damage(row["text"], rng)
        mode = row["thinking_mode"] if rng.random() < 0.9 else rng.choice(["chat", "thinking"])
        tools, in_pieces = rng.choice([None, TOOLS]), counts["completions"] % 8 == 0
        number = rng.choice([1, 3, 10, len(text)])
        cuts = [rng.randrange(10_000) for _ in range(number)] if in_pieces else None
        signal.alarm(LONGEST_SECONDS)
        try:
            read = check(text, mode, tools, cuts)
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {error}\n{mode}: {text!r}")
        counts["completions"] += 1
        counts["characters"] += len(text)
        counts["in_pieces"] += in_pieces
        counts["repaired"] += bool(read.repairs)
        counts.update(f"repair {kind}" for kind in {repair.kind for repair in read.repairs})
        if counts["completions"] % 100_000 == 0:
            print(f"{counts['completions']} read", file=sys.stderr, flush=True)
    signal.alarm(0)
    print(json.dumps({"seed": chosen.seed, **counts}, indent=1))


if __name__ == "__main__":
    main()
