"""Candidate beginnings of a missing line, from which the network writes further lines.

A small network often ranks the right line below another one. So it writes several lines, from
each possible indentation and from beginnings that the surrounding text implies: if a name is read
below and bound nowhere, the missing line must bind it.
"""

import dataclasses
from typing import NamedTuple

from sounding.completion.gap import Gap
from sounding.completion.python_source import PythonSource
from sounding.engine.sampling import SamplingParams

_MOST_LEVELS = 3
_MOST_NAMES = 2
_SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)
_SAMPLED_AGAIN = SamplingParams(temperature=0.6, top_p=0.95)


class Start(NamedTuple):
    """The beginning of a candidate, which the network continues."""

    text: str
    opens: bool
    """True if the line must open a block."""
    params: SamplingParams


def line_starts(
    gap: Gap, source: PythonSource | None, params: SamplingParams, samples: int
) -> list[Start]:
    """Beginnings of a whole missing line; the plain one ("" with `params`) comes first."""
    typed = len(gap.line)
    levels = [] if source is None else source.levels[:_MOST_LEVELS]
    # Typed white space is intended; in column 0 the user may still type some.
    plain = [level.opens for level in levels if level.white == gap.line]
    starts = [Start("", any(plain) and bool(gap.line or len(levels) == 1), params)]
    if not samples:
        return starts
    whites = [(level.white[typed:], level.opens) for level in levels]
    starts += [Start(white, opens, params) for white, opens in whites if white]
    white, opens = whites[0] if whites else ("", starts[0].opens)
    if source is not None and not gap.line.strip():
        starts += [Start(white + one, False, params) for one in _beginnings(source, opens)]
    starts += [Start(white, opens, one) for one in sampled(params, samples, _SAMPLED)]
    return starts


def more_starts(
    gap: Gap, source: PythonSource, params: SamplingParams, kept: int, wanted: int
) -> list[Start]:
    """`wanted` more beginnings, for when no earlier line can be right; `kept` samples were drawn
    before."""
    more = sampled(params, kept + wanted)[-wanted:]
    levels = source.levels[:1] if not gap.line.strip() else []
    white = levels[0].white[len(gap.line) :] if levels else ""
    opens = bool(levels) and levels[0].opens
    beginnings = _beginnings(source, opens) if levels else []
    return [
        Start(white + beginnings[number % len(beginnings)], False, one)
        if beginnings and number % 2
        else Start(white, opens, one)
        for number, one in enumerate(more)
    ]


def _beginnings(source: PythonSource, opens: bool) -> list[str]:
    names = source.needed()[:_MOST_NAMES]
    attributes = [name for name in names if name.startswith(".")]
    names = [name for name in names if not name.startswith(".")]
    found = [] if opens else [f"self{name} = " for name in attributes]
    if len(names) > 1:
        both = ", ".join(names)
        found += [f"for {both} in "] if opens else [f"{both} = "]
    for name in names:
        found += [f"for {name} in "] if opens else [f"{name} = "]
    return found


def sampled(
    params: SamplingParams, count: int, base: SamplingParams = _SAMPLED_AGAIN
) -> list[SamplingParams]:
    """`count` variants of `params`, each with its own seed and a temperature above 0."""
    base = params if params.temperature else base
    return [
        dataclasses.replace(base, seed=(params.seed + 1 + number) % 2**63)
        for number in range(count)
    ]
