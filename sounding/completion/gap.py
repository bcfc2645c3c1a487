"""A cursor in a text: what is before and after it, and what is to be filled in there."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["line", "block"]

CONTINUES = ("else", "elif", "except", "finally", "case", *")]}")  # the statement above
_NEWLINE = re.compile("\n")
_OUTER = re.compile(rf"(?!{'|'.join(map(re.escape, CONTINUES))})[\w@]")  # begins a statement
_SIGNIFICANT = 4  # letters and digits of a line before its coming again means something


@dataclass(frozen=True)
class Gap:
    """A cursor: the text before and after it."""

    prefix: str
    suffix: str = ""

    @property
    def line(self) -> str:
        """The cursor's line up to the cursor."""
        return self.prefix[self.prefix.rfind("\n") + 1 :]

    @property
    def rest(self) -> str:
        """The cursor's line from the cursor on."""
        return self.suffix.partition("\n")[0]

    @property
    def following(self) -> str:
        """The first line below the cursor's that is not blank, without white space at its end."""
        lines = self.suffix.split("\n")
        below = lines if self.takes_newline else lines[1:]
        return next((line.rstrip() for line in below if line.strip()), "")

    @property
    def takes_newline(self) -> bool:
        """True if a whole line is inserted before another one, so it must end with a newline."""
        return not self.line and bool(self.rest.strip())

    def near(self, most_characters: int) -> "Gap":
        """Return the text near the cursor, bounded in characters on each side.

        Where it can, each side is cut between lines, and before one that is not indented: what is
        left of a program that is correct is correct then. What is left out above the cursor grows
        in steps, so that prompts share a prefix while the user types.
        """
        prefix, suffix = self.prefix, self.suffix
        step = max(1, most_characters // 4)
        if len(prefix) > most_characters:
            start = -(-(len(prefix) - most_characters) // step) * step
            prefix = prefix[_line_between(prefix, start, start + step, start) :]
        if len(suffix) > most_characters:
            least = most_characters - step
            suffix = suffix[: _line_between(suffix, least, most_characters, most_characters)]
        return Gap(prefix, suffix)

    def natural_kind(self) -> Kind:
        """A block where one begins or a line is empty; otherwise the rest of the line."""
        if self.rest.strip():
            return "block" if self.takes_newline else "line"
        opens = self.line.rstrip().endswith(":")
        return "block" if opens or not self.line.strip() else "line"


def _line_between(text: str, start: int, end: int, otherwise: int) -> int:
    """Start of a line between two places, the first that is not indented if there is one."""
    begins = [match.end() for match in _NEWLINE.finditer(text, start, end)]
    outer = (at for at in begins if _OUTER.match(text, at))
    return next(outer, begins[0] if begins else otherwise)


def indentation(line: str) -> int:
    """Characters of white space a line begins with."""
    return len(line) - len(line.lstrip())


def repeats(line: str, following: str) -> bool:
    """True if a line is the one that follows the cursor, and is worth noticing."""
    letters = sum(character.isalnum() for character in following)
    return letters >= _SIGNIFICANT and line.rstrip() == following
