"""Where a completion ends: at its line, at its block, before text already after the cursor.

Works on text alone, so that a scripted model can test it. Indentation means Python here, but a
block in any indented language ends the same way.
"""

import codeop
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["line", "block"]

_NEWLINE = re.compile("\n")
_OPENING, _CLOSING = "([{", ")]}"
_CONTINUES = ("else", "elif", "except", "finally", "case", *_CLOSING)  # of the statement above
_OUTER = re.compile(rf"(?!{'|'.join(map(re.escape, _CONTINUES))})[\w@]")  # begins a statement
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


class Scanner:
    """Follows brackets and strings through Python source, piece by piece."""

    def __init__(self) -> None:
        self.depth = 0
        self.lowest = 0
        """The least depth there was."""
        self.quote = ""  # of the open string
        self._comment = False
        self._escaped = False
        self._quotes = ""  # a run of them that may become a triple one
        self._seen = ""  # a run of them inside of a string, which may close it

    def feed(self, text: str) -> None:
        for character in text:
            self._step(character)

    @property
    def in_code(self) -> bool:
        """True if a new line here begins a line of the program rather than of a string."""
        return not self.quote and self._quotes[:3] not in ('"""', "'''")

    def _step(self, character: str) -> None:
        if self._quotes:
            if character == self._quotes[0] and len(self._quotes) < 3:
                self._quotes += character
                return
            # One or three quotes open a string; two were an empty one.
            self.quote = "" if len(self._quotes) == 2 else self._quotes
            self._quotes = ""
            self._seen = ""
        if self.quote:
            self._step_in_string(character)
        elif character == "\n":
            self._comment = False
        elif self._comment:
            return
        elif character == "#":
            self._comment = True
        elif character in "\"'":
            self._quotes = character
        elif character in _OPENING:
            self.depth += 1
        elif character in _CLOSING:
            self.depth -= 1
            self.lowest = min(self.lowest, self.depth)

    def _step_in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
            self._seen = ""
        elif character == "\\":
            self._escaped = True
            self._seen = ""
        elif character == self.quote[0]:
            self._seen += character
            if self._seen == self.quote:
                self.quote = ""
        elif character == "\n" and len(self.quote) == 1:
            self.quote = ""  # was never closed
        else:
            self._seen = ""


def scan(text: str) -> Scanner:
    """A scanner that has read `text`."""
    scanner = Scanner()
    scanner.feed(text)
    return scanner


# --------------------------------------------------------------------------------------------------
# When to stop


class LineEnding:
    """The first line that is not blank."""

    def __init__(self, gap: Gap) -> None:
        self._written = bool(gap.line.strip())

    def find(self, text: str) -> int | None:
        """Where the completion ends in what was generated so far; None while it may go on."""
        at = text.find("\n")
        while at >= 0:
            if self._written or text[:at].strip():
                return at
            at = text.find("\n", at + 1)
        return None


class BlockEnding:
    """Ends after the block around the cursor, or the block that is opened before it.

    Ends before the first line that is indented less, lines inside of brackets and strings aside.
    At the outermost level: before the next statement after a blank line or an indented one. Also
    before a statement that repeats the one right above: small networks repeat it forever.
    """

    def __init__(self, gap: Gap) -> None:
        self._following, self._line = gap.following, gap.line
        self._floor = _floor(gap)
        self._scanner = scan(gap.prefix)
        self._depth = max(0, self._scanner.depth)
        self.at = 0
        """Start of the next line to check."""
        self.undecided = False
        """True if that line may still prove to lie behind the end."""
        self._indented = self._blank = False  # the line before it
        self._above = ""
        self._begun = bool(gap.line.strip())

    def find(self, text: str) -> int | None:
        """Where the completion ends in what was generated so far; None while it may go on.

        `text` must grow from call to call. White space that is not yet followed by anything may
        still turn out to lie behind the end.
        """
        while True:
            newline = text.find("\n", self.at)
            line = text[self.at : newline if newline >= 0 else len(text)]
            if self._ends_before(line, complete=newline >= 0):
                return len(text[: self.at].rstrip())
            if newline < 0:
                return None
            self._scanner.feed(line + "\n")
            whole = self._line + line if not self.at else line
            if whole.strip():
                self._begun = True
                if self._floor is None:
                    self._floor = indentation(whole)
            self._blank = not whole.strip()
            self._above = whole.rstrip()
            self._indented = indentation(whole) > 0 if whole.strip() else self._indented
            self.at = newline + 1

    def _ends_before(self, line: str, *, complete: bool) -> bool:
        self.undecided = False
        if not self.at or not line.strip() or not self._begun:
            return False
        if not self._scanner.in_code or self._scanner.depth > self._depth:
            return False
        if complete and (_repeats(line, self._following) or _repeats(line, self._above)):
            return True
        first = line.lstrip()
        if self._floor:
            if first[0] in _CLOSING and self._scanner.depth > 0:
                return False
            return indentation(line) < self._floor
        # A keyword is known to continue the statement only when it is complete.
        separated = self._blank or self._indented
        if not complete and any(word.startswith(first) for word in _CONTINUES):
            self.undecided = separated
            return False
        return indentation(line) == 0 and separated and not first.startswith(_CONTINUES)


def _floor(gap: Gap) -> int | None:
    """The least indentation inside of the block; None where the first line will decide."""
    if gap.line.strip():
        return indentation(gap.line) + gap.line.rstrip().endswith(":")
    typed = len(gap.line)
    above = next((line for line in _lines_above(gap.prefix) if line.strip()), "")
    if above.rstrip().endswith(":"):
        return max(typed, indentation(above) + 1)
    return typed or None


def _lines_above(prefix: str) -> Iterator[str]:
    """Lines above the cursor's, from the nearest."""
    end = prefix.rfind("\n")
    while end >= 0:
        begin = prefix.rfind("\n", 0, end) + 1
        yield prefix[begin:end]
        end = begin - 1


def indentation(line: str) -> int:
    """Characters of white space a line begins with."""
    return len(line) - len(line.lstrip())


def ending_for(kind: Kind, gap: Gap) -> LineEnding | BlockEnding:
    """The rule for a kind of completion."""
    return LineEnding(gap) if kind == "line" else BlockEnding(gap)


# --------------------------------------------------------------------------------------------------
# Trimming


def trim(text: str, gap: Gap, *, cut_short: bool = False) -> str:
    """Trim a completion to the text that is inserted at the cursor.

    Drops text already after the cursor and blank lines at the end; with `cut_short` also the
    unfinished last line, if there are others. Adds a newline where the text below needs one.
    """
    if cut_short and "\n" in text.strip():
        text = text[: text.rstrip().rfind("\n")]
    text = _without_repetition(text, gap)
    if not gap.rest.strip() or gap.takes_newline:
        text = text.rstrip()
    return text + "\n" if text.strip() and gap.takes_newline else text


def _without_repetition(text: str, gap: Gap) -> str:
    bare = text.rstrip()
    for rest in () if gap.takes_newline else (gap.rest.rstrip(), gap.rest.strip()):
        if rest and bare.endswith(rest):
            brackets = any(character in _CLOSING for character in rest)
            # foo(|) with the answer "a)" closes one bracket too many, with "b()" it does not.
            if not brackets or _closes_more_than_it_opens(bare, gap):
                text = bare[: -len(rest)]
                break
    lines = text.split("\n")
    for index, line in enumerate(lines):
        whole = gap.line + line if index == 0 else line
        if (index or not gap.line.strip()) and _repeats(whole, gap.following):
            return "\n".join(lines[:index])
    return text


def _closes_more_than_it_opens(text: str, gap: Gap) -> bool:
    scanner = scan(gap.prefix)
    scanner.lowest = before = scanner.depth
    scanner.feed(text)
    return scanner.lowest < before


def _repeats(line: str, following: str) -> bool:
    letters = sum(character.isalnum() for character in following)
    return letters >= _SIGNIFICANT and line.rstrip() == following


# --------------------------------------------------------------------------------------------------
# Syntax


def parses(source: str) -> bool:
    """True if this is a complete Python module."""
    return _compiles(source) == "complete"


def may_parse(source: str) -> bool:
    """True if Python source can begin like this; its last line may be unfinished."""
    if _compiles(source) != "wrong":
        return True
    # A line such as "x = 1 +" is a syntax error: test if an operand repairs it.
    unfinished = not source.endswith("\n")
    return unfinished and any(_compiles(source + more) != "wrong" for more in (" (", "_("))


def fits(text: str, gap: Gap) -> bool:
    """True if the source up to the end of the completion can be correct."""
    return may_parse(gap.prefix + text + ("" if gap.rest.strip() else "\n"))


def _compiles(source: str) -> Literal["complete", "begun", "wrong"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<completion>", "exec", dont_inherit=True)
            return "complete"
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            pass
        try:
            return "wrong" if codeop.compile_command(source, symbol="exec") else "begun"
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            return "wrong"


def longest_valid(text: str, gap: Gap) -> str:
    """The completion without the lines at its end after which the source cannot be correct.

    The first line stays, and all stays where the source before the cursor is itself in error.
    """
    if fits(text, gap) or not may_parse(gap.prefix):
        return text
    lines = text.split("\n")
    for count in range(len(lines) - 1, 0, -1):
        shorter = "\n".join(lines[:count])
        if shorter.strip() and fits(shorter, gap):
            return shorter
    return text
