"""Judge candidates for a gap in Python source: errors, and names left unbound or unread.

The file is analysed once, with a filler in the gap. Each candidate is then parsed only within the
top-level statement that contains the gap.
"""

import ast
import re
import warnings
from functools import cached_property
from typing import Literal, NamedTuple

from sounding.completion.gap import Gap, repeats
from sounding.completion.indentation import Level, possible_levels
from sounding.completion.python_names import Names, find_names, module_names
from sounding.completion.python_syntax import fits, may_parse, parses

_BLANK = "_"  # the name used in fillers
_FILLERS = (
    *("pass", "", f"if {_BLANK}:", f"for {_BLANK} in ():", "else:", "try:", f"def {_BLANK}():"),
    *("except Exception:", "finally:", f"case {_BLANK}:", f"class {_BLANK}:"),
)
_INSIDE = ("", _BLANK, f"{_BLANK}, ", f" = {_BLANK}", f"({_BLANK}", f"{_BLANK})", ":", f"{_BLANK}:")
_LEAVES = re.compile(r"(return|raise|continue|break)\b")
_DEFINES = re.compile(r"(?:async\s+)?(?:def|class)\s+(\w+)")
_IMPORTS = re.compile(r"(import|from)\s")
_CONTINUES = re.compile(r"(else|elif|except|finally|case)\b")
_STATEMENT = re.compile(r"(?m)^(?:@|def\b|class\b|async\s+def\b)")
_OUTER = re.compile(r"(?m)^[^\s#)\]}]")  # an unindented line of code
_MOST_CHARACTERS = 1 << 20  # of a file; longer ones are not analysed

Fault = Literal["", "syntax", "name", "unreachable", "repetition", "comment"]


class Judged(NamedTuple):
    """The judgement of a candidate."""

    fault: Fault
    """The reason why it cannot be right; "" if it can."""
    missing: int = 0
    """Number of names used around it that are still unbound."""
    unread: int = 0
    """Number of names never read, minus the number with the filler in the gap."""


class PythonSource:
    """The source around a gap."""

    def __init__(self, gap: Gap) -> None:
        self._gap = gap
        self.levels: list[Level] = possible_levels(gap)
        """Possible indentations of a whole missing line."""
        self._before, self._after = gap.prefix, gap.suffix
        self._known: frozenset[str] = frozenset()
        self._open = False
        self._names: Names | None = None
        self._mendable = False  # some filler makes the whole source parse
        self._analyse()

    @property
    def known(self) -> bool:
        """True if the source is Python that is correct apart from the gap."""
        return self._names is not None

    def level(self, white: str) -> Level | None:
        """The possible level that has this white space, or None."""
        return next((level for level in self.levels if level.white == white), None)

    @cached_property
    def begun(self) -> bool:
        """True if the text before the gap can begin a Python source."""
        return self.known or may_parse(self._gap.prefix)

    def judge(self, text: str) -> Judged:
        """Judge a text placed in the gap."""
        whole = self._gap.line + text
        if not self._gap.line.strip():
            if self._repeats(whole.strip("\n")):
                return Judged("repetition")
            if whole.lstrip().startswith("#") and "\n" not in whole.strip():
                return Judged("comment")
        if self._names is None:
            return Judged("" if self._may_stand(text) else "syntax")  # no other rule applies
        names = self._names_with(text)
        if names is None:
            return Judged("syntax")
        if not self._open and names.unbound - self._names.unbound:
            return Judged("name")
        if self._unreachable(whole):
            return Judged("unreachable")
        missing = 0 if self._open else len({w for w in names.unbound if w[1] != _BLANK})
        return Judged("", missing, len(names.unread) - len(self._names.unread))

    def valid(self, text: str) -> bool:
        """True if the whole source parses with this text; at its end, if it can begin like this."""
        if self._names is not None:
            return self._names_with(text) is not None
        gap = self._gap
        return parses(gap.prefix + text + gap.suffix) if gap.suffix.strip() else fits(text, gap)

    def needed(self) -> list[str]:
        """Names read around the gap and bound nowhere, in order of first use.

        Attributes begin with a dot.
        """
        if self._names is None or self._open:
            return []
        names = {name for _, name in self._names.unbound if name != _BLANK}
        text = self._after + self._before
        return sorted(names, key=lambda name: (_first_use(text, name), name))

    # ----------------------------------------------------------------------------------------------

    def _analyse(self) -> None:
        """Find a filler that makes the source correct, and analyse the names with it."""
        gap = self._gap
        if len(gap.prefix) + len(gap.suffix) > _MOST_CHARACTERS:
            return
        if not gap.prefix.strip():
            self._mendable = self._find_filler() is not None
            return
        around = _statement_around(gap)
        for self._before, self._after in (
            (around, (gap.prefix, gap.suffix)) if around else ((gap.prefix, gap.suffix),)
        ):
            filler = self._find_filler()
            if filler is not None:
                break
        else:
            return
        tree = _parsed(gap.prefix + filler + gap.suffix)
        # A file that is incorrect elsewhere may bind any name.
        self._known, self._open = (frozenset(), True) if tree is None else module_names(tree)
        region = _parsed(self._before + filler + self._after)
        self._names = None if region is None else find_names(region, self._known - {_BLANK})

    def _find_filler(self) -> str | None:
        gap = self._gap
        whole_line = not gap.line.strip() and (gap.takes_newline or not gap.rest.strip())
        end = "\n" if gap.takes_newline else ""
        whites = [level.white[len(gap.line) :] for level in self.levels] or [""]
        for filler in _FILLERS if whole_line else _INSIDE:
            for white in whites:
                text = white * bool(filler) + filler + end
                if _parsed(self._before + text + self._after) is not None:
                    return text
        return None

    def _names_with(self, text: str) -> Names | None:
        tree = _parsed(self._before + text + self._after)
        return None if tree is None else find_names(tree, self._known - {_BLANK})

    def _may_stand(self, text: str) -> bool:
        """True if a text adds no syntax error to the source."""
        if self._mendable:
            return self.valid(text)
        return not self.begun or fits(text, self._gap)

    def _repeats(self, text: str) -> bool:
        """True for a line equal to a neighbour, or a definition or import that exists already."""
        gap = self._gap
        first = text.split("\n", 1)[0].rstrip()
        above = next((x.rstrip() for x in reversed(gap.prefix.split("\n")[:-1]) if x.strip()), "")
        if "\n" not in text.strip() and (repeats(first, gap.following) or repeats(first, above)):
            return True
        code = first.strip()
        if above.lstrip().startswith("@"):
            return False  # overloads and setters share a name
        defined = _DEFINES.match(code)
        if defined is not None:
            white = first[: len(first) - len(code)]
            again = rf"(?m)^{white}(?:async\s+)?(?:def|class)\s+{defined[1]}\b"
            return re.search(again, self._before + "\n" + self._after) is not None
        if _IMPORTS.match(code):
            lines = (line.strip() for line in (gap.prefix + gap.suffix).split("\n"))
            return code in lines
        return False

    def _unreachable(self, text: str) -> bool:
        """True if the text leaves a block that has more lines after it."""
        last = text.rstrip().split("\n")[-1]
        following = self._gap.following
        white = last[: len(last) - len(last.lstrip())]
        if not _LEAVES.match(last.lstrip()) or not following:
            return False
        same = following.startswith(white) and not following[len(white) :][:1].isspace()
        return same and bool(white) and not _CONTINUES.match(following.lstrip())


def _parsed(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
            compile(
                tree, "<completion>", "exec", dont_inherit=True
            )  # finds `return` outside a function and the like
            return tree
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            return None


def _statement_around(gap: Gap) -> tuple[str, str] | None:
    """The top-level function or class around a gap, as the parts before and after the gap; None if
    the gap may be outside any."""
    begins = [match.start() for match in _STATEMENT.finditer(gap.prefix)]
    if not begins:
        return None
    begin = begins[-1]
    while len(begins) > 1 and gap.prefix[begins[-2]] == "@":  # its decorators
        begins.pop()
        begin = begins[-1]
    inside = gap.prefix[begin:].partition("\n")[2]
    if _OUTER.search(inside[: len(inside) - len(gap.line)].partition(":\n")[2]):
        return None
    after = _OUTER.search(gap.suffix, gap.suffix.find("\n") + 1 if not gap.takes_newline else 0)
    return gap.prefix[begin:], gap.suffix if after is None else gap.suffix[: after.start()]


def _first_use(text: str, name: str) -> int:
    found = re.search(rf"\b{re.escape(name.lstrip('.'))}\b", text)
    return len(text) if found is None else found.start()
