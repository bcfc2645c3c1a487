"""A cursor in a text: the text before and after it, and the kind of text to insert."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["line", "block"]

CONTINUES = ("else", "elif", "except", "finally", "case", *")]}")  # the statement above
_NEWLINE = re.compile("\n")
_OUTER = re.compile(rf"(?!{'|'.join(map(re.escape, CONTINUES))})[\w@]")  # begins a statement
_SIGNIFICANT = 4  # letters and digits that a line needs before its repetition counts


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
        """The first non-blank line below the cursor's, without trailing white space."""
        lines = self.suffix.split("\n")
        below = lines if self.takes_newline else lines[1:]
        return next((line.rstrip() for line in below if line.strip()), "")

    @property
    def takes_newline(self) -> bool:
        """True if a whole line is inserted before another one, so it must end with a newline."""
        return not self.line and bool(self.rest.strip())

    def near(self, most_characters: int) -> "Gap":
        """Return the text near the cursor, with a limit of characters on each side.

        Each side is cut between lines and before an unindented one if possible, so that the rest of
        a correct program is still correct. The omitted part above the cursor grows in steps, so
        that prompts share a prefix while the user types.
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
        """Return "block" if a block begins here or the line is empty, else "line"."""
        if self.rest.strip():
            return "block" if self.takes_newline else "line"
        opens = self.line.rstrip().endswith(":")
        return "block" if opens or not self.line.strip() else "line"


def _line_between(text: str, start: int, end: int, otherwise: int) -> int:
    """Start of the first unindented line between two offsets, or else of the first line."""
    begins = [match.end() for match in _NEWLINE.finditer(text, start, end)]
    outer = (at for at in begins if _OUTER.match(text, at))
    return next(outer, begins[0] if begins else otherwise)


def indentation(line: str) -> int:
    """Number of white space characters at the start of a line."""
    return len(line) - len(line.lstrip())


def repeats(line: str, following: str) -> bool:
    """True if a line equals `following` and has enough letters for this to count."""
    letters = sum(character.isalnum() for character in following)
    return letters >= _SIGNIFICANT and line.rstrip() == following
