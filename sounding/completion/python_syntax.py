"""Syntax of Python source around a gap: brackets, strings, and whether source can be correct."""

import codeop
import warnings
from typing import Literal

from sounding.completion.gap import Gap

OPENING, CLOSING = "([{", ")]}"


class Scanner:
    """Tracks brackets and strings through Python source, piece by piece."""

    def __init__(self) -> None:
        self.depth = 0
        self.lowest = 0
        """The lowest depth so far."""
        self.quote = ""  # of the open string
        self._comment = False
        self._escaped = False
        self._quotes = ""  # a run of quotes that may become a triple one
        self._seen = ""  # a run of quotes inside a string, which may close it

    def feed(self, text: str) -> None:
        for character in text:
            self._step(character)

    @property
    def in_code(self) -> bool:
        """True if a new line here is a line of the program and not of a string."""
        return not self.quote and self._quotes[:3] not in ('"""', "'''")

    def _step(self, character: str) -> None:
        if self._quotes:
            if character == self._quotes[0] and len(self._quotes) < 3:
                self._quotes += character
                return
            # One or three quotes open a string; two are an empty string.
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
        elif character in OPENING:
            self.depth += 1
        elif character in CLOSING:
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


def parses(source: str) -> bool:
    """True if the source is a complete Python module."""
    return _compiles(source) == "complete"


def may_parse(source: str) -> bool:
    """True if Python source can begin like this; the last line may be unfinished."""
    if _compiles(source) != "wrong":
        return True
    # A line such as "x = 1 +" is a syntax error: test whether an operand repairs it.
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
    """The completion without final lines that make the source incorrect.

    Keeps the first line, and keeps everything if the source before the cursor has an error itself.
    """
    if fits(text, gap) or not may_parse(gap.prefix):
        return text
    lines = text.split("\n")
    for count in range(len(lines) - 1, 0, -1):
        shorter = "\n".join(lines[:count])
        if shorter.strip() and fits(shorter, gap):
            return shorter
    return text
