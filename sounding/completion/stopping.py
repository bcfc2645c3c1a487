"""The end of a completion: the end of its line or of its block.

Works on text alone, so that tests can use a scripted model. Indentation is that of Python, but a
block of any indented language ends the same way.
"""

from collections.abc import Iterator

from sounding.completion.gap import CONTINUES, Gap, Kind, indentation, repeats
from sounding.completion.python_syntax import CLOSING, scan


class LineEnding:
    """Ends after the first non-blank line."""

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
    """Ends after the block around the cursor, or the block opened before it.

    Ends before the first line with less indentation, except inside brackets and strings. At the
    outermost level it ends before the next statement after a blank line or an indented one. It also
    ends before a statement that repeats the one right above: small networks repeat it forever.
    """

    def __init__(self, gap: Gap) -> None:
        self._following, self._line = gap.following, gap.line
        self._floor = _floor(gap)
        self._scanner = scan(gap.prefix)
        self._depth = max(0, self._scanner.depth)
        self.at = 0
        """Start of the next line to check."""
        self.undecided = False
        """True if that line may still prove to be after the end."""
        self._indented = self._blank = False  # the line before it
        self._above = ""
        self._begun = bool(gap.line.strip())

    def find(self, text: str) -> int | None:
        """Where the completion ends in what was generated so far; None while it may go on.

        `text` must grow from call to call. Trailing white space may still prove to be after the
        end.
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
        if complete and (repeats(line, self._following) or repeats(line, self._above)):
            return True
        first = line.lstrip()
        if self._floor:
            if first[0] in CLOSING and self._scanner.depth > 0:
                return False
            return indentation(line) < self._floor
        # Only a complete keyword shows that the statement continues.
        separated = self._blank or self._indented
        if not complete and any(word.startswith(first) for word in CONTINUES):
            self.undecided = separated
            return False
        return indentation(line) == 0 and separated and not first.startswith(CONTINUES)


def _floor(gap: Gap) -> int | None:
    """The least indentation inside the block; None if the first line will decide it."""
    if gap.line.strip():
        return indentation(gap.line) + gap.line.rstrip().endswith(":")
    typed = len(gap.line)
    above = next((line for line in _lines_above(gap.prefix) if line.strip()), "")
    if above.rstrip().endswith(":"):
        return max(typed, indentation(above) + 1)
    return typed or None


def _lines_above(prefix: str) -> Iterator[str]:
    """Lines above the cursor's, nearest first."""
    end = prefix.rfind("\n")
    while end >= 0:
        begin = prefix.rfind("\n", 0, end) + 1
        yield prefix[begin:end]
        end = begin - 1


def ending_for(kind: Kind, gap: Gap) -> LineEnding | BlockEnding:
    """The ending rule for a kind of completion."""
    return LineEnding(gap) if kind == "line" else BlockEnding(gap)
