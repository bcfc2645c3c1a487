"""Python lines that must open a block because the line below is indented further.

Such a line starts with one of a few words. A small network often writes another statement there,
after which the program cannot be correct.
"""

from sounding.completion.gap import Gap, indentation
from sounding.completion.healing import Healer
from sounding.completion.python_syntax import scan

_WORDS = "if |elif |else:|for |while |with |def |class |try:|except|finally:|async |match |case "
_OPENERS = tuple(word.encode() for word in _WORDS.split("|"))


def opens_block(gap: Gap) -> bool:
    """True if the cursor's line is empty so far and must open a block."""
    below = gap.following
    if gap.line.strip() or gap.rest.strip() or below.lstrip()[:1] in ("", "#"):
        return False
    if indentation(below) <= len(gap.line) or gap.prefix.rstrip("\n \t").endswith("\\"):
        return False
    before = scan(gap.prefix)
    # Indentation is meaningless inside brackets, or if a bracket is closed below.
    return before.in_code and before.depth <= 0 and scan(gap.suffix).lowest >= 0


class Opening:
    """Restricts the start of a line to the words that open a block."""

    def __init__(self, healer: Healer) -> None:
        self._healer = healer

    def allowed(self, rest: bytes, text: str) -> list[int] | None:
        """The ids allowed after the healed `rest` of the prompt and the line's `text`; None once
        the first word is complete."""
        written = text.encode()
        if written.startswith(_OPENERS):
            return None
        left = (word[len(written) :] for word in _OPENERS if word.startswith(written))
        return sorted({token for word in left for token in self._healer.allowed(rest + word)})
