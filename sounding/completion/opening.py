"""Lines of Python that must open a block, because the line below is indented more.

Their first word is one of a few. A network that has read little often writes another statement
there, after which the program cannot be correct.
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
    # Inside of brackets, or where one is closed below, more indentation means nothing.
    return before.in_code and before.depth <= 0 and scan(gap.suffix).lowest >= 0


class Opening:
    """Lets the line begin with nothing else."""

    def __init__(self, healer: Healer) -> None:
        self._healer = healer

    def allowed(self, rest: bytes, text: str) -> list[int] | None:
        """The ids allowed behind the line's `text`, with the healed `rest` of the prompt before it;
        None once the first word is complete."""
        written = text.encode()
        if written.startswith(_OPENERS):
            return None
        left = (word[len(written) :] for word in _OPENERS if word.startswith(written))
        return sorted({token for word in left for token in self._healer.allowed(rest + word)})
