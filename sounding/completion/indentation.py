"""The indentations that a missing line of Python can have, for a cursor at its start."""

from typing import NamedTuple

from sounding.completion.gap import CONTINUES, Gap, indentation
from sounding.completion.python_syntax import Scanner

_UNIT = "    "


class Level(NamedTuple):
    """A possible indentation of the missing line."""

    white: str
    opens: bool
    """True if the line must open a block, or the lines below could not follow it."""


def possible_levels(gap: Gap) -> list[Level]:
    """The indentations that fit the lines around an empty line, likeliest first.

    All start with the white space typed so far. Empty if a string or bracket is open, if the line
    has other text, or if nothing fits.
    """
    if gap.line.strip() or (gap.rest.strip() and not gap.takes_newline):
        return []
    found = _blocks_above(gap.prefix[: len(gap.prefix) - len(gap.line)])
    if found is None:
        return []
    stack, opens, unit = found
    below = _first_code(gap)
    levels = _inner(stack[-1], below, unit) if opens else _same_or_outer(stack, below)
    return [level for level in levels if level.white.startswith(gap.line)]


def _inner(base: str, below: "_Code | None", unit: str) -> list[Level]:
    """Levels after a line that opens a block."""
    if below is None or len(below.white) <= len(base):
        return [Level(base + unit, False)]
    levels = [] if below.continues else [Level(below.white, False)]
    if len(below.white) > len(base + unit):
        levels.append(Level(base + unit, not below.continues))
    return levels


def _same_or_outer(stack: list[str], below: "_Code | None") -> list[Level]:
    """Levels after any other line."""
    levels = []
    for white in reversed(stack):
        if below is None or len(white) >= len(below.white) + below.continues:
            levels.append(Level(white, False))
        else:
            if not below.continues:  # the line below is the first of its block
                levels.append(Level(white, True))
            break
    return levels


def _blocks_above(above: str) -> tuple[list[str], bool, str] | None:
    """Indentations of the open blocks; True if the last line opens a block; the indentation step.

    None in the middle of a statement.
    """
    scanner = Scanner()
    stack, opens, unit = [""], False, ""
    begins = True
    for line in above.split("\n")[:-1]:
        code = line.strip()
        if begins and code and not code.startswith("#"):
            white = line[: indentation(line)]
            if len(white) > len(stack[-1]) and opens:
                unit = unit or white[len(stack[-1]) :]
                stack.append(white)
            while len(white) < len(stack[-1]):
                stack.pop()
        scanner.feed(line + "\n")
        if code and not code.startswith("#"):
            opens = _without_comment(code).endswith(":") and scanner.depth <= 0
        begins = scanner.in_code and scanner.depth <= 0 and not code.endswith("\\")
    return (stack, opens, unit or _UNIT) if begins else None


def _without_comment(code: str) -> str:
    before, mark, _ = code.partition("#")
    quoted = mark and (before.count('"') % 2 or before.count("'") % 2)
    return code if quoted else before.rstrip()


class _Code(NamedTuple):
    """The first line of code below."""

    white: str
    continues: bool
    """True if it continues a statement whose block this line ends, as `else` does."""


def _first_code(gap: Gap) -> _Code | None:
    lines = gap.suffix.split("\n")
    for line in lines if gap.takes_newline else lines[1:]:
        code = line.strip()
        if code and not code.startswith("#"):
            return _Code(line[: indentation(line)], code.startswith(CONTINUES))
    return None
